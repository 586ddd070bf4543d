//! Events of another system: where they come from, and how far we are.
//!
//! Promises: events are handed on in the order in which they came; one that comes twice counts once, as far as the newest
//! cursors tell; the cursor is the run's own and moves over everything that was handled, whatever the processor keeps; a
//! state is saved after a flush, one put at a time, and not when nothing has changed; what can pass is waited for, and
//! what cannot ends the run with the very error, after a last save. Events about the stream are acted on by a policy.
//!
//! [`Runtime`] is the loop, and runs with any [`EventClient`], [`CheckpointClient`] and [`Reducer`]. [`Importer`] is the
//! processor with which a host takes foreign events into its own log. Deliberately absent: any protocol; `backends::grpc`
//! has one.

mod client;
mod coalesce;
mod importer;
mod keeper;
mod mapping;
mod policy;
mod recent;
mod reducer;
mod run;
mod runtime;
mod status;

pub use client::{
    CheckpointClient, ControlEvent, Detail, EventClient, EventEnvelope, EventStream, JsonText, Phase,
    RemoteCheckpoint, Scope, SourceError, SourceFault, SubscribeRequest,
};
pub use importer::{
    BegunRebuilds, IMPORTER_CONTENT_TYPE, Importer, ImporterParts, Rebuilds, SourceLetter, SourceLetters,
};
pub use policy::{Backoff, CursorPolicy, RuntimeConfig};
pub use reducer::{Handled, OfProcessor, Reducer};
pub use runtime::{Runtime, RuntimeParts, StartError};
pub use status::{Progress, SourceHandle, SourceState, SourceStatus};
