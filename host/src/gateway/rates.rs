//! How many requests a tenant may make, so that one does not take the place of all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::problem::Problem;
use crate::event::{Micros, TenantId};
use crate::limits::RATED_TENANTS_MAX;

/// One request in the smallest part that is counted: what a rate of one a second gives in a microsecond.
const REQUEST: u64 = 1_000_000;

/// A bucket for each tenant: a request takes one from it, and time fills it up to the burst.
#[derive(Debug)]
pub(super) struct Rates {
    per_second: u32,
    full: u64,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u64,
    at: Micros,
}

impl Rates {
    /// A rate of 0 is none at all.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, full: u64::from(burst.max(1)) * REQUEST, buckets: Mutex::default() }
    }

    /// Takes one request of a tenant, or says how long to wait for the next.
    pub(super) fn admit(&self, tenant: &TenantId, now: Micros) -> Result<(), Problem> {
        if self.per_second == 0 {
            return Ok(());
        }
        // A panic elsewhere leaves a count that is right or one off.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= RATED_TENANTS_MAX && !buckets.contains_key(tenant) {
            // Who has a full bucket again is as good as new; if nobody has, the oldest one gets a present.
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.full);
            if buckets.len() >= RATED_TENANTS_MAX
                && let Some(oldest) =
                    buckets.iter().min_by_key(|(_, bucket)| bucket.at.0).map(|(tenant, _)| tenant.clone())
            {
                buckets.remove(&oldest);
            }
        }
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket { left: self.full, at: now });
        *bucket = Bucket { left: self.filled(*bucket, now), at: now };
        let Some(left) = bucket.left.checked_sub(REQUEST) else {
            let micros = (REQUEST - bucket.left).div_ceil(u64::from(self.per_second));
            let (rate, burst) = (self.per_second, self.full / REQUEST);
            let detail = format!(
                "tenant `{tenant}` made more requests than tenant_requests_per_s = {rate} and a burst of \
                 tenant_requests_burst = {burst}"
            );
            let problem = Problem::new("rate_limited", detail)
                .limit("tenant_requests_per_s", u64::from(rate) + 1, rate.into())
                .retry_after(Duration::from_micros(micros));
            return Err(problem);
        };
        bucket.left = left;
        Ok(())
    }

    /// A clock that was set back fills nothing.
    fn filled(&self, bucket: Bucket, now: Micros) -> u64 {
        let micros = u64::try_from(now.0.saturating_sub(bucket.at.0)).unwrap_or(0);
        bucket.left.saturating_add(micros.saturating_mul(self.per_second.into())).min(self.full)
    }
}
