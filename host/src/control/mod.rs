//! The control feed: what a fleet should run, told once and carried out by every host.
//!
//! A change of what should run is a [`ControlEvent`]: the whole desired state of one plugin under a new revision, signed,
//! pointing at artifacts by their digests. Whoever makes one commits it together with its place in the outbox; the
//! publisher carries it to a [`ControlSink`], which gives it a control version; every host's applier reads its
//! [`ControlSource`] and commits {desired state, the event's id, cursor} in one transaction. Nothing is fetched or compiled
//! there: a reconciler per plugin drives this host towards what is desired and says how far it is.
//!
//! Promises: a repeat of an event changes nothing; an event whose revision is not above what is known changes nothing,
//! so a repeated, late or reordered event can never bring back what was replaced; a bad event or plugin is set aside and
//! holds up nobody else; what runs goes on running when the feed, the artifacts or the controller are away.
//! Deliberately absent: anything that must reach a host for it to serve. A host without a feed runs what it last knew.

mod applier;
mod artifacts;
mod backoff;
mod believing;
pub mod breaker;
mod build;
mod carried;
pub mod changes;
mod check;
mod controller;
mod desk;
mod error;
mod event;
mod feed;
pub mod fleet;
pub mod freeze;
mod json;
mod keys;
mod local_artifacts;
mod pinner;
mod publisher;
pub mod reconciler;
mod registry;
pub mod report;
mod reporter;
pub mod rollout;
pub(crate) mod rules;
pub mod snapshot;
mod store;
mod times;
pub mod trust;
mod wire;

pub use applier::{Applier, ApplierOptions, ApplierSeams, Bootstrap, Known, KnownEntity, NoBootstrap};
pub use artifacts::{
    ArtifactInfo, ArtifactRepository, ByteStream, Intake, check_artifact_name, check_limit, check_note,
    collected, digest_hex, digest_of, sized, verified,
};
pub use believing::Believing;
pub use build::{BuildSignature, attach_signatures, build_signatures};
pub use carried::Carried;
pub use check::{check_digest, check_labels};
pub use controller::{Controller, ControllerOptions, ControllerSeams, Looked};
pub use desk::{DesiredState, DeskParts, FleetDesk, Outbox, OwnState};
pub use error::ControlFeedError;
pub use event::{
    ArtifactRef, ControlEvent, Desired, EventBody, EventId, Kind, PluginSpec, RunState, Signature, Trusted,
    UnsignedEvent,
};
pub use feed::{
    Acker, Board, ControlSink, ControlSource, FleetMark, Polled, Received, SnapshotRef, check_report,
};
pub use keys::SigningKey;
pub use local_artifacts::LocalArtifacts;
pub use pinner::Pinner;
pub use publisher::{Origin, Publisher, PublisherOptions};
pub use registry::{FeedRegistry, FeedSettings};
pub use reporter::{Reporter, ReporterParts};
pub(crate) use store::cut;
pub use store::{
    Applied, AppliedOutcome, Claimed, ControlStore, DesiredRow, Entry, ObservedRow, OutboxLetter,
    OutboxStatus, Phase, Proposed, PublishOutcome, Quarantined, Restore, Restored, Settlement, Told,
    Unreadable,
};
pub use wire::SCHEMA_VERSION;

/// The place of an event in a feed, given by its sink: above 0 and growing, with holes where a backend has them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ControlVersion(pub u64);

pub type Result<T> = std::result::Result<T, ControlFeedError>;
