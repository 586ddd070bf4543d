//! The shapes of rooms on the wire.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::presence::{Member, RoomId, Roster};

/// What somebody joins with.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct JoinRequest {
    /// Any JSON, up to 4096 bytes. Left out, it stays as it is; that of a new member is null then.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    pub(super) state: Option<Box<RawValue>>,
    /// How long the member stays if nothing more is heard: 1000 to 3600000, or else 30000.
    pub(super) ttl_ms: Option<u64>,
}

/// A state of `null` is a state.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// What came of a join.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct JoinedView {
    pub(super) member: String,
    /// `joined`, `updated`, or `stays`.
    pub(super) outcome: &'static str,
    /// It stays for so long from now.
    pub(super) ttl_ms: u64,
    /// With `joined`, where the credential may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) roster: Option<RosterView>,
}

/// Who is in a room.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct RosterView {
    room: String,
    /// Everything up to here is in it. It grows with every change; there may be steps of more than one.
    sequence: u64,
    members: Vec<MemberView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct MemberView {
    pub(super) member: String,
    pub(super) joined_at: String,
    #[schema(value_type = Object)]
    pub(super) state: Box<RawValue>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct SaidView {
    /// Where it is in the order of what happens in the room.
    pub(super) sequence: u64,
}

impl RosterView {
    pub(super) fn of(room: &RoomId, roster: &Roster) -> Self {
        let members = roster.members.iter().map(MemberView::of).collect();
        Self { room: room.name.as_str().to_owned(), sequence: roster.sequence, members }
    }
}

impl MemberView {
    pub(super) fn of(member: &Member) -> Self {
        let Member { name, joined_at, state } = member;
        let (member, joined_at) = (name.as_str().to_owned(), joined_at.to_string());
        Self { member, joined_at, state: opaque(state) }
    }
}

/// JSON as somebody wrote it, on one line: line breaks between its tokens become spaces (JSON has none inside of strings).
/// What is no JSON came in past the edge, and is shown as null.
pub(super) fn opaque(bytes: &[u8]) -> Box<RawValue> {
    let line = bytes.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
    String::from_utf8(line)
        .ok()
        .and_then(|text| RawValue::from_string(text).ok())
        .unwrap_or_else(|| RawValue::NULL.to_owned())
}

pub(super) fn json<T: Serialize>(code: StatusCode, view: &T) -> Response {
    (code, [(header::CACHE_CONTROL, "no-store")], axum::Json(view)).into_response()
}
