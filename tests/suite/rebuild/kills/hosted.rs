//! `kill -9` of a host at each step of a rebuild, while events of two tenants come as fast as they are taken and six
//! viewers watch (`load`). The version that takes over has another column and another state.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use millrace::plugins::RebuildStep;
use millrace_tests::chaos::{difference, setup};
use millrace_tests::dump::dump;
use millrace_tests::embedded::Client;
use millrace_tests::guests::{guest, lend_code};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use tokio::task::JoinSet;

use super::left;
use super::load::{Events, FULL, Publisher, TENANTS, VIEWS, Watcher, clients, with_tenants};
use super::point::KillPoint;
use crate::crash_points::copy_store;

const PATIENCE: Duration = Duration::from_secs(60);
const REBUILD: &str = "/v1/plugins/counter/rebuild";
/// Of each tenant, before the rebuild begins. More than it commits in its first two commits.
const BACKLOG: u64 = 8_000;
const UPLOAD: u64 = 1_000;
/// Events of each tenant under load before the rebuild begins.
const WARM: u64 = 200;
/// Of each tenant. Of all of them together the former table has more rows than one transaction of the sweep removes.
const SINGLE: u64 = 600;

/// How often the step is come to before the host ends. Of more commits than there are tenants one is the second of its
/// tenant, which begins once the first one is answered. The second slice of the sweep begins once the first is gone.
fn times(step: RebuildStep) -> u64 {
    match step {
        RebuildStep::Filling => TENANTS.len() as u64 + 1,
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
    /// How far the task is that is furthest, while it has any.
    position: i64,
    /// Tasks of it that have come to the end of the log.
    at_end: i64,
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
            at_end: number(
                "SELECT count(*) FROM tasks
                 WHERE instr(processor, '~') > 0 AND position >= (SELECT max(position) FROM events)",
            )?,
            former: match former {
                Some(table) => number(&format!("SELECT count(*) FROM \"rows_{table}\""))?,
                None => 0,
            },
        })
    }

    fn are_of(&self, step: RebuildStep) -> bool {
        let tenants = TENANTS.len() as u64;
        let are_all = |number: i64, all: u64| u64::try_from(number).is_ok_and(|number| number >= all);
        let begun = self.open && self.tables == 1 && self.former == 0;
        match step {
            RebuildStep::Begun => begun && self.tasks == 0,
            RebuildStep::Filling => begun && self.position > 0 && !are_all(self.at_end, tenants),
            RebuildStep::CaughtUp | RebuildStep::Holding | RebuildStep::Flipping => {
                begun && self.position > 0
            }
            // The sweep may have come at once.
            RebuildStep::Flipped => !self.open && self.tables <= 1,
            RebuildStep::Sweeping => {
                let left = self.former > 0 && !are_all(self.former, SINGLE * tenants);
                !self.open && self.tables == 1 && are_all(self.tasks, tenants) && left
            }
        }
    }
}

struct Scene {
    dir: tempfile::TempDir,
    point: KillPoint,
    /// Events of each tenant that have a key each.
    single: u64,
    host: HostProcess,
    clients: Vec<Client>,
    /// One of each tenant, and as many watchers of each as there are views.
    publishers: Vec<Publisher>,
    watchers: Vec<Watcher>,
    publishing: JoinSet<()>,
    watching: JoinSet<Result<()>>,
}

fn component(name: &str) -> Result<Bytes> {
    Ok(std::fs::read(guest(name))?.into())
}

/// A host that has what both versions compile to.
async fn start(setup: Setup, data: &Path) -> Result<HostProcess> {
    let (store, components) = (data.to_owned(), [component("counter")?, component("counter_v2")?]);
    tokio::task::spawn_blocking(move || lend_code(&store, &components)).await??;
    HostProcess::start_as(with_tenants(setup, data)?, data).await
}

/// So many events of each tenant, and of all tenants at once.
async fn publish(clients: &[Client], single: u64, until: &[u64]) -> Result<()> {
    let each = clients.iter().zip(until).enumerate().map(|(tenant, (client, until))| async move {
        let (events, mut from) = (Events::new(tenant, single), 0);
        while from < *until {
            let to = (from + UPLOAD).min(*until);
            client.publish(events.upload(from..to)).await?;
            from = to;
        }
        anyhow::Ok(())
    });
    try_join_all(each).await?;
    Ok(())
}

