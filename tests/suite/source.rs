//! Claims about events that come from another system.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod config;
mod connections;
mod fakes;
mod faults;
mod hosts;
mod importing;
mod marks;
mod omissions;
mod peer;
mod processors;
mod rebuilds;
mod runtime;
mod saving;
mod scene;
mod sizes;
mod tracer;
