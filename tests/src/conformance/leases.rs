//! What every lease store must do.

use std::sync::Arc;
use std::time::Duration;

use millrace::cluster::{Asked, Lease, LeaseStore};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);

async fn granted(leases: &Arc<dyn LeaseStore>, holder: &str, ttl: Duration) -> Lease {
    match leases.acquire("board", holder, ttl).await.unwrap() {
        Asked::Granted(lease) => lease,
        taken @ Asked::Taken { .. } => panic!("{holder}: {taken:?}"),
    }
}

async fn holder(leases: &Arc<dyn LeaseStore>, asker: &str) -> (String, Duration) {
    match leases.acquire("board", asker, LONG).await.unwrap() {
        Asked::Taken { holder, left } => (holder, left),
        granted @ Asked::Granted(_) => panic!("{asker}: {granted:?}"),
    }
}

/// Asks until it is granted.
async fn gained(leases: &Arc<dyn LeaseStore>, holder: &str) -> Lease {
    loop {
        match leases.acquire("board", holder, LONG).await.unwrap() {
            Asked::Granted(lease) => return lease,
            Asked::Taken { left, .. } => tokio::time::sleep(left.min(Duration::from_millis(5))).await,
        }
    }
}

pub async fn one_asker_has_it_and_others_are_told_who(leases: Arc<dyn LeaseStore>) {
    let lease = granted(&leases, "one", LONG).await;
    assert!(lease.is_valid());
    assert_eq!((&*lease.fence.name, &*lease.holder), ("board", "one"));
    let (who, left) = holder(&leases, "two").await;
    assert_eq!(who, "one");
    assert!(left <= LONG && left > LONG / 2, "{left:?}");
    // Another name is another lease.
    assert!(matches!(leases.acquire("watch", "two", LONG).await.unwrap(), Asked::Granted(_)));
}

pub async fn a_renewal_keeps_its_generation(leases: Arc<dyn LeaseStore>) {
    let first = granted(&leases, "one", SHORT).await;
    let again = granted(&leases, "one", LONG).await;
    assert_eq!(first.fence, again.fence);
    assert!(again.until > first.until);
    // Also when it had ended, and nobody had it in between.
    granted(&leases, "one", Duration::from_millis(1)).await;
    tokio::time::sleep(SHORT).await;
    assert_eq!(granted(&leases, "one", LONG).await.fence, first.fence);
}

pub async fn one_that_ends_goes_to_the_next_asker_under_a_higher_generation(leases: Arc<dyn LeaseStore>) {
    let first = granted(&leases, "one", SHORT).await;
    let second = gained(&leases, "two").await;
    assert!(second.fence.generation > first.fence.generation);
    assert!(!first.is_valid(), "it has ended for its holder before");
    assert_eq!(holder(&leases, "one").await.0, "two");
}

pub async fn one_that_is_given_back_is_free_at_once(leases: Arc<dyn LeaseStore>) {
    let first = granted(&leases, "one", LONG).await;
    leases.release(&first).await.unwrap();
    let second = granted(&leases, "two", LONG).await;
    assert!(second.fence.generation > first.fence.generation);
    // What was the asker's once is not its to give back.
    leases.release(&first).await.unwrap();
    assert_eq!(holder(&leases, "one").await.0, "two");
    // The former holder's next grant is another one.
    leases.release(&second).await.unwrap();
    assert!(granted(&leases, "one", LONG).await.fence.generation > second.fence.generation);
}

pub async fn of_many_askers_one_has_it(leases: Arc<dyn LeaseStore>) {
    let mut asking = tokio::task::JoinSet::new();
    for asker in 0..16 {
        let leases = Arc::clone(&leases);
        asking.spawn(async move { leases.acquire("board", &format!("host-{asker}"), LONG).await.unwrap() });
    }
    let asked = asking.join_all().await;
    assert_eq!(asked.iter().filter(|asked| matches!(asked, Asked::Granted(_))).count(), 1);
}

/// The suite for one backend.
#[macro_export]
macro_rules! leases_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!(
            $backend, leases, $setup;
            one_asker_has_it_and_others_are_told_who,
            a_renewal_keeps_its_generation,
            one_that_ends_goes_to_the_next_asker_under_a_higher_generation,
            one_that_is_given_back_is_free_at_once,
            of_many_askers_one_has_it,
        );
    };
}
