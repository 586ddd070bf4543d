//! `kill -9` of a host at each step of a rebuild, while events come as fast as they are taken and somebody watches.
//! The version that takes over has another column and another state.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use millrace::plugins::RebuildStep;
use millrace_tests::chaos::{difference, setup};
use millrace_tests::dump::dump;
use millrace_tests::guests::{guest, lend_code};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use reqwest::Client;
use serde_json::Value as Json;
use tokio::task::JoinSet;

use super::left;
use super::load::{Events, Publisher, QUERY, Row, Seen, TABLE, check, rows, watch};
use super::point::KillPoint;
use crate::crash_points::copy_store;

const PATIENCE: Duration = Duration::from_secs(60);
const REBUILD: &str = "/v1/plugins/counter/rebuild";
/// Before the rebuild begins. More than it commits in its first two commits, and than it may be behind when it tries to
/// take over.
const BACKLOG: u64 = 16_000;
const UPLOAD: u64 = 1_000;
/// Events under load before the rebuild begins.
const WARM: u64 = 200;
/// Rows of the former table beyond those that one transaction of the sweep removes.
const SINGLE: u64 = 1_200;

/// How often the step is come to before the host ends. A third commit begins once the first one is answered, and the
/// second slice of the sweep once the first one is gone.
fn times(step: RebuildStep) -> u64 {
    match step {
        RebuildStep::Filling => 3,
        RebuildStep::Sweeping => 2,
        _ => 1,
    }
}

/// What the ended host has left of a rebuild.
#[derive(Debug)]
struct Remains {
    open: bool,
    /// Tables and tasks in the names of rebuilds.
    tables: i64,
    tasks: i64,
    /// How far its task is, while it has one.
    position: i64,
    newest: i64,
    /// Rows of the former table.
    former: i64,
}

impl Remains {
    /// Of a copy: whoever opens the store itself mends it.
    fn read(data: &Path) -> Result<Self> {
        let copy = tempfile::tempdir()?;
        copy_store(data, copy.path());
        let db = rusqlite::Connection::open(copy.path().join("millrace.db"))?;
        let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let names = "SELECT name FROM tables WHERE name LIKE 'counters~old~%'";
        let former: Option<String> =
            db.prepare(names)?.query_map([], |row| row.get(0))?.next().transpose()?;
        Ok(Self {
            open: number("SELECT open FROM rebuilds")? == 1,
            tables: number("SELECT count(*) FROM tables WHERE instr(name, '~') > 0")?,
            tasks: number("SELECT count(*) FROM tasks WHERE instr(processor, '~') > 0")?,
            position: number("SELECT coalesce(max(position), 0) FROM tasks WHERE instr(processor, '~') > 0")?,
            newest: number("SELECT max(position) FROM events")?,
            former: match former {
                Some(table) => number(&format!("SELECT count(*) FROM \"rows_{table}\""))?,
                None => 0,
            },
        })
    }

    fn are_of(&self, step: RebuildStep) -> bool {
        let begun = self.open && self.tables == 1 && self.former == 0;
        match step {
            RebuildStep::Begun => begun && self.tasks == 0,
            RebuildStep::Filling => begun && self.position > 0 && self.position < self.newest,
            RebuildStep::CaughtUp | RebuildStep::Holding | RebuildStep::Flipping => {
                begun && self.position > 0
            }
            // The sweep may have come at once.
            RebuildStep::Flipped => !self.open && self.tables <= 1,
            RebuildStep::Sweeping => {
                let left = i64::try_from(SINGLE).is_ok_and(|all| self.former > 0 && self.former < all);
                !self.open && self.tables == 1 && self.tasks == 1 && left
            }
        }
    }
}

struct Scene {
    dir: tempfile::TempDir,
    point: KillPoint,
    events: Events,
    host: HostProcess,
    publisher: Publisher,
    seen: Seen,
    watching: JoinSet<Result<()>>,
    publishing: JoinSet<Result<u64>>,
}

