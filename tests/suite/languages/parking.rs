//! Failing events of guests in any language: which key waits, who else goes on, what a letter says, and what it becomes. The
//! kit's guests fail when an event's type says so, and as often as they see it; what is to succeed at last goes through
//! guests that fail as a setting says, which a restart of the host changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace::checkpoints::{CheckpointStore, DeadLetterRow};
use millrace::config::Config;
use millrace::event::Position;
use millrace::plugins::PluginSettings;
use millrace::processors::{FailurePolicy, ProcessorFactory, ProcessorSettings, Resolved, Runner, Verdict};
use millrace::tables::{Query, TableStore};
use millrace_tests::dump::dump;
use millrace_tests::embedded::{Client, Embedded};
use millrace_tests::guests::{load_shared, sharing_code};
use millrace_tests::kit::{Language, granted};
use millrace_tests::until;
use serde_json::{Value, json};

use crate::plugins::rig::{Rig, options, tenant};

/// A guest of the kit at work. Its ordering key is the payload's member `key`.
struct Work {
    rig: Rig,
    runner: Runner,
    factory: Arc<dyn ProcessorFactory>,
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
        let runner = Runner::start(&rig.engine, Arc::clone(&factory), settings);
        let work = Self { rig, runner, factory, plugin, last };
        until("the processor has passed", || work.runner.status().done_through >= work.last).await;
        work
    }

    /// The same in its next life, with what the store holds.
    async fn next_life(self, settings: ProcessorSettings) -> Self {
        assert!(self.runner.stop(Duration::from_secs(60)).await, "it ends in time");
        let runner = Runner::start(&self.rig.engine, Arc::clone(&self.factory), settings);
        Self { runner, ..self }
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

async fn what_waits_goes_on_in_the_next_life(language: Language) {
    let hour = Duration::from_secs(3600);
    let patient =
        ProcessorSettings { retry_wait_min: hour, retry_wait_max: hour, ..ProcessorSettings::default() };
    let work = Work::start(language, "retry", patient).await;
    until("two events wait", || work.parked() == (2, 0)).await;
    // Its next try was an hour away; who takes it over waits no longer than its own bound, and gives up after one.
    let brief = Duration::from_millis(4);
    let brief =
        ProcessorSettings { retry_wait_min: brief, retry_wait_max: brief, ..strict(FailurePolicy::Hold) };
    let work = work.next_life(brief).await;
    until("the key is held", || work.parked() == (1, 1)).await;
    assert_eq!(work.rows().await, ["x1", "y1", "y2"], "the key has kept its order");
    let letter = work.letters().await.remove(0);
    assert_eq!((letter.event.get(0).agg_id, letter.reason.as_str()), ("x2", "retries"));
    // And once more, with a letter.
    let work = work.next_life(strict(FailurePolicy::Hold)).await;
    until("the key is held still", || work.parked() == (1, 1)).await;
    let resolved = work.runner.resolve(letter, Verdict::Discard).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Discarded { released: 1 });
    until("nothing waits", || work.parked() == (0, 0)).await;
    assert_eq!(work.rows().await, ["x1", "x3", "y1", "y2"]);
}

async fn a_replay_that_fails_leaves_the_letter_and_the_order(language: Language) {
    let work = Work::start(language, "reject", strict(FailurePolicy::Hold)).await;
    until("the key is held", || work.parked() == (1, 1)).await;
    let before = work.letters().await.remove(0);
    let resolved = work.runner.resolve(before.clone(), Verdict::Replay).await.expect("it is decided");
    let (reason, message) = ("reject".to_owned(), r#"{"key":"x"}"#.to_owned());
    assert_eq!(resolved, Resolved::FailedAgain { reason, message });
    let after = work.letters().await.remove(0);
    assert_eq!((after.attempts, after.held, after.parked_behind), (before.attempts + 1, true, 1));
    assert_eq!((work.parked(), work.rows().await.len()), ((1, 1), 3), "what waits behind it waits still");
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

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_waits_goes_on_in_the_next_life() {
                super::what_waits_goes_on_in_the_next_life(Language::$language).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_replay_that_fails_leaves_the_letter_and_the_order() {
                super::a_replay_that_fails_leaves_the_letter_and_the_order(Language::$language).await;
            }
        }
    )*};
}

in_every_language!(rust: Rust, js: Js, python: Python, wat: Wat);

// Over a restart of the host.

/// The plugin is well, or falls at each event of type `poison`.
fn settings(config: &mut Config, plugin: &str, mode: &str) {
    let settings = PluginSettings {
        config: BTreeMap::from([("mode".to_owned(), mode.to_owned())]),
        // For an engine's first call on a busy machine.
        call_ms_max: Some(20_000),
        ..PluginSettings::default()
    };
    config.plugins.insert(plugin.to_owned(), settings);
}

