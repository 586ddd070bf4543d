//! Sort keys: bytes whose order is the order of a query.
//!
//! The store orders rows with its own indexes; windows order them by these bytes, and both must agree (the
//! conformance suite of tables compares them). The order: nulls first, false before true, integers exactly,
//! floats by number (0.0 and -0.0 are the same), times by instant, text by its UTF-8 bytes whatever the
//! language. A descending part has all of its bits turned over, so that nulls come last. The row's key is
//! the last part, ascending, so the order is total.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::event::Micros;
use crate::tables::{ColumnType, Order, Value};

/// Bytes of a sort key that stand in it; longer keys have an allocation of their own.
const INLINE: usize = 36;

/// Where a row stands in the order of a query.
#[derive(Clone)]
pub(super) struct SortKey(Packed);

/// The values' bytes, and the row's key from `key_at` on.
#[derive(Clone)]
enum Packed {
    Inline { length: u8, key_at: u8, bytes: [u8; INLINE] },
    Apart { key_at: u32, bytes: Box<[u8]> },
}

impl SortKey {
    /// Of a row's values for each part of the order, and its key.
    pub(super) fn new<'a>(order: &[Order], values: impl IntoIterator<Item = &'a Value>, key: &str) -> Self {
        let mut writer = SortKeyWriter::default();
        order.iter().zip(values).for_each(|(part, value)| writer.part(value, part.descending));
        writer.finish(key)
    }

    /// Of one value alone: equal values, and only those, have equal bytes.
    pub(super) fn of(value: &Value) -> Self {
        let mut writer = SortKeyWriter::default();
        writer.part(value, false);
        writer.finish("")
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Packed::Inline { length, bytes, .. } => &bytes[..usize::from(*length)],
            Packed::Apart { bytes, .. } => bytes,
        }
    }

    /// The first bytes as a number: of two keys, the one with the smaller head comes first.
    pub(super) fn head(&self) -> u128 {
        let mut head = [0; 16];
        let bytes = self.bytes();
        let length = bytes.len().min(head.len());
        head[..length].copy_from_slice(&bytes[..length]);
        u128::from_be_bytes(head)
    }

    /// The parts before the row's key.
    pub(super) fn parts(&self) -> SortKeyParts<'_> {
        let bytes = self.bytes();
        SortKeyParts(&bytes[..bytes.len() - self.key().len()])
    }

    /// The row's key, which is the last part.
    pub(super) fn key(&self) -> &[u8] {
        match &self.0 {
            Packed::Inline { length, key_at, bytes } => &bytes[usize::from(*key_at)..usize::from(*length)],
            Packed::Apart { key_at, bytes } => &bytes[*key_at as usize..],
        }
    }
}

impl PartialEq for SortKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for SortKey {}

impl Ord for SortKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for SortKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for SortKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl fmt::Debug for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes().escape_ascii())
    }
}

/// The parts of a sort key, one after the other.
pub(super) struct SortKeyParts<'a>(&'a [u8]);

impl SortKeyParts<'_> {
    /// The next part, as the value of this type that it was made of. (-0.0 comes back as 0.0.)
    pub(super) fn next(&mut self, column_type: ColumnType, descending: bool) -> Value {
        let turn = if descending { 0xff } else { 0 };
        if self.byte() == NULL ^ turn {
            return Value::Null;
        }
        match column_type {
            ColumnType::Bool => Value::Bool(self.byte() ^ turn == 1),
            ColumnType::Int => Value::Int(self.int(turn)),
            ColumnType::Timestamp => Value::Timestamp(Micros(self.int(turn))),
            ColumnType::Float => {
                let ordered = self.number(turn);
                let bits = if ordered >> 63 == 1 { ordered ^ (1 << 63) } else { !ordered };
                Value::Float(f64::from_bits(bits))
            }
            ColumnType::Text | ColumnType::Json => {
                Value::Text(String::from_utf8_lossy(&self.text(turn)).into())
            }
            ColumnType::Bytes => Value::Bytes(self.text(turn)),
        }
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return END[0] };
        self.0 = rest;
        *first
    }

    fn number(&mut self, turn: u8) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte() ^ turn))
    }

    fn int(&mut self, turn: u8) -> i64 {
        (self.number(turn) ^ (1 << 63)).cast_signed()
    }

    fn text(&mut self, turn: u8) -> Vec<u8> {
        let mut text = Vec::new();
        loop {
            if self.0.is_empty() {
                // It is no text's end.
                return text;
            }
            match self.byte() ^ turn {
                0 if self.byte() ^ turn == ZERO[1] => text.push(0),
                0 => return text,
                byte => text.push(byte),
            }
        }
    }
}

