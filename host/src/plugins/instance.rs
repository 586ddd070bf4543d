//! A component's instance as a [`Processor`]: one crossing a batch, and what goes wrong in it told apart.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{CallHook, Store, UpdateDeadline, WasmBacktrace, WasmCoreDump};

use super::autopsy::CoreDump;
use super::bindings::{self, exported, wire};
use super::call_time::CallTime;
use super::engine::ticks;
use super::sandbox::{Guest, HostFailed, Sandbox, cut};
use super::{PluginError, parts};
use crate::checkpoints::{ChannelGrant, EffectBatch, EffectRecord, SavedState};
use crate::event::{EventBatch, EventRecord};
use crate::limits::{
    COMMIT_BYTES_MAX, GUEST_BACKTRACE_BYTES_MAX, GUEST_CORE_DUMP_BYTES_MAX, GUEST_EFFECTS_MAX,
    GUEST_MESSAGE_BYTES_MAX, GUEST_OUTPUT_BYTES_MAX, GUEST_RANDOM_BYTES_MAX, GUEST_RESOURCES_MAX,
    GUEST_STACK_BYTES_MAX, GUEST_TABLE_ELEMENTS_MAX,
};
use crate::processors::{
    Failure, FailureKind, FlushReason, LoadError, Outcome, Processor, TaskContext, Trap, TrapKind,
};
use crate::tables::TableSchema;

/// A compiled component, linked and checked: what instances are made of.
pub(super) type Linked = bindings::ProcessorPre<Guest>;

/// A component in its store, for as long as it lives.
pub(super) struct Instance {
    /// None once it fell: its memory and its slot in the pool are given back at that moment.
    alive: Option<Alive>,
    call_max: Duration,
    /// What it left when it fell, where the engine takes dumps.
    core_dump: Option<CoreDump>,
}

struct Alive {
    store: Store<Guest>,
    component: bindings::Processor,
    /// While an instance lives, its code is in use.
    _code: Arc<Linked>,
}

impl Instance {
    pub(super) fn new(
        linked: &Arc<Linked>,
        sandbox: &Sandbox,
        context: Option<TaskContext>,
        call_max: Duration,
    ) -> Result<Self, Trap> {
        let mut store = store(linked, sandbox, context);
        store.set_hostcall_fuel(GUEST_OUTPUT_BYTES_MAX);
        begin_call(&mut store, call_max);
        let component = linked.instantiate(&mut store).map_err(|error| explain(&error, &store, call_max))?;
        Ok(Self {
            alive: Some(Alive { store, component, _code: Arc::clone(linked) }),
            call_max,
            core_dump: None,
        })
    }

    /// The functions' types are known only once they are looked up in an instance: whether that
    /// fails tells a component for another shape of the world from one that falls over.
    pub(super) fn check_types(
        linked: &Linked,
        sandbox: &Sandbox,
        call_max: Duration,
    ) -> Result<(), PluginError> {
        let mut store = store(linked, sandbox, None);
        begin_call(&mut store, call_max);
        let instance = match linked.instance_pre().instantiate(&mut store) {
            Ok(instance) => instance,
            // What else goes wrong here is `describe`'s to tell.
            Err(error) => return parts::too_many(&error).map_or(Ok(()), Err),
        };
        let typed = bindings::Processor::new(&mut store, &instance).map(drop);
        typed.map_err(|error| PluginError::WrongWorld {
            detail: format!("{error:#}; build it against this host's version of millrace-guest"),
        })
    }

