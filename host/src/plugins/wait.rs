//! Waiting, as a guest may do it: `thread::sleep`, or the event loop of a
//! language's runtime.
//!
//! A guest that waits is inside the host, where epochs do not reach it. So the
//! time of its call bounds the wait, too: at its end the call ends like one
//! that computed for as long.

use std::future::Future;
use std::time::Instant;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::poll as waiting;
use wasmtime_wasi::p2::bindings::sync::io::poll;
use wasmtime_wasi::runtime::in_tokio;

use super::sandbox::Guest;

/// Puts `wasi:io/poll` with a bound in the place of the one that waits for ever.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    poll::add_to_linker::<_, HasWait>(linker, |guest| {
        let until = guest.call_until;
        Wait { table: guest.ctx().table, until }
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

struct HasWait;

impl HasData for HasWait {
    type Data<'a> = Wait<'a>;
}

struct Wait<'a> {
    table: &'a mut ResourceTable,
    /// When the call that waits has used up its time.
    until: Instant,
}

/// Polled or made ready in time, or the end of the call.
fn bounded<T>(until: Instant, wait: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    in_tokio(async {
        match tokio::time::timeout_at(until.into(), wait).await {
            Ok(answer) => answer,
            Err(_) => Err(wasmtime::Trap::Interrupt.into()),
        }
    })
}

impl poll::Host for Wait<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        bounded(self.until, waiting::Host::poll(self.table, pollables))
    }
}

impl poll::HostPollable for Wait<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        poll::HostPollable::ready(self.table, pollable)
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        bounded(self.until, waiting::HostPollable::block(self.table, pollable))
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::drop(self.table, pollable)
    }
}
