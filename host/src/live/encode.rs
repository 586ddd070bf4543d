//! Steps of a window as frames.

use std::io::Write as _;
use std::sync::Arc;

use super::frames::{Batch, BatchBuilder};
use super::shape::{Plan, Shown};
use super::token::{Gap, ViewMark};
use super::window::{Held, Step};
use crate::event::Revision;
use crate::tables::{Row, write_number, write_text, write_value};

const INFALLIBLE: &str = "writing to memory cannot fail";

/// Where a batch stands: what whoever has it is exact at, and the number of the batch behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) revision: Revision,
    pub(super) next: u64,
}

impl At {
    fn token(self, mark: &ViewMark) -> String {
        mark.token(self.revision, self.next)
    }
}

/// Indices of a row before and after; -1 where it was not, or is not.
type Places = (i64, i64);

/// All frames of one commit.
pub(super) fn steps(plan: &Plan, mark: &ViewMark, at: At, steps: &[Step<Arc<Shown>>]) -> Batch {
    let token = at.token(mark);
    let mut batch = BatchBuilder::default();
    for step in steps {
        let (name, row, places) = match step {
            Step::Enter { to, row } => ("enter", row, (-1, index(*to))),
            Step::Leave { from, row } => ("leave", row, (index(*from), -1)),
            Step::Move { from, to, row } => ("move", row, (index(*from), index(*to))),
            Step::Update { at, row } => ("update", row, (index(*at), index(*at))),
        };
        batch.frame(name, |out| frame(out, name, plan, &row.row, places, Some(&token)));
    }
    batch.finish(Some(token), at.revision)
}

/// Everything anew: reset, the rows, ready.
pub(super) fn snapshot(plan: &Plan, mark: &ViewMark, at: At, rows: &[Held<Arc<Shown>>]) -> Batch {
    let mut batch = BatchBuilder::default();
    batch.frame("reset", |out| {
        out.extend_from_slice(br#"{"op":"reset","old_index":0,"new_index":0,"cursor":{"values":null}}"#);
    });
    for (to, held) in rows.iter().enumerate() {
        let (name, places) = if plan.is_streamed() { ("match", (0, 0)) } else { ("enter", (-1, index(to))) };
        batch.frame(name, |out| frame(out, name, plan, &held.row, places, None));
    }
    let token = at.token(mark);
    batch.frame("ready", |out| ready_frame(out, &token, at.revision, rows.len(), false));
    batch.finish(Some(token), at.revision)
}

/// The client has all that it missed.
pub(super) fn resumed(mark: &ViewMark, at: At, rows: usize) -> Batch {
    let token = at.token(mark);
    let mut batch = BatchBuilder::default();
    batch.frame("ready", |out| ready_frame(out, &token, at.revision, rows, true));
    batch.finish(Some(token), at.revision)
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
pub(super) fn streamed(plan: &Plan, mark: &ViewMark, at: At, changes: &[Membership]) -> Batch {
    let token = at.token(mark);
    let mut batch = BatchBuilder::default();
    for change in changes {
        match change {
            Membership::Match(row) => {
                batch.frame("match", |out| frame(out, "match", plan, row, (0, 0), Some(&token)));
            }
            Membership::Update(row) => {
                batch.frame("update", |out| frame(out, "update", plan, row, (0, 0), Some(&token)));
            }
            Membership::Unmatch { key, version } => {
                batch.frame("unmatch", |out| unmatch(out, key, *version, &token));
            }
        }
    }
    batch.finish(Some(token), at.revision)
}

/// What a change means to a view in streamed mode.
#[derive(Debug)]
pub(super) enum Membership {
    Match(Arc<Shown>),
    Update(Arc<Shown>),
    Unmatch { key: String, version: u64 },
}

fn index(index: usize) -> i64 {
    i64::try_from(index).expect("a window is small")
}

fn frame(out: &mut Vec<u8>, op: &str, plan: &Plan, shown: &Shown, places: Places, token: Option<&str>) {
    head(out, op, &shown.row.key, shown.row.version);
    out.extend_from_slice(b",\"row\":");
    match plan.shown() {
        None => out.extend_from_slice(shown.json.get_or_init(|| whole_row(plan, &shown.row))),
        Some(places) => write_row(out, plan, &shown.row, places.iter().copied()),
    }
    write!(out, ",\"old_index\":{},\"new_index\":{},\"cursor\":{{\"values\":[", places.0, places.1)
        .expect(INFALLIBLE);
    plan.each_order_value(&shown.row, |value| {
        write_value(out, value);
        out.push(b',');
    });
    write_text(out, &shown.row.key);
    out.extend_from_slice(b"]}");
    tail(out, token);
}

fn unmatch(out: &mut Vec<u8>, key: &str, version: u64, token: &str) {
    head(out, "unmatch", key, version);
    out.extend_from_slice(br#","old_index":0,"new_index":0,"cursor":{"values":null}"#);
    tail(out, Some(token));
}

fn head(out: &mut Vec<u8>, op: &str, key: &str, version: u64) {
    write!(out, "{{\"op\":\"{op}\",\"agg_id\":").expect(INFALLIBLE);
    write_text(out, key);
    if version > 0 {
        out.extend_from_slice(b",\"version\":");
        write_number(out, version);
    }
}

fn tail(out: &mut Vec<u8>, token: Option<&str>) {
    if let Some(token) = token {
        write!(out, ",\"stream_id\":\"{token}\"").expect(INFALLIBLE);
    }
    out.push(b'}');
}

fn ready_frame(out: &mut Vec<u8>, token: &str, revision: Revision, rows: usize, resumed: bool) {
    write!(
        out,
        "{{\"op\":\"ready\",\"revision\":{revision},\"rows\":{rows},\"resumed\":{resumed},\"stream_id\":\"{token}\"}}"
    )
    .expect(INFALLIBLE);
}

fn whole_row(plan: &Plan, row: &Row) -> Box<[u8]> {
    let mut out = Vec::with_capacity(256);
    write_row(&mut out, plan, row, 0..plan.schema.columns.len());
    out.into()
}

fn write_row(out: &mut Vec<u8>, plan: &Plan, row: &Row, places: impl Iterator<Item = usize>) {
    out.extend_from_slice(b"{\"key\":");
    write_text(out, &row.key);
    for place in places {
        let (Some(column), Some(value)) = (plan.schema.columns.get(place), row.cells.get(place)) else {
            continue;
        };
        out.push(b',');
        write_text(out, &column.name);
        out.push(b':');
        // JSON of a row may have line breaks between its tokens, and a frame is one line.
        let start = out.len();
        write_value(out, value);
        for byte in &mut out[start..] {
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    out.push(b'}');
}