    /// One call into the guest: its time begins now, and after an error the instance is dead.
    fn call<T>(
        &mut self,
        call: impl FnOnce(&exported::Guest, &mut Store<Guest>) -> wasmtime::Result<T>,
    ) -> Result<T, Trap> {
        let Some(Alive { store, component, .. }) = &mut self.alive else {
            return Err(Trap::new(TrapKind::Host, "the instance fell before and cannot be used"));
        };
        begin_call(store, self.call_max);
        let ended = call(component.millrace_processor_handler(), store);
        let fuel_left = store.data().fuel_max().and_then(|_| store.get_fuel().ok());
        store.data_mut().end_call(fuel_left);
        let error = match ended {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let trap = explain(&error, store, self.call_max);
        self.core_dump = error.downcast_ref::<WasmCoreDump>().map(|dump| take_dump(dump, store));
        self.alive = None;
        Err(trap)
    }

    /// The instance handed back something it must not.
    fn break_with(&mut self, kind: TrapKind, message: String) -> Trap {
        self.alive = None;
        Trap::new(kind, message)
    }

    /// How much the next calls may hand back.
    fn set_output_room(&mut self, bytes: usize) {
        if let Some(alive) = &mut self.alive {
            alive.store.set_hostcall_fuel(bytes);
        }
    }

    fn begin_batch(&self, last: &EventRecord) {
        if let Some(alive) = &self.alive {
            alive.store.data().begin_batch(last);
        }
    }

    pub(super) fn describe(&mut self) -> Result<wire::Manifest, Trap> {
        self.call(|handler, store| handler.call_describe(store))
    }
}

/// A store in which a call is ended when its time is used up.
fn store(linked: &Linked, sandbox: &Sandbox, context: Option<TaskContext>) -> Store<Guest> {
    let mut store = Store::new(linked.engine(), Guest::new(sandbox, context));
    store.limiter(|guest| &mut guest.limits);
    if sandbox.fuel_max.is_some() {
        // What the host does for a guest burns nothing, and may be asked for again and again.
        store.call_hook(|guest, hook| match hook {
            CallHook::CallingHost if guest.data().call.is_far_over() => Err(wasmtime::Trap::Interrupt.into()),
            _ => Ok(()),
        });
    } else {
        store.epoch_deadline_callback(|mut guest| match guest.data_mut().call_left() {
            Some(left) => Ok(UpdateDeadline::Continue(ticks(left))),
            None => Err(wasmtime::Trap::Interrupt.into()),
        });
    }
    store
}

fn begin_call(store: &mut Store<Guest>, call_max: Duration) {
    match store.data().fuel_max() {
        Some(fuel) => store.set_fuel(fuel).expect("an engine whose guests have a bound of fuel consumes it"),
        None => store.set_epoch_deadline(ticks(CallTime::first_look(call_max))),
    }
    store.data_mut().begin_call(call_max);
}

/// What happened, as far as the error tells.
fn explain(error: &wasmtime::Error, store: &Store<Guest>, call_max: Duration) -> Trap {
    let (kind, mut message) = classify(error, call_max, store.data());
    let words = store.data().last_words();
    if !words.is_empty() {
        message = format!("{message}; the guest's last words: {words}");
    }
    let mut backtrace = Bounded { text: String::new(), bytes_max: GUEST_BACKTRACE_BYTES_MAX };
    if let Some(frames) = error.downcast_ref::<WasmBacktrace>() {
        // It fails at the bound, and what was written until then is what there is to say.
        let _ = write!(backtrace, "{frames}");
    }
    let message = cut(&message, GUEST_MESSAGE_BYTES_MAX).to_owned();
    Trap { backtrace: backtrace.text, ..Trap::new(kind, message) }
}

/// Takes text up to a bound and refuses the rest: a guest may name its functions in megabytes.
struct Bounded {
    text: String,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let fits = cut(text, self.bytes_max - self.text.len());
        self.text.push_str(fits);
        if fits.len() == text.len() { Ok(()) } else { Err(std::fmt::Error) }
    }
}

fn take_dump(dump: &WasmCoreDump, store: &mut Store<Guest>) -> CoreDump {
    let bytes = dump.memories().iter().map(|memory| memory.data_size(&*store) as u64).sum::<u64>();
    if bytes > GUEST_CORE_DUMP_BYTES_MAX {
        return CoreDump::TooLarge(bytes);
    }
    let name = store.data().plugin().to_owned();
    CoreDump::Taken(dump.serialize(store, &name))
}

/// Wasmtime has types for the traps of the guest's own code; what the host's bounds and the canonical ABI
/// refuse is told apart by its text, and the suite holds each of these texts to its kind.
fn classify(error: &wasmtime::Error, call_max: Duration, guest: &Guest) -> (TrapKind, String) {
    let text = error.root_cause().to_string();
    if error.downcast_ref::<HostFailed>().is_some() {
        return (TrapKind::Host, text);
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => {
            let limit = call_max.as_millis();
            let message =
                format!("the call took longer than guest_call_ms_max = {limit}; {}", guest.call_limit);
            return (TrapKind::Timeout, message);
        }
        Some(wasmtime::Trap::OutOfFuel) => {
            let limit = guest.fuel_max().unwrap_or_default();
            let message =
                format!("the call used more than guest_fuel_max = {limit}; raise processors.guest_fuel_max");
            return (TrapKind::Timeout, message);
        }
        Some(wasmtime::Trap::StackOverflow) => {
            let message = format!("{text}; guest_stack_bytes_max is {GUEST_STACK_BYTES_MAX}");
            return (TrapKind::Trap, message);
        }
        Some(_) => return (TrapKind::Trap, text),
        None => {}
    }
    if text.contains("fuel allocated for hostcalls") {
        let message =
            format!("the call handed over more than guest_output_bytes_max = {GUEST_OUTPUT_BYTES_MAX} bytes");
        (TrapKind::Limit, message)
    } else if text.contains("when growing table") {
        (TrapKind::Limit, format!("guest_table_elements_max is {GUEST_TABLE_ELEMENTS_MAX}: {text}"))
    } else if text.contains("when growing memory") || text.contains("exceeds memory limits") {
        let message = match guest.limits.exceeded() {
            Some((max, asked)) => format!(
                "guest_memory_bytes_max is {max} and it asked for {asked} bytes: free what is not needed, or raise plugins.<name>.memory_bytes_max"
            ),
            None => format!("guest_memory_bytes_max is reached: {text}"),
        };
        (TrapKind::Limit, message)
    } else if text.contains("no free keys") {
        (TrapKind::Limit, format!("guest_resources_max is {GUEST_RESOURCES_MAX}: {text}"))
    } else if text.contains("requested len") {
        (TrapKind::Limit, format!("guest_random_bytes_max is {GUEST_RANDOM_BYTES_MAX}: {text}"))
    } else if text.contains("maximum concurrent") {
        // The pool is full: the guest has not run yet.
        (TrapKind::Host, text)
    } else if error.downcast_ref::<WasmBacktrace>().is_none() {
        // The guest's code had returned: what it answered is no valid value.
        (TrapKind::Output, text)
    } else {
        (TrapKind::Trap, text)
    }
}