fn component(name: &str) -> Result<Bytes> {
    Ok(std::fs::read(guest(name))?.into())
}

/// A host that has what both versions compile to.
async fn start(setup: Setup, data: &Path) -> Result<HostProcess> {
    let (store, components) = (data.to_owned(), [component("counter")?, component("counter_v2")?]);
    tokio::task::spawn_blocking(move || lend_code(&store, &components)).await??;
    HostProcess::start_as(setup, data).await
}

async fn publish(host: &HostProcess, events: Events, until: u64) -> Result<()> {
    let mut from = 0;
    while from < until {
        let to = until.min(from + UPLOAD);
        host.publish(events.upload(from..to)).await?;
        from = to;
    }
    Ok(())
}

impl Scene {
    /// The old version has handled the backlog, somebody watches, and events come.
    async fn new(step: RebuildStep) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (point, killable) = KillPoint::new(dir.path())?;
        let host = start(killable, &dir.path().join("killed")).await?;
        host.deploy(component("counter")?).await?;
        let events = Events { single: if step == RebuildStep::Sweeping { SINGLE } else { 0 } };
        publish(&host, events, BACKLOG).await?;
        host.settle().await?;
        let publisher =
            Publisher { url: host.url.clone(), events, done: Arc::new(BACKLOG.into()), stop: Arc::default() };
        let seen: Seen = Arc::new(Mutex::default());
        let (mut watching, mut publishing) = (JoinSet::new(), JoinSet::new());
        watching.spawn(watch(host.url.clone(), Arc::clone(&seen)));
        publishing.spawn(publisher.clone().run());
        Ok(Self { dir, point, events, host, publisher, seen, watching, publishing })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("killed")
    }

    /// Fails where the viewer or the publisher has.
    fn goes_on(&mut self) -> Result<()> {
        if let Some(ended) = self.watching.try_join_next() {
            ended??;
            bail!("the viewer has ended");
        }
        if let Some(ended) = self.publishing.try_join_next() {
            bail!("the publisher has ended after {}", ended??);
        }
        Ok(())
    }

    async fn until(
        &mut self,
        what: &str,
        mut done: impl AsyncFnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !done(self).await? {
            self.goes_on()?;
            ensure!(begun.elapsed() < PATIENCE, "waited a minute: {what}: {}", self.host.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Has a rebuild begin, and the host end at a step of it. Starts it again.
    async fn is_killed_at(&mut self, step: RebuildStep) -> Result<()> {
        self.point.set(step, times(step))?;
        let request = Client::builder().no_proxy().build()?.post(format!("{}{REBUILD}", self.host.url));
        let request = request.header("content-type", "application/wasm").body(component("counter_v2")?);
        // It may end before it answers.
        if let Ok(answer) = request.send().await {
            let status = answer.status();
            ensure!(status.is_success(), "refused: {status} {}", answer.text().await.unwrap_or_default());
        }
        self.until("the host ends at the step", async |scene| scene.host.has_ended()).await?;
        self.point.clear(step, &self.host.said())?;
        let remains = Remains::read(&self.data())?;
        ensure!(remains.are_of(step), "these are not the remains of {step:?}: {remains:?}");
        self.host.kill_and_start().await
    }

    /// Events go on, and nobody asks for the rebuild again.
    async fn takes_over(&mut self) -> Result<()> {
        let flipped =
            async |scene: &mut Self| anyhow::Ok(scene.host.get(REBUILD).await?["stage"] == "flipped");
        self.until("the rebuild has taken over", flipped).await?;
        let (at, seen) = (self.publisher.done.load(Ordering::SeqCst), self.windows());
        let goes_on = async |scene: &mut Self| {
            anyhow::Ok(scene.publisher.done.load(Ordering::SeqCst) > at + WARM && scene.windows() > seen)
        };
        self.until("the new version goes on", goes_on).await?;
        let data = self.data();
        self.until("nothing is left of it", async |_| Ok(left(&data)? == 0)).await?;
        let plugin = self.host.get("/v1/plugins/counter").await?;
        ensure!(plugin["deployment"]["version"] == "2.0.0", "the new version runs: {plugin}");
        Ok(())
    }

    fn windows(&self) -> usize {
        self.seen.lock().expect("test").len()
    }

    async fn stored(&self) -> Result<Vec<Row>> {
        let page: Json = self.host.get(&format!("/v1/tables/{TABLE}?{QUERY}")).await?;
        let of_page = page["rows"].as_array().context("a page has rows")?;
        // A page has the columns apart, a frame has them beside the key.
        let flat: Vec<Json> = of_page
            .iter()
            .map(|row| {
                let mut flat = row["values"].clone();
                flat["key"] = row["key"].clone();
                flat
            })
            .collect();
        rows(&flat)
    }

    /// Ends the load. Answers how many events there are, once the viewer was shown what came of all.
    async fn comes_to_rest(&mut self) -> Result<u64> {
        self.publisher.stop.store(true, Ordering::SeqCst);
        let published = self.publishing.join_next().await.context("it publishes")???;
        self.host.settle().await?;
        let stored = self.stored().await?;
        let begun = Instant::now();
        while self.seen.lock().expect("test").last().is_none_or(|shown| shown.rows != stored) {
            if let Some(ended) = self.watching.try_join_next() {
                ended??;
            }
            ensure!(begun.elapsed() < PATIENCE, "the viewer is not shown what is stored: {stored:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.watching.shutdown().await;
        Ok(published)
    }
}

async fn killed_at(step: RebuildStep) -> Result<()> {
    let mut scene = Scene::new(step).await?;
    let warm = async |scene: &mut Scene| {
        anyhow::Ok(scene.windows() > 0 && scene.publisher.done.load(Ordering::SeqCst) >= BACKLOG + WARM)
    };
    scene.until("events come and are seen", warm).await?;
    scene.is_killed_at(step).await?;
    scene.takes_over().await?;
    let published = scene.comes_to_rest().await?;
    check(&scene.seen.lock().expect("test"), scene.events, published)?;
    ensure!(scene.host.terminate()?, "the host ends well");

    let fresh = scene.dir.path().join("fresh");
    let mut host = start(setup(workspace_binary("millrace")), &fresh).await?;
    host.deploy(component("counter_v2")?).await?;
    publish(&host, scene.events, published).await?;
    host.settle().await?;
    ensure!(host.terminate()?, "the host ends well");
    let projected = dump(&fresh)?;
    ensure!(!projected.contains("== rows_counters: 0\n"), "there are rows");
    match difference(&projected, &dump(&scene.data())?) {
        Some(difference) => bail!("the dumps differ:\n{difference}"),
        None => Ok(()),
    }
}

macro_rules! kills {
    ($($name:ident at $step:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<()> {
                killed_at(RebuildStep::$step).await
            }
        )*

        #[test]
        fn every_step_of_a_rebuild_has_its_kill() {
            assert_eq!([$(RebuildStep::$step),*], RebuildStep::ALL);
        }
    };
}

kills! {
    a_host_killed_once_its_rebuild_has_begun_comes_to_a_fresh_projection at Begun,
    a_host_killed_while_its_rebuild_fills_comes_to_a_fresh_projection at Filling,
    a_host_killed_once_its_rebuild_has_caught_up_comes_to_a_fresh_projection at CaughtUp,
    a_host_killed_while_both_versions_stand_comes_to_a_fresh_projection at Holding,
    a_host_killed_before_its_flip_is_committed_comes_to_a_fresh_projection at Flipping,
    a_host_killed_after_its_flip_is_committed_comes_to_a_fresh_projection at Flipped,
    a_host_killed_while_former_rows_are_swept_comes_to_a_fresh_projection at Sweeping,
}