/// A sort key in the making. Nothing is allocated unless it is long.
#[derive(Debug)]
pub(super) struct SortKeyWriter {
    short: [u8; INLINE],
    length: usize,
    /// Everything, once it has become too long.
    long: Vec<u8>,
}

impl Default for SortKeyWriter {
    fn default() -> Self {
        Self { short: [0; INLINE], length: 0, long: Vec::new() }
    }
}

impl SortKeyWriter {
    /// Adds the next part of the order.
    pub(super) fn part(&mut self, value: &Value, descending: bool) {
        if !descending {
            return encode(value, self);
        }
        let start = self.length;
        encode(value, self);
        let bytes =
            if self.long.is_empty() { &mut self.short[start..self.length] } else { &mut self.long[start..] };
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }

    /// Ends with the row's key. Nothing follows it, so its end needs no mark.
    pub(super) fn finish(mut self, key: &str) -> SortKey {
        let key_at = self.length;
        self.put(key.as_bytes());
        let packed = if self.long.is_empty() {
            let small = |number: usize| u8::try_from(number).expect("at most INLINE");
            Packed::Inline { length: small(self.length), key_at: small(key_at), bytes: self.short }
        } else {
            let key_at = u32::try_from(key_at).expect("a row is far below 4 GiB");
            Packed::Apart { key_at, bytes: self.long.into() }
        };
        SortKey(packed)
    }
}

/// Where bytes go.
trait Put {
    fn put(&mut self, bytes: &[u8]);
}

impl Put for SortKeyWriter {
    fn put(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if self.long.is_empty() && end <= INLINE {
            self.short[self.length..end].copy_from_slice(bytes);
        } else {
            if self.long.is_empty() {
                self.long.reserve(end.max(2 * INLINE));
                self.long.extend_from_slice(&self.short[..self.length]);
            }
            self.long.extend_from_slice(bytes);
        }
        self.length = end;
    }
}

const NULL: u8 = 0;
const PRESENT: u8 = 1;
/// Ends a text: below whatever a longer text may go on with.
const END: [u8; 2] = [0, 0];
/// Stands for a zero byte within a text.
const ZERO: [u8; 2] = [0, 0xff];

fn encode(value: &Value, out: &mut impl Put) {
    match value {
        Value::Null => out.put(&[NULL]),
        Value::Bool(value) => out.put(&[PRESENT, u8::from(*value)]),
        Value::Int(value) => encode_int(*value, out),
        Value::Timestamp(value) => encode_int(value.0, out),
        Value::Float(value) => {
            // Adding 0 makes -0.0 to 0.0.
            let bits = (value + 0.0).to_bits();
            encode_number(if bits >> 63 == 0 { bits ^ (1 << 63) } else { !bits }, out);
        }
        Value::Text(text) | Value::Json(text) => encode_bytes(text.as_bytes(), out),
        Value::Bytes(bytes) => encode_bytes(bytes, out),
    }
}

fn encode_int(value: i64, out: &mut impl Put) {
    encode_number(value.cast_unsigned() ^ (1 << 63), out);
}