/// With `one`, `poison` and `two` on the key `x`, and others on `y`.
async fn started(plugin: &'static str, mode: &str) -> Result<Embedded> {
    let host = Embedded::start_lent(&[plugin], |config| settings(config, plugin, mode)).await?;
    host.client.deploy(plugin).await?;
    let events = [("x", "one"), ("x", "poison"), ("y", "one"), ("x", "two"), ("y", "two")];
    let lines = (1_u64..).zip(events).map(|(version, (agg_id, event_type))| {
        let event = json!({
            "aggregate": "thing", "agg_id": agg_id, "version": version, "type": event_type,
            "at": "2026-01-01T00:00:00Z", "payload": {},
        });
        format!("{event}\n")
    });
    host.client.publish(lines.collect::<String>()).await?;
    Ok(host)
}

/// The one letter that there is, once so many wait behind it.
async fn held_letter(client: &Client, plugin: &str) -> Result<Value> {
    let path = format!("/v1/plugins/{plugin}/dead-letters");
    let first = |answer: &Value| answer["dead_letters"].get(0).cloned().unwrap_or_default();
    let answer = client.wait_for(&path, |answer| first(&answer.json())["parked_behind"] == 1).await?;
    let letter = first(&answer.json());
    assert_eq!((&letter["reason"], &letter["held"]), (&json!("trap"), &json!(true)), "{letter}");
    Ok(letter)
}

async fn replay(client: &Client, plugin: &str, letter: &Value) -> Result<Value> {
    let number = letter["letter"].as_u64().context("a letter has a number")?;
    let path = format!("/v1/plugins/{plugin}/dead-letters/{number}/replay");
    client.post(&path, "application/json", "").await?.ok()
}

/// What the table notes of each key: the type of its last event.
async fn noted(client: &Client, table: &str) -> Result<Vec<(String, String)>> {
    let rows = client.rows(table, "limit=10").await?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = |row: &Value| Some((text(&row["key"])?, text(&row["values"]["type"])?));
    rows.iter().map(row).collect::<Option<_>>().context("rows have keys and types")
}

async fn stored(host: Embedded) -> Result<String> {
    let data = host.data();
    let _kept = host.stop().await;
    dump(&data)
}

async fn a_letter_is_replayed_after_a_restart_that_mends_the_plugin(
    plugin: &'static str,
    table: &str,
) -> Result<()> {
    let notes = |x: &str| vec![("x".to_owned(), x.to_owned()), ("y".to_owned(), "two".to_owned())];
    let host = started(plugin, "error").await?;
    let letter = held_letter(&host.client, plugin).await?;
    let answer = replay(&host.client, plugin, &letter).await?;
    assert_eq!((&answer["outcome"], &answer["reason"]), (&json!("failed_again"), &json!("trap")), "{answer}");
    host.client.settle().await?;
    assert_eq!(noted(&host.client, table).await?, notes("one"), "`two` waits behind the letter");

    let host = host.restart_with(|config| settings(config, plugin, "well")).await?;
    host.client.settle().await?;
    let letter = held_letter(&host.client, plugin).await?;
    assert_eq!(noted(&host.client, table).await?, notes("one"), "the key is held in the next life, too");
    let answer = replay(&host.client, plugin, &letter).await?;
    let said = ["outcome", "out_of_order", "released"].map(|member| &answer[member]);
    assert_eq!(said, [&json!("replayed"), &json!(false), &json!(1)], "{answer}");
    let path = format!("/v1/plugins/{plugin}");
    let nothing_waits = |status: &Value| status["waiting"]["parked_events"] == 0;
    host.client.wait_for(&path, |answer| nothing_waits(&answer.json())).await?;
    host.client.settle().await?;
    assert_eq!(noted(&host.client, table).await?, notes("two"), "first the replayed one, then what waited");

    let undisturbed = started(plugin, "well").await?;
    undisturbed.client.settle().await?;
    assert_eq!(stored(host).await?, stored(undisturbed).await?, "each event counts once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_of_a_js_guest_is_replayed_after_a_restart_that_mends_it() -> Result<()> {
    Box::pin(a_letter_is_replayed_after_a_restart_that_mends_the_plugin("hostile-js", "seen_js")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_of_a_python_guest_is_replayed_after_a_restart_that_mends_it() -> Result<()> {
    Box::pin(a_letter_is_replayed_after_a_restart_that_mends_the_plugin("hostile-python", "seen_python"))
        .await
}
