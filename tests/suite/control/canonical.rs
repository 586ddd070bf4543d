//! What is signed depends on what an event says and on nothing else.

use millrace::control::ControlEvent;
use millrace_tests::control_events::{NOW, release_key, trust};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{GOLDEN, code_of, golden, parsed};

/// JSON that events may hold, with names that are ordered differently as bytes and as UTF-16.
fn content() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
        "[a-z\"\\\\/\u{0}-\u{1f}é\u{e000}-\u{e010}\u{ffff}\u{10000}-\u{10010}]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c\n\u{e000}\u{10000}]{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Writes a value in another way: members in another order, whitespace, and escapes where none are needed.
fn spelt(value: &Value, dice: &mut dyn FnMut(usize) -> usize, out: &mut String) {
    let space = |dice: &mut dyn FnMut(usize) -> usize| [" ", "", "\n", "\t\r\n "][dice(4)];
    let text = |text: &str, dice: &mut dyn FnMut(usize) -> usize, out: &mut String| {
        out.push('"');
        for c in text.chars() {
            let mut units = [0; 2];
            if dice(3) == 0 || c.is_control() || matches!(c, '"' | '\\') {
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&if dice(2) == 0 {
                        format!("\\u{unit:04x}")
                    } else {
                        format!("\\u{unit:04X}")
                    });
                }
            } else {
                out.push(c);
            }
        }
        out.push('"');
    };
    out.push_str(space(dice));
    match value {
        Value::Object(members) => {
            let mut left: Vec<_> = members.iter().collect();
            out.push('{');
            while !left.is_empty() {
                let (name, value) = left.swap_remove(dice(left.len()));
                out.push_str(space(dice));
                text(name, dice, out);
                out.push_str(space(dice));
                out.push(':');
                spelt(value, dice, out);
                out.push_str(if left.is_empty() { "" } else { "," });
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                spelt(value, dice, out);
            }
            out.push(']');
        }
        Value::String(inner) => text(inner, dice, out),
        scalar => out.push_str(&scalar.to_string()),
    }
    out.push_str(space(dice));
}

fn with(kind: &str, more: Value) -> Value {
    let mut json: Value = serde_json::from_str(golden(kind)).unwrap();
    json["more"] = more;
    json
}

#[test]
fn names_are_in_the_order_of_their_utf_16() {
    let more = json!({ "\u{fb33}": 1, "\u{1f600}": 2, "é": 3, "a": 4, "\r": 5, "": 6, "1": 7 });
    let event = parsed(&with("plugin.removed", more).to_string());
    let text = String::from_utf8(event.signed_bytes()).unwrap();
    let expected = "\"more\":{\"\":6,\"\\r\":5,\"1\":7,\"a\":4,\"é\":3,\"\u{1f600}\":2,\"\u{fb33}\":1}";
    assert!(text.contains(expected), "{text}");
    assert!(text.starts_with("{\"actor\":\"ops@example.com\",\"base_revision\":7,\"desired\":"), "{text}");
    assert!(!text.contains("signatures"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_signed_does_not_depend_on_how_it_is_spelt(
        more in content(),
        rolls in prop::collection::vec(any::<u16>(), 1..200),
        index in 0..GOLDEN.len(),
    ) {
        let json = with(GOLDEN[index].0, more);
        let (mut turn, mut text) = (0, String::new());
        let mut dice = |sides: usize| {
            turn += 1;
            usize::from(rolls[turn % rolls.len()]) % sides
        };
        spelt(&json, &mut dice, &mut text);
        let (one, other) = (parsed(&json.to_string()), parsed(&text));
        prop_assert_eq!(one.signed_bytes(), other.signed_bytes());
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(&one, &other);
        // What is canonical is JSON, and its own canonical form.
        let again: Value = serde_json::from_slice(&one.signed_bytes()).unwrap();
        prop_assert_eq!(parsed(&again.to_string()).signed_bytes(), one.signed_bytes());
    }

    #[test]
    fn a_changed_byte_breaks_the_signature(
        more in content(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let event = parsed(&with("plugin.removed", more).to_string()).signed_by(&release_key()).unwrap();
        prop_assert!(trust().check_event(&event, NOW).is_ok());
        let before: Value = serde_json::from_slice(&event.signed_bytes()).unwrap();
        let mut bytes = event.signed_bytes();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        // What is not UTF-8 or JSON any more never gets as far.
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        let Ok(Value::Object(mut after)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        prop_assume!(Value::Object(after.clone()) != before);
        after.insert("signatures".into(), serde_json::to_value(event.signatures()).unwrap());
        let Ok(changed) = ControlEvent::parse(&Value::Object(after).to_string()) else { return Ok(()) };
        prop_assert!(trust().check_event(&changed, NOW).is_err());
        // Whatever became of its times.
        prop_assert_eq!(code_of(trust().check_kept(&changed)), "control_event_untrusted");
    }

    #[test]
    fn reading_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = ControlEvent::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn reading_a_damaged_event_never_panics_and_never_believes_it(
        index in 0..GOLDEN.len(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let whole = parsed(GOLDEN[index].1);
        let mut bytes = GOLDEN[index].1.as_bytes().to_vec();
        for (place, byte) in hits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(event) = ControlEvent::parse(&String::from_utf8_lossy(&bytes))
            && trust().check_event(&event, NOW).is_ok()
        {
            prop_assert_eq!(event.signed_bytes(), whole.signed_bytes());
        }
    }
}
