//! Claims about many events at once: what they cost the host that applies them. The reference had a burst of them cost it
//! half an hour, since it did the same work after each.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::{MemoryControlStore, MemoryFeed};
use millrace::clock::SystemClock;
use millrace::control::{
    Applier, ApplierOptions, ApplierSeams, Believing, ControlEvent, ControlSink as _, ControlStore as _,
    NoBootstrap,
};
use millrace::limits::CONTROL_APPLY_EVENTS_MAX;
use millrace_tests::control::steps::{SteppedSource, SteppedStore, Steps};
use millrace_tests::control::{deployed, of_a_new_kind, v};
use millrace_tests::control_events::trust;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The steps in which a host takes events that are all there when it begins, and has some more looks that find nothing.
async fn steps_of(events: &[ControlEvent]) -> Vec<String> {
    let feed = MemoryFeed::new();
    for event in events {
        feed.append(event).await.unwrap();
    }
    let (consumer, steps) = (feed.consumer("host"), Steps::all());
    let store = MemoryControlStore::new(Arc::new(SystemClock));
    let seams = ApplierSeams {
        source: Arc::new(SteppedSource { inner: Arc::new(consumer.clone()), steps: Arc::clone(&steps) }),
        store: Arc::new(SteppedStore { inner: Arc::new(store.clone()), steps: Arc::clone(&steps) }),
        keys: Believing::new(trust()),
        bootstrap: Arc::new(NoBootstrap),
        clock: Arc::new(SystemClock),
    };
    let options = ApplierOptions {
        poll_wait: Duration::from_millis(1),
        poll_gap: Duration::from_millis(1),
        ..ApplierOptions::default()
    };
    let (applier, mut running) = (Applier::new(seams, options), JoinSet::new());
    running.spawn(async move { applier.run(&CancellationToken::new()).await });
    millrace_tests::until("all are acknowledged", || consumer.acknowledged().len() == events.len()).await;
    assert_eq!(store.cursor().await.unwrap(), v(events.len() as u64));
    let looks = || count(&steps.passed(), "after poll");
    let before = looks();
    millrace_tests::until("it has looked again", || looks() > before + 3).await;
    steps.passed()
}

fn count(steps: &[String], name: &str) -> usize {
    steps.iter().filter(|step| *step == name).count()
}

/// C29, C30: several events, one of them of a kind that this host does not know, are one transaction, and each is
/// acknowledged after it; a look that finds nothing writes nothing. The reference kept no cursor and no ids on the way
/// that was fast.
#[tokio::test]
async fn c29_c30_a_burst_is_few_transactions_and_each_of_its_events_is_acknowledged() {
    let mut few: Vec<_> = (1..=4).map(|n| deployed(n, &format!("p{n}"), 1)).collect();
    few.push(of_a_new_kind(5));
    let steps = steps_of(&few).await;
    assert_eq!((count(&steps, "before take"), count(&steps, "before acknowledge")), (1, 5), "{steps:?}");
    let place = |name: &str| steps.iter().position(|step| step == name).unwrap();
    assert!(place("after take") < place("before acknowledge"), "{steps:?}");

    let most = CONTROL_APPLY_EVENTS_MAX as u64;
    let many: Vec<_> = (1..=2 * most + 1).map(|n| deployed(n, &format!("p{}", n % 7), 1 + n / 7)).collect();
    let steps = steps_of(&many).await;
    assert_eq!((count(&steps, "before take"), count(&steps, "before acknowledge")), (3, many.len()));
}
