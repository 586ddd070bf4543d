//! What a rebuild tells of how far it is.

use std::time::{Duration, Instant};

use millrace::plugins::{RebuildStage, RebuildView};

use super::{Rig, borrowed, many};

const EVENTS: usize = 8_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The first view of a rebuild under way that is like this.
async fn seen(rig: &Rig, wanted: impl Fn(&RebuildView) -> bool) -> RebuildView {
    let begun = Instant::now();
    loop {
        let view = rig.view("alpha").await;
        if wanted(&view) {
            return view;
        }
        assert!(view.stage != RebuildStage::Flipped && begun.elapsed() < PATIENCE, "{view:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_fills_tells_where_it_is_how_fast_and_for_how_long() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(EVENTS, 40, "add");
    let newest = rig.publish(&borrowed(&events)).await.0;
    rig.settle("alpha").await;
    let begun = rig.rebuild("alpha", Some("alpha 2 waits slow")).await.expect("it begins");
    // No instance of it is made yet.
    for view in [begun, rig.view("alpha").await] {
        assert_eq!((view.stage, view.newest, view.start), (RebuildStage::Filling, newest, 0));
        assert_eq!((view.position, view.events_done, view.events_per_s, view.eta_s), (0, 0, 0, None));
        assert_eq!((view.tries, view.report), (0, None));
    }
    rig.open_gate();
    // A call is of a thousand events and half a second, a commit of two: its pace is known with the first, and it is near with
    // the third.
    let first = seen(&rig, |view| view.eta_s.is_some() && view.events_per_s > 0).await;
    assert_eq!((first.stage, first.newest, first.tries), (RebuildStage::Filling, newest, 0));
    assert!(first.position > 0 && first.position < newest, "{first:?}");
    assert!(first.events_done > 0, "{first:?}");
    // It gains a position in a second at least.
    let left = newest - first.position;
    assert!(first.eta_s.is_some_and(|eta| eta <= left), "{first:?}");
    let second = seen(&rig, |view| view.position > first.position).await;
    assert!(second.events_done >= first.events_done && second.newest == newest, "{second:?}");
    let flipped = rig.flipped("alpha").await;
    assert_eq!((flipped.position, flipped.newest, flipped.eta_s), (newest, newest, None));
    assert_eq!(flipped.events_done, EVENTS as u64);
    assert_eq!(rig.rows("counts_alpha").await["k0"], (200, 2));
}
