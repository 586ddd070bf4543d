//! Events and checkpoints for clients that speak `memory.v1` over gRPC, on a port of its own: HTTP/2, with TLS if asked.
//!
//! Promises: a call is bounded in size, number and time like any request of the edge; the tenant comes from the credential;
//! a stream shows what is in the log and nothing else, each event with the cursor behind it; who is slow holds up nobody and
//! loses nothing.
//!
//! `serve` has the connections, `preface` how they begin, `calls` the methods, `bodies` what is sent, `events` the streams,
//! `queue` what is ahead of their clients, `filters` what they leave out, `places` how many one caller may have, `refusal` what
//! errors become, `taking` whether a client takes what it is answered.

mod bodies;
mod calls;
mod events;
mod filters;
mod places;
mod preface;
mod queue;
mod refusal;
mod serve;
mod taking;

pub(super) use serve::Listening;
