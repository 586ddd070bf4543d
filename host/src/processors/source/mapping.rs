//! What a foreign event is here.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::client::EventEnvelope;
use crate::event::{Event, InvalidEvent};

/// Makes events of envelopes: type = kind.event, aggregate = kind, its id = entry or conversation, version = cursor.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    source: String,
    /// The last version that was given without a decimal cursor.
    counted: u64,
}

/// Why an envelope is no event of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoEvent {
    #[error("its data is not JSON: {detail}")]
    NotJson { detail: String },
    #[error(transparent)]
    Invalid(#[from] InvalidEvent),
}

/// The members that name what an event is about, in both shapes that a server sends.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named<'a> {
    #[serde(borrow)]
    id: Member<'a>,
    #[serde(borrow)]
    entry: Member<'a>,
    #[serde(borrow)]
    conversation: Member<'a>,
    #[serde(borrow)]
    conversation_id: Member<'a>,
    #[serde(borrow, rename = "conversationId")]
    conversation_id_full: Member<'a>,
    #[serde(borrow)]
    conversation_group: Member<'a>,
    #[serde(borrow, rename = "conversationGroupId")]
    conversation_group_full: Member<'a>,
}

/// A member of whatever type; only a text names something.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Member<'a> {
    Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
    Other(serde::de::IgnoredAny),
    #[default]
    None,
}

impl Member<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }
}

impl Named<'_> {
    fn conversation(&self) -> Option<&str> {
        let named = [&self.conversation, &self.conversation_id, &self.conversation_id_full];
        named.into_iter().find_map(Member::text)
    }

    fn group(&self) -> Option<&str> {
        self.conversation_group.text().or(self.conversation_group_full.text())
    }

    /// What is about nothing by name is about its kind.
    fn subject<'a>(&'a self, kind: &'a str) -> &'a str {
        let named = match kind {
            "membership" => self.group().or(self.conversation()),
            "conversation" => self.conversation().or(self.id.text()).or(self.group()),
            "entry" => self.entry.text().or(self.id.text()).or(self.conversation()),
            _ => self.entry.text().or(self.conversation()).or(self.id.text()).or(self.group()),
        };
        named.unwrap_or(kind)
    }
}

