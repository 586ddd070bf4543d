//! One instance and its batches: what stands between the exported functions and [`Processor`].

use crate::bindings::millrace::processor::types::Outcome;
use crate::bindings::millrace::processor::types::{Effects as WireEffects, Failure as WireFailure};
use crate::event::EVENT_BYTES;
use crate::{Context, Effects, Event, FlushReason, Processor, Saved, Timestamp};

/// A loaded processor. Plugins get it through [`export!`](crate::export); to run one as native code, see
/// [`native`](crate::native).
#[derive(Debug)]
pub struct Instance<P> {
    processor: P,
    effects: Effects,
    /// The latest `at` of the events that it handled: the time in `flush`.
    latest: Option<Timestamp>,
}

impl<P: Processor> Instance<P> {
    /// Loads the processor. The error is what it refused with.
    pub fn load(context: Context, saved: Option<Saved>) -> Result<Self, String> {
        let processor = P::load(context, saved)?;
        Ok(Self { processor, effects: Effects::new(P::manifest().tables), latest: None })
    }

    /// Handles events in order until one fails. What that one asked for is dropped.
    pub fn handle(&mut self, arena: &[u8], events: &[u8]) -> Outcome {
        let (events, rest) = events.as_chunks::<EVENT_BYTES>();
        assert!(rest.is_empty(), "the host hands out whole events");
        for (index, record) in events.iter().enumerate() {
            let event = Event::new(arena, record);
            let at = event.at();
            let mark = self.effects.begin(index, Some(at));
            if let Err(failure) = self.processor.handle(event, &mut self.effects) {
                self.effects.truncate(mark);
                return self.outcome(index, Some(failure.into_wire(index)));
            }
            self.latest = self.latest.max(Some(at));
        }
        self.outcome(events.len(), None)
    }

    fn outcome(&mut self, handled: usize, failure: Option<WireFailure>) -> Outcome {
        let handled = u32::try_from(handled).expect("a batch has far fewer than 2^32 events");
        Outcome { handled, effects: self.effects.finish(), failure }
    }

    /// Time-driven work. A failure drops its effects.
    pub fn flush(&mut self, reason: FlushReason) -> Result<WireEffects, WireFailure> {
        let mark = self.effects.begin(0, self.latest);
        match self.processor.flush(reason, &mut self.effects) {
            Ok(()) => Ok(self.effects.finish()),
            Err(failure) => {
                self.effects.truncate(mark);
                // What is left is nothing; this forgets the overlay of the keyed state, too.
                self.effects.finish();
                Err(failure.into_wire(0))
            }
        }
    }

    /// The state to restart from.
    pub fn snapshot(&self) -> Vec<u8> {
        self.processor.snapshot()
    }

    /// The processor itself, for tests that look inside.
    pub fn processor(&self) -> &P {
        &self.processor
    }
}
