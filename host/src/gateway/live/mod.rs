//! Live queries on the wire: server-sent events, and WebSocket with one or many subscriptions.
//!
//! Promises: what a subscriber is sent is what its subscription gave, in order and whole; everything that is ready
//! goes out in one write; nothing is pulled from a subscription that could not be written, so that a slow client
//! costs what it costs its subscription and no more; every end that the host decides on has a last frame with a code.
//!
//! `shell`, `sse`, `socket`, `pulse` and `commands` are the transport: they know a [`Backend`] and two small sinks, and no web
//! framework. `query` and `inprocess` bind it to the tables of this host, `http`, `ws` and `framed` (over
//! `burst` and `frames`) to its edge.

mod burst;
mod commands;
mod credential;
mod framed;
mod frames;
pub(super) mod http;
mod inprocess;
mod meter;
pub(super) mod pulse;
mod query;
mod shell;
mod socket;
mod sse;
pub(super) mod ws;

pub use commands::{Command, Request};
pub(super) use credential::until_ended;
pub use framed::Framed;
pub use frames::{Frames, MessageKind};
pub use inprocess::InProcess;
pub use shell::{
    Anchor, Ask, Authenticate, Backend, Broken, End, Fault, Incoming, Rows, SseOptions, SseSink, Sub, Text,
    Until, WsConn, WsOptions, WsProtocol, until_cancelled,
};
pub(super) use shell::{cause, millis};
pub use socket::serve_ws;
pub use sse::serve_sse;
