//! Steps of a window as frames.

use std::io::Write as _;

use super::frames::{Batch, BatchBuilder, Parts};
use super::shape::{Plan, RowText};
use super::token::{Gap, ViewMark};
use super::window::{Held, Step};
use crate::event::Revision;
use crate::tables::{write_integer, write_text};

const INFALLIBLE: &str = "writing to memory cannot fail";

/// Where a batch stands: what whoever has it is exact at, and the number of the batch behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) revision: Revision,
    pub(super) next: u64,
}

/// Indices of a row before and after; none where it was not, or is not.
type Places = (Option<usize>, Option<usize>);

/// In streamed mode rows have none.
const NO_PLACES: Places = (Some(0), Some(0));

/// What resumes behind a frame, if it is the last one of its batch.
type Resume<'a> = Option<(&'a ViewMark, At)>;

/// All frames of one commit. Only the last one says what resumes behind it: who has but some of them has none.
pub(super) fn steps(
    to: &mut BatchBuilder,
    plan: &Plan,
    mark: &ViewMark,
    at: At,
    steps: &[Step<RowText>],
) -> Batch {
    for (number, step) in steps.iter().enumerate() {
        let token = (number + 1 == steps.len()).then_some((mark, at));
        let (name, row, places) = match step {
            Step::Enter { to, row } => ("enter", row, (None, Some(*to))),
            Step::Leave { from, row } => ("leave", row, (Some(*from), None)),
            Step::Move { from, to, row } => ("move", row, (Some(*from), Some(*to))),
            Step::Update { at, row } => ("update", row, (Some(*at), Some(*at))),
        };
        to.frame_of_parts(name, |out| frame(out, name, plan, row, places, token));
    }
    to.finish_told(at.revision)
}

/// Everything anew: reset, the rows, ready.
pub(super) fn snapshot<'a>(
    plan: &Plan,
    mark: &ViewMark,
    at: At,
    rows: impl ExactSizeIterator<Item = &'a Held<RowText>>,
) -> Batch {
    let count = rows.len();
    let mut batch = BatchBuilder::default();
    batch.frame("reset", |out| {
        out.extend_from_slice(br#"{"op":"reset","old_index":0,"new_index":0,"cursor":{"values":null}}"#);
    });
    for (to, held) in rows.enumerate() {
        let (name, places) =
            if plan.is_streamed() { ("match", NO_PLACES) } else { ("enter", (None, Some(to))) };
        batch.frame_of_parts(name, |out| frame(out, name, plan, held, places, None));
    }
    batch.frame_of_parts("ready", |out| ready_frame(out, mark, at, count, false));
    batch.finish_told(at.revision)
}

/// The client has all that it missed.
pub(super) fn resumed(mark: &ViewMark, at: At, rows: usize) -> Batch {
    let mut batch = BatchBuilder::default();
    batch.frame_of_parts("ready", |out| ready_frame(out, mark, at, rows, true));
    batch.finish_told(at.revision)
}

/// The client cannot be told what it missed.
pub(super) fn gap(why: Gap) -> Batch {
    let mut batch = BatchBuilder::default();
    batch.frame("gap", |out| {
        write!(out, r#"{{"op":"gap","reason":"{}","detail":"{}"}}"#, why.reason(), why.detail())
            .expect(INFALLIBLE);
    });
    batch.finish(None, Revision(0))
}

/// Frames of streamed mode: how a row's membership changed.
pub(super) fn streamed(
    to: &mut BatchBuilder,
    plan: &Plan,
    mark: &ViewMark,
    at: At,
    changes: &[Membership],
) -> Batch {
    for (number, change) in changes.iter().enumerate() {
        let token = (number + 1 == changes.len()).then_some((mark, at));
        match change {
            Membership::Match(row) => {
                to.frame_of_parts("match", |out| frame(out, "match", plan, row, NO_PLACES, token));
            }
            Membership::Update(row) => {
                to.frame_of_parts("update", |out| frame(out, "update", plan, row, NO_PLACES, token));
            }
            Membership::Unmatch(row) => {
                to.frame_of_parts("unmatch", |out| unmatch(out, row, token));
            }
        }
    }
    to.finish_told(at.revision)
}

/// What a change means to a view in streamed mode.
#[derive(Debug)]
pub(super) enum Membership {
    Match(Held<RowText>),
    Update(Held<RowText>),
    Unmatch(Held<RowText>),
}

fn frame(
    out: &mut Parts<'_>,
    op: &str,
    plan: &Plan,
    held: &Held<RowText>,
    places: Places,
    token: Resume<'_>,
) {
    head(out.json, op, held);
    if op == "leave" {
        out.alone(held.row.clone());
    } else {
        out.json.extend_from_slice(held.row.json());
    }
    out.json.extend_from_slice(b",\"old_index\":");
    write_place(out.json, places.0);
    out.json.extend_from_slice(b",\"new_index\":");
    write_place(out.json, places.1);
    out.json.extend_from_slice(b",\"cursor\":{\"values\":[");
    plan.write_order(&held.at, out.json);
    write_key(out.json, held);
    out.json.extend_from_slice(b"]}");
    tail(out, token);
}

fn unmatch(out: &mut Parts<'_>, held: &Held<RowText>, token: Resume<'_>) {
    head(out.json, "unmatch", held);
    out.json.extend_from_slice(br#","old_index":0,"new_index":0,"cursor":{"values":null}"#);
    tail(out, token);
}

fn head(out: &mut Vec<u8>, op: &str, held: &Held<RowText>) {
    out.extend_from_slice(b"{\"op\":\"");
    out.extend_from_slice(op.as_bytes());
    out.extend_from_slice(b"\",\"agg_id\":");
    write_key(out, held);
    if held.row.version() > 0 {
        out.extend_from_slice(b",\"version\":");
        write_integer(out, held.row.version());
    }
}

fn write_key(out: &mut Vec<u8>, held: &Held<RowText>) {
    // Keys are text before they are bytes of a sort key.
    write_text(out, std::str::from_utf8(held.at.key()).unwrap_or_default());
}

fn write_place(out: &mut Vec<u8>, place: Option<usize>) {
    match place {
        Some(place) => write_integer(out, place),
        None => out.extend_from_slice(b"-1"),
    }
}

fn tail(out: &mut Parts<'_>, token: Resume<'_>) {
    write_token(out, token);
    out.json.push(b'}');
}

fn write_token(out: &mut Parts<'_>, token: Resume<'_>) {
    let Some((mark, at)) = token else { return };
    out.json.extend_from_slice(b",\"stream_id\":\"");
    out.token(|json| mark.write(at.revision, at.next, json));
    out.json.push(b'"');
}

fn ready_frame(out: &mut Parts<'_>, mark: &ViewMark, at: At, rows: usize, resumed: bool) {
    write!(out.json, "{{\"op\":\"ready\",\"revision\":{},\"rows\":{rows},\"resumed\":{resumed}", at.revision)
        .expect(INFALLIBLE);
    tail(out, Some((mark, at)));
}
