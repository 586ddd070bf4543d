//! Claims about the gRPC server: events and checkpoints for clients that speak `memory.v1`.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod bounds;
mod checkpoints;
mod config;
mod connections;
mod ends;
mod events;
mod hosts;
mod onward;
mod peer;
mod process;
mod raw;
mod scene;
mod shared;
mod told;
mod untaken;
