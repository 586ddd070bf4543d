//! Entries of a memory service, as many as somebody wants, whose turns end with entries: by no clock, and at no tick.
//!
//! Every other entry is of no conversation. The tracer counts those it passes over, so that one which is handled twice
//! shows; what is said in a turn it knows again by its id.

use millrace::event::Micros;
use serde_json::json;

/// The first one is at the beginning of 2013, the others follow second by second.
const BEGIN: Micros = Micros(1_356_998_400_000_000);
const SECOND: i64 = 1_000_000;
/// Conversations at a time.
const BESIDE: u64 = 10;
/// What each of them has of entries before the next ones begin.
const EACH: u64 = 6;

/// One entry as a line.
pub fn line(number: u64) -> String {
    let round = number % (BESIDE * EACH) / BESIDE;
    let conversation = number / (BESIDE * EACH) * BESIDE + number % BESIDE;
    let spoken = match round {
        0 => Some(("history", "USER")),
        2 => Some(("context", "USER")),
        4 => Some(("history", "AI")),
        _ => None,
    };
    let at = Micros(BEGIN.0 + i64::try_from(number).expect("so many are never made") * SECOND).to_string();
    let mut payload = json!({ "id": format!("e{number}"), "contentType": "history", "createdAt": at });
    if let Some((channel, role)) = spoken {
        payload["conversationId"] = format!("c{conversation}").into();
        payload["channel"] = channel.into();
        payload["content"] = json!([{ "role": role, "text": format!("words {number}") }]);
    }
    // Without a cursor its place in the log would be in rows, and that is another one in every run.
    let event = json!({
        "aggregate": "entry", "agg_id": format!("e{number}"), "version": 1, "type": "entry.created", "at": at,
        "cursor": format!("c{number}"), "payload": payload,
    });
    event.to_string()
}
