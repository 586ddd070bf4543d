//! Where two JSON values differ, a line a place.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::limits::TRIAL_VALUE_CHARS_MAX;

/// Each place where `found` is not what is expected. Lists of things with a `key` are compared by it, so that one
/// that is missing does not make all behind it differ.
pub(super) fn lines(expected: &Value, found: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", Some(expected), Some(found), &mut lines);
    lines
}

fn compare(path: &str, expected: Option<&Value>, found: Option<&Value>, lines: &mut Vec<String>) {
    match (expected, found) {
        (Some(Value::Object(one)), Some(Value::Object(other))) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&below, one.get(name), other.get(name), lines);
            }
        }
        (Some(Value::Array(one)), Some(Value::Array(other))) => match (by_key(one), by_key(other)) {
            (Some(one), Some(other)) => {
                let keys: BTreeSet<&str> = one.iter().chain(&other).map(|(key, _)| *key).collect();
                let of = |list: &[(&str, &Value)], key: &str| list.iter().position(|(own, _)| *own == key);
                for key in keys {
                    let (one, other) =
                        (of(&one, key).map(|at| one[at].1), of(&other, key).map(|at| other[at].1));
                    compare(&format!("{path}[{key}]"), one, other, lines);
                }
            }
            _ => {
                for index in 0..one.len().max(other.len()) {
                    compare(&format!("{path}[{index}]"), one.get(index), other.get(index), lines);
                }
            }
        },
        (one, other) if one == other => {}
        (one, other) => lines.push(format!("{path}: expected {}, found {}", shown(one), shown(other))),
    }
}

/// The list by its members' keys; none where one has none, or two have the same.
fn by_key(list: &[Value]) -> Option<Vec<(&str, &Value)>> {
    let keyed: Vec<(&str, &Value)> =
        list.iter().map(|value| Some((value.get("key")?.as_str()?, value))).collect::<Option<_>>()?;
    let keys: BTreeSet<&str> = keyed.iter().map(|(key, _)| *key).collect();
    (keys.len() == keyed.len()).then_some(keyed)
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".into() };
    let text = value.to_string();
    match text.char_indices().nth(TRIAL_VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_row_is_one_line() {
        let expected =
            json!({"rows": {"t": [{"key": "a", "n": 1}, {"key": "b", "n": 2}, {"key": "c", "n": 3}]}});
        let found = json!({"rows": {"t": [{"key": "b", "n": 2}, {"key": "c", "n": 4}]}});
        let lines = lines(&expected, &found);
        assert_eq!(
            lines,
            [r#"rows.t[a]: expected {"key":"a","n":1}, found nothing"#, "rows.t[c].n: expected 3, found 4"]
        );
    }

    #[test]
    fn lists_without_keys_are_compared_in_order() {
        assert_eq!(
            lines(&json!([1, 2]), &json!([1, 3, 4])),
            ["[1]: expected 2, found 3", "[2]: expected nothing, found 4"]
        );
        assert!(lines(&json!({"a": [null]}), &json!({"a": [null]})).is_empty());
    }
}
