//! The tail of the log evicts: whatever host an event was published at, what this process keeps of its entity goes.

use std::sync::Arc;

use super::{Change, ReadThrough};
use crate::event::{Epoch, Position};
use crate::streams::EventLog;

impl ReadThrough {
    /// Follows the log until it closes. It begins once a keyspace depends on an entity. Where events were missed, the
    /// log having become another one among that, all that this process keeps is forgotten.
    pub async fn follow(&self, log: Arc<dyn EventLog>) {
        let mut wanted = self.inner.has_entities.subscribe();
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let mut newest = log.tail().newest();
        let mut seen = Seen { epoch: log.epoch(), position: *newest.borrow_and_update() };
        self.evict_all();
        while newest.changed().await.is_ok() {
            let now = *newest.borrow_and_update();
            let epoch = log.epoch();
            if epoch != seen.epoch || now < seen.position || !self.evict_after(&*log, seen.position) {
                self.evict_all();
            }
            seen = Seen { epoch, position: now };
        }
    }

    /// Evicts what events after a position have changed; false where the tail does not reach back that far.
    fn evict_after(&self, log: &dyn EventLog, position: Position) -> bool {
        for tenant in log.tenants() {
            let Some(chunks) = log.tail().read(&tenant, position, usize::MAX) else { return false };
            for event in chunks.iter().flat_map(|chunk| chunk.iter()) {
                if event.position > position {
                    let (scope, entity) = (event.scope, event.aggregate);
                    self.evict(Change { tenant: &tenant, scope, entity, ids: &[event.agg_id] });
                }
            }
        }
        true
    }
}

struct Seen {
    epoch: Epoch,
    position: Position,
}