/// What an instance may hand back.
pub(super) struct OutputBounds {
    /// That it declares.
    pub(super) tables: Arc<[TableSchema]>,
    /// That it was granted.
    pub(super) channels: ChannelGrant,
    /// Size of a snapshot, taken or loaded.
    pub(super) state_bytes_max: usize,
}

/// An instance at work for a task.
pub(super) struct WasmProcessor {
    instance: Instance,
    context: TaskContext,
    bounds: OutputBounds,
    /// Kept between calls, so that a batch costs no allocation for its numbers.
    records: Vec<u8>,
    depths: Vec<u32>,
    /// It reads the clock without the grant: each event crosses alone, so that the clock can stand at it.
    one_by_one: bool,
    snapshot_compared: bool,
}

impl WasmProcessor {
    pub(super) fn new(
        instance: Instance,
        context: TaskContext,
        bounds: OutputBounds,
        one_by_one: bool,
    ) -> Self {
        Self {
            instance,
            context,
            bounds,
            records: Vec::new(),
            depths: Vec::new(),
            one_by_one,
            snapshot_compared: false,
        }
    }

    /// What the guest left when it fell; taken once, and only where the engine takes dumps.
    pub(super) fn take_core_dump(&mut self) -> Option<CoreDump> {
        self.instance.core_dump.take()
    }

    fn handle_batch(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let mut records = std::mem::take(&mut self.records);
        records.clear();
        records.reserve(batch.len() * EventRecord::WIRE_BYTES);
        batch.records().iter().for_each(|record| record.write_wire(&mut records));
        self.depths.clear();
        self.depths.extend(batch.records().iter().map(|record| record.depth));
        if let Some(last) = batch.records().last() {
            self.instance.begin_batch(last);
        }
        let answer = self.instance.call(|handler, store| handler.call_handle(store, batch.arena(), &records));
        self.records = records;
        let outcome = answer?;
        let handled = outcome.handled as usize;
        let sound = handled <= batch.len()
            && outcome.failure.as_ref().is_none_or(|f| f.index as usize == handled && handled < batch.len())
            && (outcome.failure.is_some() || handled == batch.len());
        if !sound {
            let failure = outcome.failure.map(|f| f.index);
            let message = format!(
                "it says that {handled} of {} events are handled and {failure:?} failed",
                batch.len()
            );
            return Err(self.instance.break_with(TrapKind::Output, message));
        }
        if handled == 0 && !outcome.effects.records.is_empty() {
            let effects = outcome.effects.records.len().div_ceil(EffectRecord::WIRE_BYTES);
            let message = format!("it hands back {effects} effects and handled no event");
            return Err(self.instance.break_with(TrapKind::Output, message));
        }
        // An effect of an event that is handed out again would be there twice.
        self.depths.truncate(handled);
        let mut effects = self.effects(outcome.effects)?;
        effects.carry_on(batch);
        Ok(Outcome { handled, effects, failure: outcome.failure.map(failure) })
    }

