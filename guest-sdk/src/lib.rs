//! Write Millrace processors in Rust.
//!
//! A processor is a type with [`Processor`] and one line of [`export!`]. Built
//! for `wasm32-wasip2` it is a component that the host loads; built for the
//! machine it is plain Rust, which [`testing::Driver`] runs without WebAssembly.
//!
//! ```
//! use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Order<'a> { customer: &'a str, cents: i64 }
//!
//! static ORDERS: Table =
//!     Table::new("orders", &[Column::text("customer").filterable(), Column::int("cents").sortable()]).versioned();
//!
//! struct Orders;
//! impl Processor for Orders {
//!     fn manifest() -> Manifest { Manifest::new("orders", "0.1.0").types(&["order.*"]).tables(&[&ORDERS]) }
//!     fn load(_: Context, _: Option<Saved>) -> Result<Self, String> { Ok(Self) }
//!     fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
//!         out.put(&ORDERS, event.agg_id(), event.version(), &event.payload_as::<Order>()?)
//!     }
//! }
//! millrace_guest::export!(Orders);
//!
//! // And its test, which needs no WebAssembly:
//! use millrace_guest::testing::{Driver, TestEvent};
//! let mut driver = Driver::<Orders>::new();
//! let order = serde_json::json!({"customer": "ada", "cents": 1250});
//! driver.send(&[TestEvent::new("order", "o-1", 1, "order.placed").payload(&order)]).unwrap();
//! assert_eq!(driver.row("orders", "o-1").unwrap()["cents"], 1250);
//! ```
//!
//! Promises: an event is borrowed from its batch, and handing it over costs no
//! allocation; integers keep all 64 bits; the effects of an event that failed
//! are dropped, those of the events before it are kept.
//! Deliberately absent: a clock, randomness, files and sockets. A processor
//! that tells time by [`Event::at`] gives the same rows whenever it is replayed.

// What `export!` expands to names this crate; inside the crate the name must mean the same.
extern crate self as millrace_guest;

mod batch;
#[doc(hidden)]
pub mod bindings;
mod channel;
pub mod config;
mod effects;
mod event;
mod failure;
mod imports;
pub mod limits;
pub mod log;
mod manifest;
#[cfg(not(target_arch = "wasm32"))]
pub mod native;
mod record;
mod row;
mod saved;
mod state;
mod table;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod time;

#[doc(hidden)]
pub use wit_bindgen as __wit_bindgen;

pub use batch::Instance;
pub use channel::{ChannelEntry, EntryType, NewEntry};
pub use effects::{Effects, NewEvent};
pub use event::{EVENT_BYTES, Event};
pub use failure::{Failure, FailureKind};
pub use manifest::{ChangeScope, Manifest, OrderingKey};
pub use saved::Migration;
pub use state::{Entry, Scan, State, StatePage, StateValue};
pub use table::{Column, ColumnType, Table};
pub use time::{InvalidTime, Timestamp};

/// The shapes as they cross, for those who need to go below [`Processor`].
pub mod wire {
    pub use crate::bindings::millrace::processor::types::{
        ChangeField, ChangeScope, ChangeScopes, Column, ColumnType, Effects, Failure, FailureKind, Manifest,
        OrderingKey, Outcome, Table,
    };
    pub use crate::record::{EFFECT_BYTES, EffectKind, EffectRecord};
}

pub use bindings::millrace::processor::types::{Context, FlushReason, SavedState as Saved};

/// What a plugin implements.
///
/// An instance belongs to one task: one tenant, one lane. Its functions are
/// called one at a time.
pub trait Processor: Sized + 'static {
    /// What this processor is. Must always answer the same.
    fn manifest() -> Manifest;

    /// Begins work. `saved` is what this task last committed, perhaps by an
    /// older version under an older content type ([`Saved::migrate`] tells them
    /// apart); none where no version has saved a state yet, as at the very
    /// start. A refusal leaves the running version in charge.
    fn load(context: Context, saved: Option<Saved>) -> Result<Self, String>;

    /// Handles one event. On an error the effects of this event are dropped;
    /// state that this instance keeps must be as it was before the call.
    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure>;

    /// Work driven by time: at the interval that the manifest names, at a stop and before another version takes over.
    fn flush(&mut self, reason: FlushReason, out: &mut Effects) -> Result<(), Failure> {
        let _ = (reason, out);
        Ok(())
    }

    /// The state to restart from. Two calls in a row must answer the same
    /// bytes, so keep maps in an order: `BTreeMap` rather than `HashMap`.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }
}

impl Context {
    /// What the task's keyed state holds under a key. For `load`, when there is no event and so nothing is
    /// gone by its time yet; in `handle` ask [`Effects::state`].
    pub fn state_get(&self, key: &[u8]) -> Option<StateValue> {
        imports::state_get(key)
    }

    /// Entries of the task's keyed state whose key begins with `prefix`, in the order of their keys, as
    /// [`State::scan`] without the running batch.
    pub fn state_scan(&self, prefix: &[u8]) -> Scan<'_> {
        Scan::new(None, prefix)
    }
}

/// Makes a type that implements [`Processor`] the component's processor. Once in a plugin.
///
/// Off WebAssembly it exports nothing, so that plugins can be linked together in tests.
#[macro_export]
macro_rules! export {
    ($processor:ty) => {
        // The type is in use, and is a processor, on every target.
        const _: fn($crate::Context, Option<$crate::Saved>) -> Result<$crate::Instance<$processor>, String> =
            $crate::Instance::<$processor>::load;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::bindings::exports::millrace::processor::handler::Guest;
            use $crate::bindings::millrace::processor::types;

            thread_local! {
                static INSTANCE: ::core::cell::RefCell<Option<$crate::Instance<$processor>>> =
                    const { ::core::cell::RefCell::new(None) };
            }

            fn with<R>(work: impl FnOnce(&mut $crate::Instance<$processor>) -> R) -> R {
                INSTANCE.with_borrow_mut(|instance| {
                    work(instance.as_mut().expect("the host calls `load` before anything else"))
                })
            }

            struct Component;

            impl Guest for Component {
                fn describe() -> types::Manifest {
                    <$processor as $crate::Processor>::manifest().to_wire()
                }

                fn load(context: types::Context, saved: Option<types::SavedState>) -> Result<(), String> {
                    let loaded = $crate::Instance::load(context, saved)?;
                    INSTANCE.with_borrow_mut(|instance| *instance = Some(loaded));
                    Ok(())
                }

                fn handle(arena: Vec<u8>, events: Vec<u8>) -> types::Outcome {
                    with(|instance| instance.handle(&arena, &events))
                }

                fn flush(reason: types::FlushReason) -> Result<types::Effects, types::Failure> {
                    with(|instance| instance.flush(reason))
                }

                fn snapshot() -> Vec<u8> {
                    with(|instance| instance.snapshot())
                }
            }

    $crate::bindings::export_component!(Component with_types_in $crate::bindings);
        };
    };
}
