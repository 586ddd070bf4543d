//! Candidates in JavaScript and Python in the shadow: a bad one is refused with its reason, and nothing of it is committed; a
//! good one is taken. The guests misbehave as a setting says, so that every candidate is the same compiled code.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace::error::Classify as _;
use millrace::plugins::{DeployFrom, DeployOptions, DeployRequest, PluginSettings, PluginStatus};
use millrace::processors::Expect;
use millrace_tests::dump::dump;
use millrace_tests::embedded::Embedded;
use serde_json::json;

use crate::plugins::rig::component;

/// What a candidate does, and what it is refused for. Each does so at every event, at each that is called `poison`, or in a
/// call that every candidate gets.
const BAD: [(&str, &str); 12] = [
    ("error", "shadow_trap"),
    ("loop", "shadow_timeout"),
    ("output", "shadow_limit"),
    ("stops", "shadow_fatal"),
    ("rejects", "shadow_errors"),
    ("refuse", "state_refused"),
    ("slow", "shadow_slow"),
    ("leaks", "shadow_memory"),
    ("snapshot_falls", "shadow_snapshot"),
    ("snapshot_is_large", "shadow_snapshot"),
    ("snapshots_differ_later", "shadow_impure"),
    ("wrong", "shadow_rows_differ"),
];

/// For calls that end; on a busy machine an engine's first one takes its time.
const CALL_MS_MAX: u64 = 20_000;
/// For the one that does not.
const ENDLESS_CALL_MS_MAX: u64 = 1_500;

const EVENTS_BEFORE: u64 = 100;
const EVENTS_BESIDE: u64 = 10;

struct Scene {
    host: Embedded,
    plugin: &'static str,
    component: Bytes,
    published: u64,
}

impl Scene {
    /// With a good version that runs, and some events that it has handled.
    async fn start(plugin: &'static str) -> Result<Self> {
        let host = Embedded::start_lent(&[plugin], |config| {
            (config.processors.shadow_events, config.processors.shadow_ms) = (60, 20);
            // The slow one is slower by far, and a good one on a busy machine is not.
            config.processors.shadow_time_ratio_max = 100;
        })
        .await?;
        let mut scene = Self { host, plugin, component: component(plugin).into(), published: 0 };
        scene.deploy("good").await?;
        scene.publish(EVENTS_BEFORE).await?;
        scene.host.client.settle().await?;
        Ok(scene)
    }

    fn request(&self, mode: &str) -> DeployRequest {
        let call_ms_max = if mode == "loop" { ENDLESS_CALL_MS_MAX } else { CALL_MS_MAX };
        let settings = PluginSettings {
            config: BTreeMap::from([("mode".to_owned(), mode.to_owned())]),
            lanes: Some(1),
            call_ms_max: Some(call_ms_max),
            ..PluginSettings::default()
        };
        DeployRequest {
            component: self.component.clone(),
            expected_name: None,
            expected_build: None,
            from: DeployFrom::Oldest,
            by: "api:test".into(),
            options: DeployOptions { expect: Expect::IdenticalRows, ..DeployOptions::default() },
            paused: false,
            settings: Some(settings),
            progress: None,
        }
    }

    async fn deploy(&self, mode: &str) -> Result<PluginStatus> {
        Ok(self.host.host().plugins().deploy(self.request(mode)).await?)
    }

    /// Deploys a candidate while a few events come; answers what it was refused for, or `taken`.
    async fn tried(&mut self, mode: &str) -> Result<&'static str> {
        let (plugins, request) = (self.host.host().plugins(), self.request(mode));
        let (answer, published) = tokio::join!(plugins.deploy(request), self.publish(EVENTS_BESIDE));
        published?;
        Ok(answer.map_or_else(|error| error.code(), |_| "taken"))
    }

    /// Events of flights, three of each, numbered on from those before; every fifth is poison to who cannot bear it.
    async fn publish(&mut self, count: u64) -> Result<()> {
        let numbers = self.published..self.published + count;
        self.published = numbers.end;
        let lines = numbers.map(|number| {
            let event_type = if number % 5 == 4 { "poison" } else { "add" };
            let event = json!({
                "aggregate": "flight", "agg_id": format!("f{}", number / 3), "version": number % 3 + 1,
                "type": event_type, "at": "2026-01-01T00:00:00Z", "payload": number,
            });
            format!("{event}\n")
        });
        self.host.client.publish(lines.collect::<String>()).await.map(drop)
    }

    async fn status(&self) -> Result<PluginStatus> {
        Ok(self.host.host().plugins().show(self.plugin).await?)
    }

    /// What the store holds in the end.
    async fn stored(self) -> Result<String> {
        self.host.client.settle().await?;
        let data = self.host.data();
        let _kept = self.host.stop().await;
        dump(&data)
    }
}

/// What is left where nothing disturbed the handling of so many events.
async fn undisturbed(plugin: &'static str, events: u64) -> Result<String> {
    let mut scene = Scene::start(plugin).await?;
    scene.publish(events - EVENTS_BEFORE).await?;
    scene.stored().await
}

async fn every_bad_candidate_is_refused_and_a_good_one_is_taken(
    plugin: &'static str,
    table: &str,
) -> Result<()> {
    let mut scene = Scene::start(plugin).await?;
    for (mode, expected) in BAD {
        let found = scene.tried(mode).await?;
        let status = scene.status().await?;
        ensure!(found == expected, "{mode}: {found} and not {expected}: {status:?}");
        let refusal = status.last_refusal.as_ref().map(|refusal| refusal.code.as_str());
        assert_eq!(refusal, Some(expected), "{mode}");
        assert_eq!((status.counters.swaps, status.counters.traps), (0, 0), "{mode}: the running one serves");
    }
    scene.host.client.settle().await?;
    assert_eq!(scene.status().await?.counters.dead_letters, 0);
    assert_eq!(scene.tried("another").await?, "taken");
    assert_eq!(scene.status().await?.counters.swaps, 1);
    scene.publish(EVENTS_BESIDE).await?;
    let events = scene.published;
    let stored = scene.stored().await?;
    for section in [&format!("rows_{table}") as &str, "keyed state", "states"] {
        let section = format!("== {section}: ");
        let line = stored.lines().find(|line| line.starts_with(&section));
        assert!(line.is_some_and(|line| line != format!("{section}0")), "something is in {section}");
    }
    assert!(stored.contains(&format!("{plugin}.twice")), "it emits");
    assert_eq!(stored, undisturbed(plugin, events).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_candidate_in_js_is_refused_with_its_reason_and_nothing_of_it_is_committed() -> Result<()> {
    Box::pin(every_bad_candidate_is_refused_and_a_good_one_is_taken("hostile-js", "seen_js")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_candidate_in_python_is_refused_with_its_reason_and_nothing_of_it_is_committed()
-> Result<()> {
    Box::pin(every_bad_candidate_is_refused_and_a_good_one_is_taken("hostile-python", "seen_python")).await
}