impl Scene {
    /// The old version has handled the backlog, everybody watches, and events come.
    async fn new(step: RebuildStep) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (point, killable) = KillPoint::new(dir.path())?;
        let host = start(killable, &dir.path().join("killed")).await?;
        let clients = clients(&host)?;
        clients[0].deploy_bytes(component("counter")?).await?.ok()?;
        let single = if step == RebuildStep::Sweeping { SINGLE } else { 0 };
        publish(&clients, single, &[BACKLOG; TENANTS.len()]).await?;
        clients[0].settle().await?;
        let (mut publishers, mut watchers) = (Vec::new(), Vec::new());
        let (mut publishing, mut watching) = (JoinSet::new(), JoinSet::new());
        for (tenant, client) in clients.iter().enumerate() {
            let publisher = Publisher::new(client.clone(), Events::new(tenant, single), BACKLOG);
            publishing.spawn(publisher.clone().run());
            publishers.push(publisher);
            for view in VIEWS {
                let watcher = Watcher::new(client.clone(), tenant, view);
                watching.spawn(watcher.clone().watch());
                watchers.push(watcher);
            }
        }
        let mut scene =
            Self { dir, point, single, host, clients, publishers, watchers, publishing, watching };
        let seen = async |scene: &mut Self| anyhow::Ok(!scene.windows().contains(&0));
        scene.until("everybody is shown something", seen).await?;
        scene.has_more("events come and are seen").await?;
        Ok(scene)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("killed")
    }

    /// Events of each tenant that are acknowledged.
    fn done(&self) -> Vec<u64> {
        self.publishers.iter().map(Publisher::done).collect()
    }

    /// How many windows each watcher was shown.
    fn windows(&self) -> Vec<usize> {
        self.watchers.iter().map(Watcher::windows).collect()
    }

    /// Fails where a watcher or a publisher has.
    fn goes_on(&mut self) -> Result<()> {
        if let Some(ended) = self.watching.try_join_next() {
            ended??;
            bail!("a watcher has ended");
        }
        if let Some(ended) = self.publishing.try_join_next() {
            ended?;
            bail!("a publisher has ended");
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

    /// Waits until there are more events of each tenant, and everybody was shown more.
    async fn has_more(&mut self, what: &str) -> Result<()> {
        let (done, windows) = (self.done(), self.windows());
        let more = async |scene: &mut Self| {
            let come = scene.done().iter().zip(&done).all(|(now, before)| *now >= before + WARM);
            anyhow::Ok(come && scene.windows().iter().zip(&windows).all(|(now, before)| now > before))
        };
        self.until(what, more).await
    }

    /// Has a rebuild begin while events come at the full rate, and the host end at a step of it. Starts it again, and
    /// they come so again.
    async fn is_killed_at(&mut self, step: RebuildStep) -> Result<()> {
        self.point.set(step, times(step))?;
        self.publishers.iter().for_each(|publisher| publisher.hurry(FULL));
        // It may end before it answers.
        if let Ok(answer) = self.clients[0].post(REBUILD, "application/wasm", component("counter_v2")?).await
        {
            answer.ok()?;
        }
        self.until("the host ends at the step", async |scene| scene.host.has_ended()).await?;
        self.point.clear(step, &self.host.said())?;
        let remains = Remains::read(&self.data())?;
        ensure!(remains.are_of(step), "these are not the remains of {step:?}: {remains:?}");
        ensure!(
            self.publishers.iter().all(Publisher::hurries),
            "the full rate ended before the host: {:?}",
            self.done()
        );
        self.publishers.iter().for_each(|publisher| publisher.hurry(FULL));
        self.host.kill_and_start().await
    }

    /// Events go on, and nobody asks for the rebuild again.
    async fn takes_over(&mut self) -> Result<()> {
        let flipped = async |scene: &mut Self| {
            anyhow::Ok(scene.clients[0].get(REBUILD).await?.ok()?["stage"] == "flipped")
        };
        self.until("the rebuild has taken over", flipped).await?;
        ensure!(
            self.publishers.iter().all(Publisher::hurries),
            "the full rate ended before it: {:?}",
            self.done()
        );
        self.publishers.iter().for_each(|publisher| publisher.hurry(0));
        self.has_more("the new version goes on").await?;
        let data = self.data();
        self.until("nothing is left of it", async |_| Ok(left(&data)? == 0)).await?;
        let plugin = self.clients[0].get("/v1/plugins/counter").await?.ok()?;
        ensure!(plugin["deployment"]["version"] == "2.0.0", "the new version runs: {plugin}");
        Ok(())
    }

    /// Ends the load. Answers how many events there are of each tenant, once everybody was shown what came of all.
    async fn comes_to_rest(&mut self) -> Result<Vec<u64>> {
        self.publishers.iter().for_each(Publisher::stop);
        let rest = async {
            while let Some(ended) = self.publishing.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, rest).await.context("what is under way is taken")??;
        self.clients[0].settle().await?;
        for watcher in &self.watchers {
            let (stored, begun) = (watcher.stored().await?, Instant::now());
            while !watcher.shows(&stored) {
                if let Some(ended) = self.watching.try_join_next() {
                    ended??;
                }
                let view = watcher.view;
                ensure!(begun.elapsed() < PATIENCE, "{view:?} does not come to what is stored: {stored:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if let Some(ended) = self.watching.try_join_next() {
            ended??;
        }
        self.watching.shutdown().await;
        Ok(self.done())
    }
}

/// What a host without rebuilds and ends makes of so many events of each tenant.
async fn projected(single: u64, published: &[u64], data: &Path) -> Result<String> {
    let mut host = start(setup(workspace_binary("millrace")), data).await?;
    let clients = clients(&host)?;
    clients[0].deploy_bytes(component("counter_v2")?).await?.ok()?;
    publish(&clients, single, published).await?;
    clients[0].settle().await?;
    ensure!(host.terminate()?, "the host ends well");
    dump(data)
}

async fn killed_at(step: RebuildStep) -> Result<()> {
    let mut scene = Box::pin(Scene::new(step)).await?;
    scene.is_killed_at(step).await?;
    scene.takes_over().await?;
    let published = scene.comes_to_rest().await?;
    for watcher in &scene.watchers {
        watcher.check(Events::new(watcher.tenant, scene.single), published[watcher.tenant])?;
    }
    ensure!(scene.host.terminate()?, "the host ends well");

    let projected = Box::pin(projected(scene.single, &published, &scene.dir.path().join("fresh"))).await?;
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
