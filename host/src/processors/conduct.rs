//! How plugins have used their turns lately: what decides whether one works in the front or in the back line.
//!
//! Each plugin is looked at for each tenant: the events of one tenant that make it hang put back this tenant's
//! work. Only those that have done something are kept, so looking one up costs nothing while all behave.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::event::TenantId;
use crate::limits::{GUEST_BACK_FOR, GUEST_LONG_CALL, GUEST_WASTE_MAX};

/// What a turn was like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Time on a core.
    pub(super) cpu: Duration,
    /// An instance fell in it: what it did is done again, or given up.
    pub(super) fell: bool,
    /// A call in it was so long that its thread stepped back.
    pub(super) stepped_back: bool,
}

/// The plugins that have done something. Bounded by the number of plugins times that of tenants.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    any: AtomicBool,
    entries: Mutex<HashMap<Arc<str>, HashMap<TenantId, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    /// Spent on nothing, at `at`.
    wasted: Duration,
    at: Instant,
    back_until: Option<Instant>,
}

impl Conduct {
    /// Whether it works in the back line now.
    pub(super) fn is_back(&self, group: &str, tenant: &TenantId, now: Instant) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut entries = self.entries.lock().expect("no code panics while it holds the conduct");
        let Some(tenants) = entries.get_mut(group) else { return false };
        let Some(entry) = tenants.get(tenant) else { return false };
        if entry.back_until.is_some_and(|until| now < until) {
            return true;
        }
        if now.saturating_duration_since(entry.at) > GUEST_BACK_FOR {
            tenants.remove(tenant);
            if tenants.is_empty() {
                entries.remove(group);
            }
            self.any.store(!entries.is_empty(), Ordering::Release);
        }
        false
    }

    /// Takes in what a turn was like.
    pub(super) fn note(&self, group: &Arc<str>, tenant: &TenantId, used: Used, now: Instant) {
        let long = used.stepped_back || used.cpu >= GUEST_LONG_CALL;
        if !long && !used.fell {
            return;
        }
        let mut entries = self.entries.lock().expect("no code panics while it holds the conduct");
        let new = || Entry { wasted: Duration::ZERO, at: now, back_until: None };
        let entry = entries.entry(Arc::clone(group)).or_default().entry(tenant.clone()).or_insert_with(new);
        let passed = now.saturating_duration_since(entry.at).as_secs_f64();
        entry.wasted =
            entry.wasted.mul_f64((-passed).exp2()) + if used.fell { used.cpu } else { Duration::ZERO };
        entry.at = now;
        if long || entry.wasted > GUEST_WASTE_MAX {
            entry.back_until = Some(now + GUEST_BACK_FOR);
        }
        self.any.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: Duration = Duration::from_millis(20);

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a good name")
    }

    #[test]
    fn a_long_turn_puts_a_plugin_back_for_one_tenant_and_a_while() {
        let (conduct, group, now) = (Conduct::default(), Arc::from("slow"), Instant::now());
        let (one, other) = (tenant("one"), tenant("other"));
        for used in
            [Used { cpu: GUEST_LONG_CALL, ..Used::default() }, Used { stepped_back: true, ..Used::default() }]
        {
            assert!(!conduct.is_back(&group, &one, now));
            conduct.note(&group, &one, used, now);
            assert!(conduct.is_back(&group, &one, now));
            assert!(!conduct.is_back(&group, &other, now), "the other tenant's work is not put back");
            assert!(!conduct.is_back("fast", &one, now), "nor is another plugin's");
            assert!(conduct.is_back(&group, &one, now + GUEST_BACK_FOR - LITTLE));
            assert!(!conduct.is_back(&group, &one, now + GUEST_BACK_FOR + LITTLE));
            assert!(!conduct.any.load(Ordering::Acquire), "it is forgotten");
        }
    }

    #[test]
    fn falls_put_a_plugin_back_when_they_cost_much_and_not_when_they_are_rare() {
        let (conduct, group, one) = (Conduct::default(), Arc::from("falls"), tenant("one"));
        let fall = Used { cpu: LITTLE, fell: true, ..Used::default() };
        let mut now = Instant::now();
        for _ in 0..20 {
            conduct.note(&group, &one, fall, now);
            assert!(!conduct.is_back(&group, &one, now), "one every two seconds is borne");
            now += Duration::from_secs(2);
        }
        for _ in 0..3 {
            conduct.note(&group, &one, fall, now);
        }
        assert!(conduct.is_back(&group, &one, now), "three at once are 60 ms");
        let good = Used { cpu: LITTLE, ..Used::default() };
        conduct.note(&group, &one, good, now + GUEST_BACK_FOR - LITTLE);
        assert!(!conduct.is_back(&group, &one, now + GUEST_BACK_FOR), "good turns do not keep it there");
    }
}