impl Mapping {
    pub(super) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), counted: 0 }
    }

    /// The last version that was given without a decimal cursor, to be kept over a restart.
    pub(super) fn counted(&self) -> u64 {
        self.counted
    }

    pub(super) fn count_from(&mut self, counted: u64) {
        self.counted = self.counted.max(counted);
    }

    /// Hands the event of an envelope on. Its payload is the data as it came, byte for byte.
    pub(super) fn event<T, E>(
        &mut self,
        envelope: &EventEnvelope,
        take: impl FnOnce(Event<'_>) -> Result<T, E>,
    ) -> Result<T, NoEvent>
    where
        NoEvent: From<E>,
    {
        let payload: &[u8] = if envelope.data.is_empty() { b"null" } else { &envelope.data };
        let not_json = |detail: String| NoEvent::NotJson { detail };
        let text = std::str::from_utf8(payload).map_err(|_| not_json("it is not UTF-8".into()))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| not_json(error.to_string()))?;
        // What is no object names nothing.
        let named: Named<'_> = serde_json::from_str(text).unwrap_or_default();
        let (kind, cursor) = (envelope.kind.as_str(), envelope.cursor.as_deref().unwrap_or_default());
        let subject = named.subject(kind);
        let version = self.version(cursor, envelope.time.0);
        Ok(take(Event {
            id: &self.id(envelope, subject),
            aggregate: kind,
            agg_id: subject,
            version,
            event_type: &format!("{kind}.{}", envelope.event),
            at: envelope.time,
            kind,
            cursor,
            payload,
            ..Event::default()
        })?)
    }

    /// A decimal cursor grows with each event. Otherwise the time of receipt does, held above the last one.
    fn version(&mut self, cursor: &str, at: i64) -> u64 {
        let decimal =
            cursor.parse::<u64>().ok().filter(|number| (1..=i64::MAX.cast_unsigned()).contains(number));
        decimal.unwrap_or_else(|| {
            self.counted = u64::try_from(at).unwrap_or(0).max(self.counted + 1);
            self.counted
        })
    }

    /// The same event has the same id, however often it comes, and in whichever shape. What it is about is part of it: a
    /// server that was set up anew counts its cursors from one again. Without a cursor nothing tells a repeat.
    fn id(&self, envelope: &EventEnvelope, subject: &str) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        const ID_LETTERS: usize = 26;
        let Some(cursor) = &envelope.cursor else { return Ulid::new().to_string().to_lowercase() };
        let mut hash = Sha256::new();
        for part in [self.source.as_str(), cursor, &envelope.event, &envelope.kind, subject] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let bit = |at: usize| usize::from(digest[at / 8] >> (7 - at % 8) & 1);
        let letter = |index: usize| (index * 5..index * 5 + 5).fold(0, |letter, at| letter << 1 | bit(at));
        (0..ID_LETTERS).map(|index| char::from(LETTERS[letter(index)])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventBatch, Micros, TenantId};

    fn mapped(kind: &str, data: &str, cursor: Option<&str>) -> Result<EventBatch, NoEvent> {
        let envelope = EventEnvelope {
            event: "created".into(),
            kind: kind.into(),
            data: data.into(),
            cursor: cursor.map(str::to_owned),
            time: Micros(1_700_000_000_000_000),
        };
        let mut batch = EventBatch::new(TenantId::new("default").unwrap());
        Mapping::new("grpc").event(&envelope, |event| batch.push(&event))?;
        Ok(batch)
    }

    #[test]
    fn an_event_is_about_what_both_shapes_name() {
        for (kind, data, subject) in [
            ("entry", r#"{"conversation":"c","entry":"e"}"#, "e"),
            ("entry", r#"{"id":"e","conversationId":"c"}"#, "e"),
            ("entry", r#"{"conversation":"c"}"#, "c"),
            ("conversation", r#"{"conversation":"c","conversation_group":"g"}"#, "c"),
            ("conversation", r#"{"id":"c","title":"t"}"#, "c"),
            ("response", r#"{"conversation":"c","recording":"r"}"#, "c"),
            ("membership", r#"{"conversation_group":"g","user":"u"}"#, "g"),
            ("memory", r#"{"id":7}"#, "memory"),
            ("memory", "[]", "memory"),
            ("memory", "", "memory"),
        ] {
            let batch = mapped(kind, data, Some("41")).unwrap();
            let event = batch.get(0);
            assert_eq!((event.aggregate, event.agg_id), (kind, subject), "{data}");
            assert_eq!(event.event_type, format!("{kind}.created"));
            assert_eq!((event.version, event.cursor, event.kind), (41, "41", kind));
        }
    }

    #[test]
    fn numbers_of_a_payload_stay_as_they_are() {
        let data = r#"{ "n": 9007199254740993, "id": "x" }"#;
        assert_eq!(mapped("entry", data, Some("1")).unwrap().get(0).payload, data.as_bytes());
    }

    #[test]
    fn what_is_no_json_or_too_long_is_no_event() {
        assert!(matches!(mapped("entry", "{", Some("1")), Err(NoEvent::NotJson { .. })));
        assert!(matches!(mapped("", "{}", Some("1")), Err(NoEvent::Invalid(_))));
        assert!(matches!(mapped("channel", "{}", Some(&"9".repeat(600))), Err(NoEvent::Invalid(_))));
    }

    #[test]
    fn an_id_is_that_of_the_cursor_and_none_without_one() {
        let id = |cursor| mapped("entry", "{}", cursor).unwrap().get(0).id.to_owned();
        assert_eq!(id(Some("1")), id(Some("1")));
        assert_ne!(id(Some("1")), id(Some("2")));
        assert_ne!(id(None), id(None));
        assert_eq!(id(Some("1")).len(), 26);
    }

    /// The short shape and the full one are one event; the same cursor of another server is another event.
    #[test]
    fn an_id_is_that_of_what_the_event_is_about_in_either_shape() {
        let id = |data| mapped("entry", data, Some("1")).unwrap().get(0).id.to_owned();
        assert_eq!(id(r#"{"conversation":"c","entry":"e"}"#), id(r#"{"id":"e","conversationId":"c"}"#));
        assert_ne!(id(r#"{"id":"e","conversationId":"c"}"#), id(r#"{"id":"f","conversationId":"c"}"#));
    }

    #[test]
    fn versions_without_decimal_cursors_grow() {
        let mut mapping = Mapping::new("grpc");
        let first = mapping.version("abc", 10);
        assert_eq!((first, mapping.version("", 10), mapping.version("0", 5)), (10, 11, 12));
        mapping.count_from(50);
        assert_eq!(mapping.version("x", 10), 51);
        assert_eq!(mapping.version("7", 10), 7);
    }
}
