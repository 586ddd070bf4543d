//! What happens with one event, looked at closely: in an instance of its own, under an engine that keeps the
//! guest's memory and stack when it falls.
//!
//! Promises: nothing is committed; the outcome is that of a living instance with the same state, settings
//! and event. Deliberately absent: where component, state and event come from.

use super::PluginError;
use super::runtime::WasmFactory;
use crate::checkpoints::SavedState;
use crate::event::EventBatch;
use crate::processors::{LoadError, Manifest, Outcome, Processor, ProcessorFactory, TaskContext};

/// What an instance begins with, and what it is handed.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    pub context: TaskContext,
    pub saved: Option<&'a SavedState>,
    /// Mostly one event.
    pub events: &'a EventBatch,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Autopsy {
    /// What the component says that it is; its tables tell how the effects are read.
    pub manifest: Manifest,
    /// The outcome with its effects and failure, or why there is none: with the backtrace, as for a letter.
    pub outcome: Result<Outcome, LoadError>,
    /// The state after the events, where they were handled and the processor has one.
    pub state: Option<Vec<u8>>,
    /// Only of a guest that fell in its own code.
    pub core_dump: Option<CoreDump>,
}

/// The memory and stack of a guest at its end, in the core dump format of WebAssembly tools.
#[derive(Clone, Debug)]
pub enum CoreDump {
    Taken(Vec<u8>),
    /// The bytes of its memory, which are more than `GUEST_CORE_DUMP_BYTES_MAX`.
    TooLarge(u64),
}

/// The same steps as in a lane, also that of a snapshot: an event is blamed for one that falls after it.
pub(super) fn examine(factory: &WasmFactory, scene: &Scene<'_>) -> Result<Autopsy, PluginError> {
    let manifest = factory.manifest().clone();
    let mut autopsy = Autopsy { manifest, outcome: Ok(Outcome::default()), state: None, core_dump: None };
    let mut processor = match factory.processor(scene.context.clone()) {
        Ok(processor) => processor,
        Err(trap) => return Ok(Autopsy { outcome: Err(trap.into()), ..autopsy }),
    };
    let handled = processor.load(scene.saved).and_then(|()| Ok(processor.handle(scene.events)?));
    let stateful = autopsy.manifest.state_content_type.is_some();
    autopsy.outcome = match handled {
        Ok(outcome) if stateful && outcome.handled > 0 => match processor.snapshot() {
            Ok(state) => {
                autopsy.state = Some(state);
                Ok(outcome)
            }
            Err(trap) => Err(trap.into()),
        },
        other => other,
    };
    autopsy.core_dump = processor.take_core_dump();
    Ok(autopsy)
}
