//! Which lane an event belongs to.

use serde::de::{IgnoredAny, MapAccess, Visitor};

use sha2::{Digest, Sha256};

use super::{Manifest, OrderingKey};
use crate::event::{EventBatch, EventRecord};
use crate::limits::PARKED_KEY_BYTES_MAX;

/// The lane of event `index`: a stable hash of its ordering key, modulo the
/// number of lanes. An event without the key's payload field has the empty key.
pub(super) fn lane_of(key: &OrderingKey, batch: &EventBatch, index: usize, lanes: u32) -> u32 {
    if lanes == 1 {
        return 0;
    }
    let hash = match key {
        OrderingKey::Single => 0,
        OrderingKey::Aggregate => {
            let record = &batch.records()[index];
            let start = (record.start + record.id_bytes) as usize;
            let bytes = (record.aggregate_bytes + record.agg_id_bytes) as usize;
            let hash = fnv(FNV_BASIS, &record.aggregate_bytes.to_le_bytes());
            fnv(hash, &batch.arena()[start..start + bytes])
        }
        OrderingKey::PayloadField(field) => {
            let record = &batch.records()[index];
            fnv(FNV_BASIS, field_text(payload(record, batch), field).as_bytes())
        }
    };
    u32::try_from(hash % u64::from(lanes)).expect("a remainder of a u32 fits one")
}

/// The ordering key of event `index`, as bytes that are the same for the same key.
pub(crate) fn key_of(key: &OrderingKey, batch: &EventBatch, index: usize) -> Vec<u8> {
    let record = &batch.records()[index];
    let whole = match key {
        OrderingKey::Single => Vec::new(),
        OrderingKey::Aggregate => {
            let start = (record.start + record.id_bytes) as usize;
            let bytes = (record.aggregate_bytes + record.agg_id_bytes) as usize;
            let mut whole = record.aggregate_bytes.to_le_bytes().to_vec();
            whole.extend_from_slice(&batch.arena()[start..start + bytes]);
            whole
        }
        OrderingKey::PayloadField(field) => field_text(payload(record, batch), field).into_bytes(),
    };
    if whole.len() <= PARKED_KEY_BYTES_MAX { whole } else { Sha256::digest(&whole).to_vec() }
}

/// The lane of one event, for whoever looks from outside.
pub fn lane_of_event(manifest: &Manifest, event: &EventBatch, lanes: u32) -> u32 {
    if event.is_empty() { 0 } else { lane_of(&manifest.ordering_key, event, 0, lanes) }
}

fn payload<'a>(record: &EventRecord, batch: &'a EventBatch) -> &'a [u8] {
    let end = record.span().end;
    &batch.arena()[end - record.payload_bytes as usize..end]
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: written down here because lanes must not move when a library changes its hash.
fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash ^= u64::from(*byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// A top-level member of a JSON object as text: a string's content, anything else as written.
fn field_text(payload: &[u8], field: &str) -> String {
    struct Find<'f>(&'f str);

    impl<'de> Visitor<'de> for Find<'_> {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
            let mut found = String::new();
            while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                if name == self.0 {
                    let raw = map.next_value::<&'de serde_json::value::RawValue>()?.get();
                    found = serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned());
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    struct Seed<'f>(&'f str);
    impl<'de> serde::de::DeserializeSeed<'de> for Seed<'_> {
        type Value = String;
        fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
            from.deserialize_map(Find(self.0))
        }
    }

    let mut json = serde_json::Deserializer::from_slice(payload);
    serde::de::DeserializeSeed::deserialize(Seed(field), &mut json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, TenantId};

    fn batch(payload: &str) -> EventBatch {
        let mut batch = EventBatch::new(TenantId::new("t").expect("a good name"));
        let event = Event {
            aggregate: "a",
            agg_id: "1",
            event_type: "x",
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
        batch
    }

    #[test]
    fn the_field_decides_and_nothing_else() {
        let key = OrderingKey::PayloadField("carrier".into());
        let one = batch(r#"{"x":{"carrier":"AA"},"carrier":"UA"}"#);
        let other = batch(r#"{"carrier":"UA","x":[1,2]}"#);
        assert_eq!(lane_of(&key, &one, 0, 64), lane_of(&key, &other, 0, 64));
        assert_eq!(field_text(br#"{"n":12,"s":"a\"b"}"#, "n"), "12");
        assert_eq!(field_text(br#"{"n":12,"s":"a\"b"}"#, "s"), "a\"b");
        assert_eq!(field_text(br#"[1]"#, "s"), "");
    }

    #[test]
    fn lanes_are_stable_over_releases() {
        // A lane is stored with its state: a change here would move keys away from theirs. The number was
        // computed apart from this code: FNV-1a over [1, 0, 0, 0] and "a1".
        assert_eq!(lane_of(&OrderingKey::Aggregate, &batch("1"), 0, 64), 10);
        assert_eq!(lane_of(&OrderingKey::Single, &batch("1"), 0, 64), 0);
    }
}