    /// The same as one batch, with the clock at each event's own time.
    fn handle_one_by_one(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let mut all = Outcome::default();
        let begun = std::time::Instant::now();
        for index in 0..batch.len() {
            // The bounds of a call hold for the batch, too: what is left is asked for again.
            let spent = begun.elapsed() >= self.instance.call_max
                || all.effects.bytes() >= COMMIT_BYTES_MAX
                || all.effects.len() >= GUEST_EFFECTS_MAX;
            if all.handled > 0 && spent {
                break;
            }
            let mut alone = EventBatch::new(batch.tenant.clone());
            alone.push_from(batch, index);
            let outcome = self.handle_batch(&alone)?;
            all.handled += outcome.handled;
            all.effects.append(&outcome.effects);
            if outcome.failure.is_some() {
                all.failure = outcome.failure;
                break;
            }
        }
        Ok(all)
    }

    fn effects(&mut self, effects: wire::Effects) -> Result<EffectBatch, Trap> {
        let OutputBounds { tables, channels, .. } = &self.bounds;
        EffectRecord::read_wire(&effects.records)
            .and_then(|records| {
                EffectBatch::check_granted(effects.arena, records, tables, &self.depths, channels)
            })
            .map_err(|error| self.instance.break_with(TrapKind::Output, error.to_string()))
    }
}

impl Processor for WasmProcessor {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        let max = self.bounds.state_bytes_max;
        if let Some(saved) = saved.filter(|saved| saved.state.len() > max) {
            let (bytes, max) = (saved.state.len() as u64, max as u64);
            return Err(LoadError::StateTooLarge { bytes, max });
        }
        let context = wire::Context {
            tenant: self.context.tenant.to_string(),
            lane: self.context.lane,
            lanes: self.context.lanes,
        };
        let saved = saved.map(|saved| wire::SavedState {
            content_type: saved.content_type.clone(),
            state: saved.state.clone(),
        });
        let answer =
            self.instance.call(|handler, store| handler.call_load(store, &context, saved.as_ref()))?;
        answer.map_err(|message| {
            self.instance.alive = None;
            LoadError::Refused { message: cut(&message, GUEST_MESSAGE_BYTES_MAX).to_owned() }
        })
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        if self.one_by_one { self.handle_one_by_one(batch) } else { self.handle_batch(batch) }
    }

    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        let reason = match reason {
            FlushReason::Tick => wire::FlushReason::Tick,
            FlushReason::Shutdown => wire::FlushReason::Shutdown,
            FlushReason::Swap => wire::FlushReason::Swap,
        };
        self.depths.clear();
        match self.instance.call(|handler, store| handler.call_flush(store, reason))? {
            Ok(effects) => Ok(Ok(self.effects(effects)?)),
            Err(failed) => Ok(Err(failure(failed))),
        }
    }

    /// The first one is taken twice: a snapshot that changes what it shows would make each commit differ
    /// from what the next instance begins with. Once an instance, this costs nothing that can be measured.
    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        let state = self.take_snapshot()?;
        if !std::mem::replace(&mut self.snapshot_compared, true) {
            let again = self.take_snapshot()?;
            if again != state {
                let message = format!(
                    "two snapshots in a row differ ({} and {} bytes): `snapshot` must not change anything and must always answer the same",
                    state.len(),
                    again.len()
                );
                return Err(self.instance.break_with(TrapKind::Output, message));
            }
        }
        Ok(state)
    }

    fn memory_bytes(&self) -> u64 {
        self.instance.alive.as_ref().map_or(0, |alive| alive.store.data().limits.memory_bytes() as u64)
    }
}

impl WasmProcessor {
    fn take_snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        let max = self.bounds.state_bytes_max;
        // A snapshot may be larger than the effects of a call; one byte more than it may tells the two apart.
        let room = GUEST_OUTPUT_BYTES_MAX.max(max + 1);
        self.instance.set_output_room(room);
        let answer = self.instance.call(|handler, store| handler.call_snapshot(store));
        self.instance.set_output_room(GUEST_OUTPUT_BYTES_MAX);
        let bytes = match answer {
            Ok(state) if state.len() <= max => return Ok(state),
            Ok(state) => state.len().to_string(),
            Err(trap) if trap.kind == TrapKind::Limit && trap.message.contains("guest_output_bytes_max") => {
                format!("more than {room}")
            }
            Err(trap) => return Err(trap),
        };
        let message = format!(
            "the snapshot has {bytes} bytes; guest_state_bytes_max is {max}: keep what grows in keyed state, or raise plugins.<name>.state_bytes_max"
        );
        Err(self.instance.break_with(TrapKind::Limit, message))
    }
}

fn failure(failed: wire::Failure) -> Failure {
    let kind = match failed.kind {
        wire::FailureKind::Retry => FailureKind::Retry,
        wire::FailureKind::Reject => FailureKind::Reject,
        wire::FailureKind::Fatal => FailureKind::Fatal,
    };
    Failure { kind, message: cut(&failed.message, GUEST_MESSAGE_BYTES_MAX).to_owned() }
}
