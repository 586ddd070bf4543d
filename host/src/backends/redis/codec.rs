//! Events as bytes in an entry of the stream, and back. An entry begins with the number of its format.

use sha2::{Digest, Sha256};

use crate::event::{Event, EventBatch, Micros, Position};

/// The format that this version writes, and the only one so far.
pub(super) const FORMAT: u8 = 1;

/// What the script needs of one event.
#[derive(Clone, Debug)]
pub(super) struct EncodedEvent {
    /// Stands for (tenant, stream, id) in the dedup window.
    pub(super) key: [u8; 16],
    /// Stands for the content; two spellings of the same JSON differ, and are compared when it matters.
    pub(super) hash: [u8; 16],
    pub(super) body: Vec<u8>,
}

/// `stream` is empty for `events`.
pub(super) fn encode(tenant: &str, stream: &str, event: &Event<'_>) -> EncodedEvent {
    EncodedEvent { key: id_key(tenant, stream, event.id), hash: content_hash(event), body: body(event) }
}

fn id_key(tenant: &str, stream: &str, id: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    // No tenant and no stream has a zero in its name.
    for part in [tenant, stream] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(id);
    short(hash)
}

/// The same of an event that the host has made itself: nobody else can take it, since no tenant's name begins with a zero.
/// Nor is it used twice, since `of` is of one life of what the event is about.
pub(super) fn own_key(tenant: &str, of: &str, id: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in ["", tenant, of] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(id);
    short(hash)
}

/// Of what [`Event::same_content`] compares, the id left out.
fn content_hash(event: &Event<'_>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in [event.aggregate, event.agg_id, event.event_type, event.scope] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(event.version.to_le_bytes());
    hash.update(event.at.0.to_le_bytes());
    hash.update(event.schema_version.to_le_bytes());
    hash.update(event.payload);
    short(hash)
}

fn short(hash: Sha256) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

fn body(event: &Event<'_>) -> Vec<u8> {
    let texts = texts(event);
    let bytes: usize = texts.iter().map(|text| text.len()).sum::<usize>() + event.payload.len();
    let mut out = Vec::with_capacity(bytes + 40);
    put(&mut out, event.version);
    let at = event.at.0;
    put(&mut out, ((at << 1) ^ (at >> 63)).cast_unsigned());
    put(&mut out, u64::from(event.schema_version));
    put(&mut out, u64::from(event.depth));
    for text in texts {
        put(&mut out, text.len() as u64);
    }
    put(&mut out, event.payload.len() as u64);
    for text in texts {
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(event.payload);
    out
}

fn texts<'a>(event: &Event<'a>) -> [&'a str; 8] {
    [
        event.id,
        event.aggregate,
        event.agg_id,
        event.event_type,
        event.scope,
        event.kind,
        event.cursor,
        event.traceparent,
    ]
}

/// Seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).expect("seven bits fit") | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).expect("what is left has seven bits"));
}

/// Calls `each` with every event of an entry, the first of which has position `first`. What is wrong is said.
pub(super) fn decode(
    bytes: &[u8],
    first: Position,
    count: u64,
    mut each: impl FnMut(&Event<'_>),
) -> Result<(), &'static str> {
    let mut rest = match bytes.split_first() {
        Some((&FORMAT, rest)) => rest,
        Some(_) => return Err("an entry is of a format that this version does not know"),
        None => return Err("an entry is empty"),
    };
    let mut decoded = 0;
    while !rest.is_empty() {
        let event = next(&mut rest, Position(first.0 + decoded)).ok_or("an entry is damaged")?;
        each(&event);
        decoded += 1;
    }
    if decoded == count { Ok(()) } else { Err("an entry has another number of events than its id says") }
}

/// One event of an entry, by the bytes that it has there.
pub(super) fn decode_one(mut bytes: &[u8], position: Position) -> Option<Event<'_>> {
    next(&mut bytes, position).filter(|_| bytes.is_empty())
}

fn next<'a>(rest: &mut &'a [u8], position: Position) -> Option<Event<'a>> {
    let version = number(rest)?;
    let at = number(rest)?;
    let at = (at >> 1).cast_signed() ^ -(at & 1).cast_signed();
    let schema_version = u32::try_from(number(rest)?).ok()?;
    let depth = u32::try_from(number(rest)?).ok()?;
    let mut sizes = [0; 9];
    for size in &mut sizes {
        *size = usize::try_from(number(rest)?).ok()?;
    }
    let mut parts = [&[][..]; 9];
    for (part, size) in parts.iter_mut().zip(sizes) {
        let (taken, left) = rest.split_at_checked(size)?;
        *part = taken;
        *rest = left;
    }
    let text = |index: usize| std::str::from_utf8(parts[index]).ok();
    Some(Event {
        position,
        id: text(0)?,
        aggregate: text(1)?,
        agg_id: text(2)?,
        version,
        event_type: text(3)?,
        at: Micros(at),
        schema_version,
        depth,
        scope: text(4)?,
        kind: text(5)?,
        cursor: text(6)?,
        traceparent: text(7)?,
        payload: parts[8],
    })
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// An entry's id: the position of its last event, and how many it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryId {
    pub(super) last: Position,
    pub(super) count: u64,
}

impl EntryId {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (last, count) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let id = Self { last: Position(last.parse().ok()?), count: count.parse().ok()? };
        (id.count >= 1 && id.count <= id.last.0).then_some(id)
    }

    pub(super) fn first(self) -> Position {
        Position(self.last.0 - self.count + 1)
    }
}

/// Appends an entry's events to a batch.
pub(super) fn decode_into(batch: &mut EventBatch, id: EntryId, bytes: &[u8]) -> Result<(), &'static str> {
    decode(bytes, id.first(), id.count, |event| batch.push_checked(event))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::TenantId;

    proptest! {
        #[test]
        fn an_event_comes_back_byte_for_byte(
            texts in proptest::array::uniform8(".{0,40}"),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            version in any::<u64>(), at in any::<i64>(), schema_version in any::<u32>(), depth in any::<u32>(),
        ) {
            let [id, aggregate, agg_id, event_type, scope, kind, cursor, traceparent] = &texts;
            let event = Event {
                position: Position(7), id, aggregate, agg_id, version, event_type, at: Micros(at),
                schema_version, depth, scope, kind, cursor, traceparent, payload: &payload,
            };
            let mut entry = vec![FORMAT];
            entry.extend(encode("acme", "", &event).body);
            entry.extend(encode("acme", "", &event).body);
            let mut batch = EventBatch::new(TenantId::new("acme").unwrap());
            decode_into(&mut batch, EntryId { last: Position(8), count: 2 }, &entry).unwrap();
            prop_assert_eq!(batch.get(0), event);
            prop_assert_eq!(batch.get(1), Event { position: Position(8), ..event });
        }

        #[test]
        fn garbage_is_an_error_and_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut batch = EventBatch::new(TenantId::new("acme").unwrap());
            let _ = decode_into(&mut batch, EntryId { last: Position(3), count: 3 }, &bytes);
        }
    }
}
