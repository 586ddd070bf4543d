//! Sort keys: bytes whose order is the order of a query.
//!
//! The store orders rows with its own indexes; windows order them by these bytes, and both must agree (the
//! conformance suite of tables compares them). The order: nulls first, false before true, integers exactly,
//! floats by number (0.0 and -0.0 are the same), times by instant, text by its UTF-8 bytes whatever the
//! language. A descending part has all of its bits turned over, so that nulls come last. The row's key is
//! the last part, ascending, so the order is total.

use crate::tables::{Order, Value};

/// Where a row stands in the order of a query.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SortKey(Box<[u8]>);

impl SortKey {
    /// Of a row's values for each part of the order, and its key.
    pub(super) fn new<'a>(order: &[Order], values: impl IntoIterator<Item = &'a Value>, key: &str) -> Self {
        let mut out = Vec::with_capacity(16 * order.len() + key.len() + END.len());
        for (part, value) in order.iter().zip(values) {
            let start = out.len();
            encode(value, &mut out);
            if part.descending {
                out[start..].iter_mut().for_each(|byte| *byte = !*byte);
            }
        }
        encode_bytes(key.as_bytes(), &mut out);
        Self(out.into())
    }
}

const NULL: u8 = 0;
const PRESENT: u8 = 1;
/// Ends a text: below whatever a longer text may go on with.
const END: [u8; 2] = [0, 0];
/// Stands for a zero byte within a text.
const ZERO: [u8; 2] = [0, 0xff];

/// One value alone: equal values, and only those, have equal bytes.
pub(super) fn encode_value(value: &Value, out: &mut Vec<u8>) {
    encode(value, out);
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    if *value == Value::Null {
        out.push(NULL);
        return;
    }
    out.push(PRESENT);
    match value {
        Value::Null => {}
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Int(value) => encode_int(*value, out),
        Value::Timestamp(value) => encode_int(value.0, out),
        Value::Float(value) => {
            // Adding 0 makes -0.0 to 0.0.
            let bits = (value + 0.0).to_bits();
            let ordered = if bits >> 63 == 0 { bits ^ (1 << 63) } else { !bits };
            out.extend_from_slice(&ordered.to_be_bytes());
        }
        Value::Text(text) | Value::Json(text) => encode_bytes(text.as_bytes(), out),
        Value::Bytes(bytes) => encode_bytes(bytes, out),
    }
}

fn encode_int(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&(value.cast_unsigned() ^ (1 << 63)).to_be_bytes());
}

fn encode_bytes(mut bytes: &[u8], out: &mut Vec<u8>) {
    while let Some(zero) = bytes.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&bytes[..zero]);
        out.extend_from_slice(&ZERO);
        bytes = &bytes[zero + 1..];
    }
    out.extend_from_slice(bytes);
    out.extend_from_slice(&END);
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::event::Micros;

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

    fn two_rows() -> impl Strategy<Value = Vec<(u8, bool, Value, Value)>> {
        let part = (0..5_u8, any::<bool>())
            .prop_flat_map(|(kind, descending)| (Just(kind), Just(descending), value(kind), value(kind)));
        proptest::collection::vec(part, 0..4)
    }

    proptest! {
        #[test]
        fn bytes_are_ordered_as_the_values_are(
            parts in two_rows(),
            keys in ("[a\\x00b]{0,3}", "[a\\x00b]{0,3}"),
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
        }
    }
}
