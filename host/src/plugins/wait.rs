//! Waiting, as a guest may do it: `thread::sleep`, the event loop of a
//! language's runtime, or a read of what has not arrived.
//!
//! A guest that waits is inside the host, where epochs do not reach it. So the
//! time of its call bounds the wait, too: at its end the call ends like one
//! that computed for as long.

use std::future::Future;
use std::time::Instant;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::io::poll as waiting;
use wasmtime_wasi::p2::bindings::io::streams as flowing;
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, StreamError, StreamResult};
use wasmtime_wasi::runtime::in_tokio;

use super::sandbox::Guest;

/// Puts `wasi:io` with a bound in the place of the one that waits for ever.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    poll::add_to_linker::<_, HasWait>(linker, wait)?;
    streams::add_to_linker::<_, HasWait>(linker, wait)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn wait(guest: &mut Guest) -> Wait<'_> {
    let until = guest.call.until();
    Wait { table: guest.ctx().table, until }
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

/// The same for what flows.
fn flow<T>(until: Instant, wait: impl Future<Output = StreamResult<T>>) -> StreamResult<T> {
    in_tokio(async {
        match tokio::time::timeout_at(until.into(), wait).await {
            Ok(answer) => answer,
            Err(_) => Err(StreamError::Trap(wasmtime::Trap::Interrupt.into())),
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

type Input = Resource<DynInputStream>;
type Output = Resource<DynOutputStream>;

impl streams::Host for Wait<'_> {
    fn convert_stream_error(&mut self, error: StreamError) -> wasmtime::Result<streams::StreamError> {
        streams::Host::convert_stream_error(self.table, error)
    }
}

impl streams::HostInputStream for Wait<'_> {
    fn read(&mut self, stream: Input, bytes: u64) -> StreamResult<Vec<u8>> {
        streams::HostInputStream::read(self.table, stream, bytes)
    }

    fn blocking_read(&mut self, stream: Input, bytes: u64) -> StreamResult<Vec<u8>> {
        flow(self.until, flowing::HostInputStream::blocking_read(self.table, stream, bytes))
    }

    fn skip(&mut self, stream: Input, bytes: u64) -> StreamResult<u64> {
        streams::HostInputStream::skip(self.table, stream, bytes)
    }

    fn blocking_skip(&mut self, stream: Input, bytes: u64) -> StreamResult<u64> {
        flow(self.until, flowing::HostInputStream::blocking_skip(self.table, stream, bytes))
    }

    fn subscribe(&mut self, stream: Input) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostInputStream::subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Input) -> wasmtime::Result<()> {
        bounded(self.until, flowing::HostInputStream::drop(self.table, stream))
    }
}

impl streams::HostOutputStream for Wait<'_> {
    fn check_write(&mut self, stream: Output) -> StreamResult<u64> {
        streams::HostOutputStream::check_write(self.table, stream)
    }

    fn write(&mut self, stream: Output, bytes: Vec<u8>) -> StreamResult<()> {
        streams::HostOutputStream::write(self.table, stream, bytes)
    }

    fn blocking_write_and_flush(&mut self, stream: Output, bytes: Vec<u8>) -> StreamResult<()> {
        flow(self.until, flowing::HostOutputStream::blocking_write_and_flush(self.table, stream, bytes))
    }

    fn blocking_write_zeroes_and_flush(&mut self, stream: Output, bytes: u64) -> StreamResult<()> {
        flow(
            self.until,
            flowing::HostOutputStream::blocking_write_zeroes_and_flush(self.table, stream, bytes),
        )
    }

    fn subscribe(&mut self, stream: Output) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostOutputStream::subscribe(self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Output, bytes: u64) -> StreamResult<()> {
        streams::HostOutputStream::write_zeroes(self.table, stream, bytes)
    }

    fn flush(&mut self, stream: Output) -> StreamResult<()> {
        streams::HostOutputStream::flush(self.table, stream)
    }

    fn blocking_flush(&mut self, stream: Output) -> StreamResult<()> {
        flow(self.until, flowing::HostOutputStream::blocking_flush(self.table, stream))
    }

    fn splice(&mut self, to: Output, from: Input, bytes: u64) -> StreamResult<u64> {
        streams::HostOutputStream::splice(self.table, to, from, bytes)
    }

    fn blocking_splice(&mut self, to: Output, from: Input, bytes: u64) -> StreamResult<u64> {
        flow(self.until, flowing::HostOutputStream::blocking_splice(self.table, to, from, bytes))
    }

    fn drop(&mut self, stream: Output) -> wasmtime::Result<()> {
        bounded(self.until, flowing::HostOutputStream::drop(self.table, stream))
    }
}
