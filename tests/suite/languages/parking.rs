//! Failing events of guests in any language: which key waits, who else goes on, and what a letter says. The kit's guests fail
//! when an event's type says so.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::checkpoints::{CheckpointStore, DeadLetterRow};
use millrace::event::Position;
use millrace::processors::{FailurePolicy, ProcessorSettings, Resolved, Runner, Verdict};
use millrace::tables::{Query, TableStore};
use millrace_tests::guests::{load_shared, sharing_code};
use millrace_tests::kit::{Language, granted};
use millrace_tests::until;

use crate::plugins::rig::{Rig, options, tenant};

/// A guest of the kit at work. Its ordering key is the payload's member `key`.
struct Work {
    rig: Rig,
    runner: Runner,
    plugin: &'static str,
    last: Position,
}

impl Work {
    /// With `x1`, then what fails as `x2`, `y1`, `x3` and `y2`.
    async fn start(language: Language, fails: &str, settings: ProcessorSettings) -> Self {
        let rig = Rig::with(sharing_code(options()));
        let (x, y) = (r#"{"key":"x"}"#, r#"{"key":"y"}"#);
        let events =
            [("x1", "put", x), ("x2", fails, x), ("y1", "put", y), ("x3", "put", x), ("y2", "put", y)];
        let last = rig.publish(&events).await;
        let factory = load_shared(&rig.runtime, &language.component(), &granted(BTreeMap::new()));
        let factory = factory.expect("the guest loads");
        let plugin = language.plugin();
        rig.store.declare(plugin, &factory.manifest().tables).await.expect("good tables");
        let runner = Runner::start(&rig.engine, factory, settings);
        let work = Self { rig, runner, plugin, last };
        until("the processor has passed", || work.runner.status().done_through >= work.last).await;
        work
    }

    async fn rows(&self) -> Vec<String> {
        // No more than the kit's table shows at once.
        let query = Query { limit: 77, ..Query::all("rows") };
        let page = self.rig.store.query(&tenant(), &query).await.expect("the table can be read");
        page.rows.into_iter().map(|row| row.key).collect()
    }

    /// Events that wait, and keys that a letter holds.
    fn parked(&self) -> (u64, u64) {
        let tasks = self.runner.status().tasks;
        (tasks.iter().map(|task| task.parked_events).sum(), tasks.iter().map(|task| task.held_keys).sum())
    }

    async fn letters(&self) -> Vec<DeadLetterRow> {
        self.rig.store.dead_letters(self.plugin, None, 100).await.expect("letters can be read")
    }
}

/// An event that fails becomes a letter at once.
fn strict(on_failure: FailurePolicy) -> ProcessorSettings {
    ProcessorSettings { retries_max: 0, on_failure, ..ProcessorSettings::default() }
}

async fn a_retry_parks_its_key_and_nothing_else(language: Language) {
    let hour = Duration::from_secs(3600);
    let patient =
        ProcessorSettings { retry_wait_min: hour, retry_wait_max: hour, ..ProcessorSettings::default() };
    let work = Work::start(language, "retry", patient).await;
    until("two events wait", || work.parked() == (2, 0)).await;
    assert_eq!(work.rows().await, ["x1", "y1", "y2"], "the other key went on");
    assert!(work.letters().await.is_empty(), "there are tries left");
}

async fn a_held_key_goes_on_when_its_letter_is_discarded(language: Language) {
    let work = Work::start(language, "reject", strict(FailurePolicy::Hold)).await;
    until("the key is held", || work.parked() == (1, 1)).await;
    assert_eq!(work.rows().await, ["x1", "y1", "y2"]);
    let letter = work.letters().await.remove(0);
    assert_eq!((letter.event.get(0).agg_id, letter.held, letter.parked_behind), ("x2", true, 1));
    assert_eq!(letter.message, r#"{"key":"x"}"#, "the guest's own words");
    let resolved = work.runner.resolve(letter, Verdict::Discard).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Discarded { released: 1 });
    until("nothing waits", || work.parked() == (0, 0)).await;
    assert_eq!(work.rows().await, ["x1", "x3", "y1", "y2"]);
}

async fn a_key_goes_on_over_its_letter_where_it_may(language: Language) {
    let work = Work::start(language, "retry", strict(FailurePolicy::Skip)).await;
    until("nothing waits", || work.parked() == (0, 0)).await;
    assert_eq!(work.rows().await, ["x1", "x3", "y1", "y2"]);
    let letters = work.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].event.get(0).agg_id, letters[0].reason.as_str()), ("x2", "retries"));
    assert_eq!(letters[0].message, r#"{"key":"x"}"#);
}

macro_rules! in_every_language {
    ($($module:ident: $language:ident),*) => {$(
        mod $module {
            use super::Language;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_retry_parks_its_key_and_nothing_else() {
                super::a_retry_parks_its_key_and_nothing_else(Language::$language).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_held_key_goes_on_when_its_letter_is_discarded() {
                super::a_held_key_goes_on_when_its_letter_is_discarded(Language::$language).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_key_goes_on_over_its_letter_where_it_may() {
                super::a_key_goes_on_over_its_letter_where_it_may(Language::$language).await;
            }
        }
    )*};
}

in_every_language!(rust: Rust, js: Js, python: Python, wat: Wat);
