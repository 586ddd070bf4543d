//! Whether a version could take a processor over: it loads what the tasks have
//! committed, on a thread of its own, while whatever runs goes on.

use std::sync::Arc;

use super::keyed::KeyedState;
use super::pool::GuestPool;
use super::runner::{Engine, SwapError};
use super::{LoadError, ProcessorFactory, TaskContext, Trap, TrapKind};
use crate::checkpoints::{CommitError, SavedState, TaskId};
use crate::event::TenantId;
use crate::limits::GUEST_STATE_BYTES_CEILING;

/// What a version would begin a task with.
#[derive(Debug)]
pub(super) struct Basis {
    pub(super) context: TaskContext,
    pub(super) saved: Option<Arc<SavedState>>,
}

/// What an instance of a task is given that does not run for it: the committed keyed state.
pub fn context_at_rest(engine: &Engine, task: &TaskId, lanes: u32) -> TaskContext {
    let state = Arc::new(KeyedState::new(task.clone(), Arc::clone(&engine.checkpoints)));
    TaskContext { tenant: task.tenant.clone(), lane: task.lane, lanes, state }
}

/// Proves a version for a processor that does not run: with the committed state
/// of every task there is, or, when there is none, with none. It claims the
/// tasks, so an owner that still ran would be fenced out.
pub async fn prove_at_rest(
    engine: &Engine,
    factory: &Arc<dyn ProcessorFactory>,
    lanes: u32,
) -> Result<(), SwapError> {
    let processor: Arc<str> = factory.manifest().name.as_str().into();
    let basis = |id: &TaskId, saved| {
        let state = Arc::new(KeyedState::new(id.clone(), Arc::clone(&engine.checkpoints)));
        let context = TaskContext { tenant: id.tenant.clone(), lane: id.lane, lanes, state };
        Basis { context, saved }
    };
    let first = || {
        let some_tenant = || TenantId::new("default").expect("a good name");
        let tenant = engine.log.tenants().into_iter().next().unwrap_or_else(some_tenant);
        TaskId { processor: Arc::clone(&processor), tenant, lane: 0 }
    };
    let host_failed = |task: TaskId| {
        |error: CommitError| {
            let source = match error {
                CommitError::StateTooLarge { bytes, .. } => {
                    LoadError::StateTooLarge { bytes, max: GUEST_STATE_BYTES_CEILING as u64 }
                }
                error => Trap {
                    kind: TrapKind::Host,
                    message: error.to_string(),
                    backtrace: String::new(),
                    at: None,
                }
                .into(),
            };
            SwapError { task, source }
        }
    };
    let tasks = engine.checkpoints.tasks(Some(&processor)).await.map_err(host_failed(first()))?;
    if tasks.is_empty() {
        return prove(&engine.pool, factory, first(), basis(&first(), None)).await;
    }
    for row in tasks {
        let claimed = engine.checkpoints.claim(&row.task).await;
        let (_, checkpoint) = claimed.map_err(host_failed(row.task.clone()))?;
        let saved = checkpoint.and_then(|checkpoint| checkpoint.saved).map(Arc::new);
        let basis = basis(&row.task, saved);
        prove(&engine.pool, factory, row.task, basis).await?;
    }
    Ok(())
}

/// What a candidate shares its quota of threads under: never with the version that it would replace.
pub(super) fn candidate_group(processor: &str) -> Arc<str> {
    format!("candidate:{processor}").into()
}

/// Makes an instance, loads it and throws it away.
pub(super) async fn prove(
    pool: &GuestPool,
    factory: &Arc<dyn ProcessorFactory>,
    task: TaskId,
    basis: Basis,
) -> Result<(), SwapError> {
    let factory = Arc::clone(factory);
    let loaded = pool.run_back(candidate_group(&task.processor), task.tenant.clone(), move || {
        let mut instance = factory.instantiate(basis.context)?;
        instance.load(basis.saved.as_deref())
    });
    let loaded = loaded
        .await
        .unwrap_or_else(|error| Err(LoadError::Trap(Trap::new(TrapKind::Host, error.to_string()))));
    loaded.map_err(|source| SwapError { task, source })
}