/// Eight bytes that are ordered as the numbers are.
fn encode_number(ordered: u64, out: &mut impl Put) {
    let mut bytes = [PRESENT; 9];
    bytes[1..].copy_from_slice(&ordered.to_be_bytes());
    out.put(&bytes);
}

fn encode_bytes(mut bytes: &[u8], out: &mut impl Put) {
    out.put(&[PRESENT]);
    while let Some(zero) = memchr::memchr(0, bytes) {
        out.put(&bytes[..zero]);
        out.put(&ZERO);
        bytes = &bytes[zero + 1..];
    }
    out.put(bytes);
    out.put(&END);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(kind: u8) -> BoxedStrategy<Value> {
        let some = match kind {
            0 => any::<bool>().prop_map(Value::Bool).boxed(),
            1 => prop_oneof![any::<i64>(), -3..3_i64].prop_map(Value::Int).boxed(),
            2 => prop_oneof![any::<f64>().prop_filter("finite", |f| f.is_finite()), Just(0.0), Just(-0.0)]
                .prop_map(Value::Float)
                .boxed(),
            3 => prop_oneof![any::<String>(), "[a\\x00\\x01é]{0,4}"].prop_map(Value::Text).boxed(),
            _ => any::<i64>().prop_map(|at| Value::Timestamp(Micros(at))).boxed(),
        };
        prop_oneof![1 => Just(Value::Null), 5 => some].boxed()
    }

    fn compare(a: &Value, b: &Value) -> Ordering {
        match (a, b) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => Ordering::Less,
            (_, Value::Null) => Ordering::Greater,
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).expect("finite"),
            (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            other => panic!("two types: {other:?}"),
        }
    }

    /// Some are too long to stand in a sort key.
    fn key() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[a\\x00b]{0,3}", 1 => "[ab]{30,40}"]
    }

    fn two_rows() -> impl Strategy<Value = Vec<(u8, bool, Value, Value)>> {
        let part = (0..5_u8, any::<bool>())
            .prop_flat_map(|(kind, descending)| (Just(kind), Just(descending), value(kind), value(kind)));
        proptest::collection::vec(part, 0..4)
    }

    proptest! {
        #[test]
        fn bytes_are_ordered_as_the_values_are(
            parts in two_rows(),
            keys in (key(), key()),
        ) {
            let order: Vec<_> =
                parts.iter().map(|part| Order { column: "c".into(), descending: part.1 }).collect();
            let a = SortKey::new(&order, parts.iter().map(|part| &part.2), &keys.0);
            let b = SortKey::new(&order, parts.iter().map(|part| &part.3), &keys.1);
            let expected = parts
                .iter()
                .map(|(_, descending, a, b)| if *descending { compare(b, a) } else { compare(a, b) })
                .find(|ordering| *ordering != Ordering::Equal)
                .unwrap_or_else(|| keys.0.as_bytes().cmp(keys.1.as_bytes()));
            prop_assert_eq!(a.cmp(&b), expected);
            prop_assert!(a.head().cmp(&b.head()).then(expected) == expected);
            let mut back = a.parts();
            for (kind, descending, value, _) in &parts {
                let column_type = [
                    ColumnType::Bool,
                    ColumnType::Int,
                    ColumnType::Float,
                    ColumnType::Text,
                    ColumnType::Timestamp,
                ][usize::from(*kind)];
                prop_assert_eq!(&back.next(column_type, *descending), value);
            }
            prop_assert_eq!((a.key(), b.key()), (keys.0.as_bytes(), keys.1.as_bytes()));
            prop_assert_eq!(a == b, expected == Ordering::Equal);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..24), descending: bool) {
            for column_type in [ColumnType::Bool, ColumnType::Int, ColumnType::Float, ColumnType::Text, ColumnType::Bytes] {
                let mut parts = SortKeyParts(&bytes);
                for _ in 0..=bytes.len() {
                    parts.next(column_type, descending);
                }
                prop_assert!(parts.0.is_empty(), "each part takes at least a byte");
            }
        }
    }
}
