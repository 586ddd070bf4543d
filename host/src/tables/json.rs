//! Values as JSON text, written by hand: integers keep all their digits, and no tree is built.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Value;

const INFALLIBLE: &str = "writing to memory cannot fail";

/// Appends a JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect(INFALLIBLE);
    }
}

/// Whether the bytes stand for themselves in a JSON string. Looks at many at once.
fn is_plain(bytes: &[u8]) -> bool {
    let special = |b: &u8| u8::from((*b < 0x20) | (*b == b'"') | (*b == b'\\'));
    bytes.chunks(32).all(|chunk| chunk.iter().fold(0, |any, byte| any | special(byte)) == 0)
}

/// Appends an integer.
pub fn write_integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

pub fn write_number(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    write!(out, "{number}").expect(INFALLIBLE);
}

/// Appends a value: times are RFC 3339, bytes are base64, JSON is as it was written.
pub fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(value) => write_integer(out, *value),
        // The shortest text that reads back as the same float.
        Value::Float(value) => serde_json::to_writer(out, value).expect(INFALLIBLE),
        Value::Text(text) => write_text(out, text),
        Value::Bytes(bytes) => {
            out.push(b'"');
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.push(b'"');
        }
        Value::Json(text) => out.extend_from_slice(text.as_bytes()),
        Value::Timestamp(time) => write!(out, "\"{time}\"").expect(INFALLIBLE),
    }
}
