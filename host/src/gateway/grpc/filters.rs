//! What a stream leaves out, as its caller has asked.
//!
//! Filters of entries say nothing about other events. What is said of an entry is read from its data, in the short form
//! (`entry_channel`) or the full one (`channel`); an entry that says no channel is one of the channel `history`.

use serde_json::Value;
use tonic::Status;

use crate::event::Event;
use crate::limits::GRPC_FILTER_VALUES_MAX;
use crate::memory_v1::SubscribeEventsRequest;

/// The channel of entries where nobody says another.
const HISTORY: &str = "history";

#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    kinds: Vec<String>,
    conversations: Vec<String>,
    /// In lower case, as roles are.
    channels: Vec<String>,
    content_types: Vec<String>,
    roles: Vec<String>,
}

impl Filters {
    /// Takes them out of a request.
    pub(super) fn of(asked: &mut SubscribeEventsRequest) -> Result<Self, Status> {
        let lists = [
            &asked.conversation_ids,
            &asked.kinds,
            &asked.entry_channels,
            &asked.entry_content_types,
            &asked.entry_roles,
        ];
        let values: usize = lists.iter().map(|list| list.len()).sum();
        if values > GRPC_FILTER_VALUES_MAX {
            return Err(Status::invalid_argument(format!(
                "the filters have {values} values; grpc_filter_values_max is {GRPC_FILTER_VALUES_MAX}"
            )));
        }
        if asked.conversation_ids.iter().any(|id| id.trim().is_empty()) {
            return Err(Status::invalid_argument("conversation_ids has a blank element"));
        }
        let lower = |list: Vec<String>| list.iter().map(|text| text.to_lowercase()).collect::<Vec<_>>();
        let mut channels = lower(std::mem::take(&mut asked.entry_channels));
        if channels.is_empty() {
            channels.push(HISTORY.to_owned());
        }
        Ok(Self {
            kinds: std::mem::take(&mut asked.kinds),
            conversations: std::mem::take(&mut asked.conversation_ids),
            channels,
            content_types: std::mem::take(&mut asked.entry_content_types),
            roles: lower(std::mem::take(&mut asked.entry_roles)),
        })
    }

    /// Whether the stream shows an event of this kind. Data is read only where a filter needs it.
    pub(super) fn show(&self, kind: &str, event: &Event<'_>) -> bool {
        if !self.kinds.is_empty() && !self.kinds.iter().any(|wanted| wanted == kind) {
            return false;
        }
        let is_entry = kind == "entry";
        if !is_entry && self.conversations.is_empty() {
            return true;
        }
        // What is no JSON says nothing.
        let data: Value = serde_json::from_slice(event.payload).unwrap_or_default();
        if !self.conversations.is_empty() {
            let own = if kind == "conversation" { "id" } else { "conversation" };
            let id = text(&data, &["conversation", "conversation_id", "conversationId", own]);
            if id.is_none_or(|id| !self.conversations.iter().any(|wanted| wanted == id)) {
                return false;
            }
        }
        !is_entry || self.shows_entry(&data)
    }

    fn shows_entry(&self, data: &Value) -> bool {
        let channel = text(data, &["entry_channel", "channel"]).unwrap_or(HISTORY).to_lowercase();
        if !self.channels.contains(&channel) {
            return false;
        }
        let content_type = text(data, &["entry_content_type", "contentType"]);
        if !self.content_types.is_empty()
            && content_type.is_none_or(|found| !self.content_types.iter().any(|wanted| wanted == found))
        {
            return false;
        }
        if self.roles.is_empty() {
            return true;
        }
        let of_content = || data.get("content")?.get(0)?.get("role")?.as_str();
        let role = text(data, &["entry_role"]).or_else(of_content);
        role.is_some_and(|role| self.roles.contains(&role.to_lowercase()))
    }
}

/// The first of these members that is text.
fn text<'a>(data: &'a Value, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| data.get(name)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(asked: SubscribeEventsRequest, kind: &str, data: &str) -> bool {
        let mut asked = asked;
        let event = Event { payload: data.as_bytes(), ..Event::default() };
        Filters::of(&mut asked).unwrap().show(kind, &event)
    }

    #[test]
    fn both_forms_of_an_entry_are_read() {
        let asked = || SubscribeEventsRequest {
            entry_content_types: vec!["history/lc4j".into()],
            entry_roles: vec!["ai".into()],
            ..SubscribeEventsRequest::default()
        };
        let short = r#"{"entry_channel":"HISTORY","entry_content_type":"history/lc4j","entry_role":"AI"}"#;
        let full = r#"{"channel":"history","contentType":"history/lc4j","content":[{"role":"Ai"}]}"#;
        assert!(shows(asked(), "entry", short) && shows(asked(), "entry", full));
        assert!(!shows(asked(), "entry", r#"{"contentType":"history/lc4j"}"#), "it has no role");
        assert!(!shows(asked(), "entry", r#"{"contentType":"HISTORY/lc4j","entry_role":"AI"}"#));
        assert!(shows(asked(), "response", "{}"), "these are about entries");
    }

    #[test]
    fn an_event_without_a_conversation_is_of_none() {
        let asked = || SubscribeEventsRequest {
            conversation_ids: vec!["c".into()],
            ..SubscribeEventsRequest::default()
        };
        assert!(shows(asked(), "conversation", r#"{"id":"c"}"#));
        assert!(shows(asked(), "entry", r#"{"id":"e","conversationId":"c"}"#));
        assert!(!shows(asked(), "entry", r#"{"id":"c","conversationId":"d"}"#));
        assert!(!shows(asked(), "membership", r#"{"conversation_group":"c"}"#));
        assert!(!shows(asked(), "response", "no JSON"));
    }
}
