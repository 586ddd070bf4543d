//! A result as JSON, for people and for files that say what is expected.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value as Json, json};

use super::model::Folded;
use crate::tables::{Cells, Value, write_value};

impl Folded {
    /// Rows by table and in the order of their keys, what was emitted and appended, events that could not be handled,
    /// and the state. JSON comes as it is where it says the same when it is read and written again; where a number
    /// would lose digits, as text.
    pub fn to_json(&self) -> Json {
        let mut rows = Map::new();
        for table in self.tables() {
            rows.insert(table.name.clone(), Json::Array(Vec::new()));
        }
        for ((table, key), row) in &self.rows {
            let table = &self.tables()[*table];
            let Some(cells) = &row.cells else { continue };
            let mut fields = Map::new();
            fields.insert("key".into(), key.as_str().into());
            fields.insert("version".into(), row.version.into());
            for (column, cell) in table.columns.iter().zip(Cells::new(cells)) {
                fields.insert(column.name.clone(), value(&cell.map_or(Value::Null, Value::from)));
            }
            if let Some(Json::Array(list)) = rows.get_mut(&table.name) {
                list.push(Json::Object(fields));
            }
        }
        json!({
            "rows": rows,
            "emitted": self.emitted.iter().map(emitted).collect::<Vec<_>>(),
            "appended": self.appended.iter().map(appended).collect::<Vec<_>>(),
            "letters": self.letters.iter().map(|letter| json!({
                "event": letter.position, "reason": letter.reason, "message": first_line(&letter.message),
            })).collect::<Vec<_>>(),
            "state": self.state.as_ref().map(|saved| json!({
                "content_type": saved.content_type, "value": bytes(&saved.state),
            })),
            "keyed": self.keyed.iter().map(|(key, entry)| json!({
                "key": plain(key), "value": bytes(&entry.value),
                "expires_at": entry.expires_at.map(|at| at.to_string()),
            })).collect::<Vec<_>>(),
        })
    }
}

fn emitted(event: &super::Emitted) -> Json {
    let mut fields = json!({
        "type": event.event_type,
        "aggregate": event.aggregate,
        "agg_id": event.agg_id,
        "version": event.version,
        "at": event.at.to_string(),
        "payload": bytes(&event.payload),
    });
    if !event.id.is_empty() {
        fields["id"] = event.id.as_str().into();
    }
    if event.schema_version != 1 {
        fields["schema_version"] = event.schema_version.into();
    }
    fields
}

fn appended(entry: &super::Appended) -> Json {
    let mut fields = json!({
        "process": entry.process,
        "channel": entry.channel,
        "type": entry.entry_type,
    });
    if let Some(number) = entry.in_reply_to {
        fields["in_reply_to"] = number.into();
    }
    if let Some(error) = &entry.error {
        fields["error"] = error.as_str().into();
    }
    if let Some(payload) = &entry.payload {
        fields["payload"] = plain(payload);
    }
    fields
}

/// A value of a row as text: JSON, as queries answer it.
pub(super) fn text(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(&mut out, value);
    out
}

fn value(value: &Value) -> Json {
    match value {
        Value::Json(text) => bytes(text.as_bytes()),
        Value::Float(float) => Number::from_f64(*float).map_or(Json::Null, Json::Number),
        // What is written is JSON, and without a float every number is an integer of 64 bits.
        other => serde_json::from_slice(&text(other)).unwrap_or(Json::Null),
    }
}

/// JSON as it is, text as text, and anything else in base64.
fn bytes(bytes: &[u8]) -> Json {
    match serde_json::from_slice::<Json>(bytes) {
        Ok(json) if keeps_digits(bytes) => json,
        _ => plain(bytes),
    }
}

fn plain(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Whether every number in a JSON text is an integer of 64 bits or one that a float keeps.
fn keeps_digits(json: &[u8]) -> bool {
    let (mut at, mut in_text) = (0, false);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => at += 1,
            b'-' | b'0'..=b'9' if !in_text => {
                let rest = &json[at..];
                let part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = rest.iter().position(|byte| !part(byte)).unwrap_or(rest.len());
                if !keeps(&rest[..length]) {
                    return false;
                }
                at += length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    true
}

fn keeps(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    if text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok() {
        return true;
    }
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    // A double keeps any 15 digits, while its exponent lasts.
    let Ok(float) = text.parse::<f64>() else { return false };
    float.is_finite() && (digits <= 15 || float.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_its_digits_or_is_shown_as_text() {
        assert_eq!(bytes(br#"{"n":9007199254740993}"#), json!({"n": 9_007_199_254_740_993_i64}));
        assert_eq!(bytes(b"18446744073709551615"), json!(u64::MAX));
        for lossy in ["18446744073709551616", "[0.12345678901234567]", r#"{"a":"1","n":1e999}"#] {
            assert_eq!(bytes(lossy.as_bytes()), json!(lossy), "{lossy}");
        }
        assert_eq!(bytes(br#"{"\"9\\":"0.12345678901234567"}"#), json!({"\"9\\": "0.12345678901234567"}));
        assert_eq!(bytes(b"1.5"), json!(1.5));
        assert_eq!(bytes(b"0.30000000000000004"), json!(0.1 + 0.2));
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        assert_eq!(bytes(&[0xff, 0]), json!({"base64": "/wA="}));
        assert_eq!(bytes(b"not json"), json!("not json"));
    }
}
