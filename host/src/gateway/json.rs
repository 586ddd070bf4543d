//! Events and rows as JSON text, written by hand: payloads and integers pass
//! through as they are, and no tree is built for what is only copied.

use std::io::Write;

use crate::event::Event;
use crate::tables::{Row, TableSchema, write_value};
pub(super) use crate::tables::{write_number, write_text};

const INFALLIBLE: &str = "writing to memory cannot fail";

/// Appends `"epoch.position"`.
pub(super) fn write_cursor(out: &mut Vec<u8>, epoch: &str, position: u64) {
    out.push(b'"');
    out.extend_from_slice(epoch.as_bytes());
    out.push(b'.');
    write_number(out, position);
    out.push(b'"');
}

/// Appends an event as one line: line breaks between the tokens of a payload
/// become spaces (JSON has none inside of strings), nothing else is changed.
pub(super) fn write_event(out: &mut Vec<u8>, event: &Event<'_>, epoch: &str) {
    out.extend_from_slice(b"{\"position\":");
    write_cursor(out, epoch, event.position.0);
    for (name, text) in [
        ("id", event.id),
        ("aggregate", event.aggregate),
        ("agg_id", event.agg_id),
        ("type", event.event_type),
        ("scope", event.scope),
        ("kind", event.kind),
        ("cursor", event.cursor),
        ("traceparent", event.traceparent),
    ] {
        if !text.is_empty() {
            write!(out, ",\"{name}\":").expect(INFALLIBLE);
            write_text(out, text);
        }
    }
    write!(out, ",\"version\":{},\"at\":", event.version).expect(INFALLIBLE);
    write!(out, "\"{}\"", event.at).expect(INFALLIBLE);
    write!(out, ",\"schema_version\":{}", event.schema_version).expect(INFALLIBLE);
    if event.depth > 0 {
        write!(out, ",\"depth\":{}", event.depth).expect(INFALLIBLE);
    }
    out.extend_from_slice(b",\"payload\":");
    let start = out.len();
    out.extend_from_slice(event.payload);
    for byte in &mut out[start..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    out.push(b'}');
}

/// Appends a row: `key`, `version`, `revision`, and `values` by column.
pub(super) fn write_row(out: &mut Vec<u8>, row: &Row, table: &TableSchema) {
    out.extend_from_slice(b"{\"key\":");
    write_text(out, &row.key);
    write!(out, ",\"version\":{},\"revision\":{},\"values\":{{", row.version, row.revision)
        .expect(INFALLIBLE);
    for (index, (column, value)) in table.columns.iter().zip(&row.cells).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, &column.name);
        out.push(b':');
        write_value(out, value);
    }
    out.extend_from_slice(b"}}");
}
