//! The one place that builds a WebAssembly engine.
//!
//! Promises: every guest of a host runs under the same settings, so a
//! precompiled component is good for all of them; what a processor does not
//! need is off, which leaves less to attack and makes a call three times
//! cheaper (`concurrency_support`). A call is bounded by epochs, which cost
//! less, or by fuel, which ends the same call at the same place on every host.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use super::{Metering, PluginError};
use crate::limits::{
    GUEST_CORE_INSTANCES_MAX, GUEST_EPOCH, GUEST_INSTANCE_BYTES_MAX, GUEST_MEMORIES_MAX,
    GUEST_STACK_BYTES_MAX, GUEST_TABLE_ELEMENTS_MAX, GUEST_TABLES_MAX,
};

/// Slots beyond `instances_max`, for `describe` and for candidates that run beside what they replace.
const SPARE_INSTANCES: usize = 64;

/// Frames of a backtrace of an autopsy; the text of it has a bound of its own.
const AUTOPSY_FRAMES: usize = 64;

/// Address space of one linear memory. With all of 32 bits reserved, the
/// compiled code needs no bounds checks; nothing of it is backed by memory
/// before it is used, and the store's limiter bounds what is.
const MEMORY_RESERVATION: u64 = 4 << 30;

/// An engine with room for `instances_max` instances, and the thread that moves its epoch.
pub(super) fn new(instances_max: usize, metering: Metering) -> Result<Engine, PluginError> {
    let pooled = {
        let mut config = base(metering);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances_max)));
        Engine::new(&config)
    };
    let engine = match pooled {
        Ok(engine) => engine,
        // A small address space (a container with a bound on it, an old kernel)
        // cannot hold the pool. On-demand allocation works everywhere; only starting an instance is slower.
        Err(error) => {
            tracing::warn!(error.kind = "engine_degraded", error.blame = "host",
                error = %format!("{error:#}"),
                "no address space for pooled instances; allocating them on demand"
            );
            for_compiling(metering)?
        }
    };
    tick(&engine, metering)?;
    Ok(engine)
}

/// An engine with the same settings that makes no instances, and so needs no room for them.
pub(super) fn for_compiling(metering: Metering) -> Result<Engine, PluginError> {
    Engine::new(&base(metering))
        .map_err(|error| PluginError::Engine { detail: format!("cannot start: {error:#}") })
}

/// An engine for one look at how an instance falls: it keeps the guest's memory and stack at its end, reads
/// the lines of the source out of the component where they are in it, and needs no pool for one instance.
pub(super) fn for_autopsy(metering: Metering) -> Result<Engine, PluginError> {
    let mut config = base(metering);
    config
        .coredump_on_trap(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(AUTOPSY_FRAMES));
    let engine = Engine::new(&config)
        .map_err(|error| PluginError::Engine { detail: format!("cannot start: {error:#}") })?;
    tick(&engine, metering)?;
    Ok(engine)
}

fn base(metering: Metering) -> Config {
    let mut config = Config::new();
    config
        // Off takes a call from 322 ns to 103 ns, and the async ABI out of reach.
        .concurrency_support(false)
        .wasm_tail_call(false)
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        .wasm_stack_switching(false)
        // The same guest answers the same bits on every machine.
        .cranelift_nan_canonicalization(true)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(metering == Metering::Epoch)
        .consume_fuel(metering == Metering::Fuel)
        .max_wasm_stack(GUEST_STACK_BYTES_MAX)
        .memory_reservation(MEMORY_RESERVATION)
        // A dump would cost a copy of the guest's memory at every trap; the backtrace tells enough.
        .coredump_on_trap(false)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .parallel_compilation(true);
    config
}

fn pool(instances_max: usize) -> PoolingAllocationConfig {
    let slots = u32::try_from(instances_max + SPARE_INSTANCES).unwrap_or(u32::MAX / GUEST_CORE_INSTANCES_MAX);
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(GUEST_CORE_INSTANCES_MAX))
        .total_memories(slots.saturating_mul(GUEST_MEMORIES_MAX))
        .total_tables(slots.saturating_mul(GUEST_TABLES_MAX))
        .total_stacks(1)
        .max_core_instances_per_component(GUEST_CORE_INSTANCES_MAX)
        .max_memories_per_component(GUEST_MEMORIES_MAX)
        .max_tables_per_component(GUEST_TABLES_MAX)
        .max_core_instance_size(GUEST_INSTANCE_BYTES_MAX)
        .max_component_instance_size(GUEST_INSTANCE_BYTES_MAX)
        .table_elements(GUEST_TABLE_ELEMENTS_MAX)
        .max_memory_size(usize::try_from(MEMORY_RESERVATION).unwrap_or(usize::MAX))
        // Measured: a megabyte that stays resident is only cheaper together with the page-map scan.
        .linear_memory_keep_resident(1 << 20)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// How many epochs a call may see. One more than the time says: the running epoch is partly over.
pub(super) fn ticks(call: Duration) -> u64 {
    u64::try_from(call.as_micros().div_ceil(GUEST_EPOCH.as_micros()))
        .unwrap_or(u64::MAX - 1)
        .saturating_add(1)
}

/// The thread holds the engine weakly and ends when the last owner is gone. Fuel needs none.
fn tick(engine: &Engine, metering: Metering) -> Result<(), PluginError> {
    if metering == Metering::Fuel {
        return Ok(());
    }
    let engine = engine.weak();
    thread::Builder::new()
        .name("guest-epoch".into())
        .spawn(move || {
            loop {
                thread::sleep(GUEST_EPOCH);
                match engine.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => break,
                }
            }
        })
        .map_err(|error| PluginError::Engine { detail: format!("cannot start the epoch thread: {error}") })?;
    Ok(())
}
