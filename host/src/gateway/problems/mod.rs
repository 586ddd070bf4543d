//! Every error of the edge, in one table: code, status, title, fix, blame.

mod artifacts;
mod backends;
mod callers;
mod channel_sockets;
mod channels;
mod client_checkpoints;
mod control;
mod events;
mod groups;
mod parts;
mod plugins;
mod presence;
mod rebuilds;
mod requests;
mod rollouts;
mod sources;
mod storage;
mod streams;
mod tables;

use self::parts::{count, joined};
use crate::error::Blame;

/// One kind of problem.
#[derive(Clone, Copy, Debug)]
pub struct ProblemKind {
    /// Stable, for programs.
    pub code: &'static str,
    pub status: u16,
    /// What is wrong, whatever the values.
    pub title: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    pub blame: Blame,
}

pub(super) const fn caller(
    status: u16,
    code: &'static str,
    title: &'static str,
    fix: &'static str,
) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Caller }
}

pub(super) const fn guest(
    status: u16,
    code: &'static str,
    title: &'static str,
    fix: &'static str,
) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Guest }
}

pub(super) const fn host(
    status: u16,
    code: &'static str,
    title: &'static str,
    fix: &'static str,
) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Host }
}

/// Every kind of problem that the edge can answer, or name as the reason of what it shows. `/docs` lists them from here.
pub const PROBLEMS: &[ProblemKind] = &joined::<{ count(&PARTS) }>(&PARTS);

const PARTS: [&[ProblemKind]; 18] = [
    requests::REQUESTS,
    callers::CALLERS,
    events::EVENTS,
    tables::TABLES,
    plugins::PLUGINS,
    storage::STORAGE,
    streams::STREAMS,
    groups::GROUPS,
    presence::PRESENCE,
    channels::CHANNELS,
    channel_sockets::CHANNEL_SOCKETS,
    backends::BACKENDS,
    artifacts::ARTIFACTS,
    rebuilds::REBUILDS,
    rollouts::ROLLOUTS,
    control::CONTROL,
    sources::SOURCES,
    client_checkpoints::CLIENT_CHECKPOINTS,
];
