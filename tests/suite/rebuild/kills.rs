//! A rebuild goes on after whatever ends a host.

mod emitting;
mod hosted;
mod load;
mod point;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace::backends::sqlite::SqliteStore;
use millrace::error::{BackendError, Classify};
use millrace::plugins::{
    Flip, FlipReport, NewRebuild, PluginControl, RebuildError, RebuildProgress, RebuildRecord, RebuildStage,
    RebuildStore,
};
use millrace_tests::chaos::{difference, setup};
use millrace_tests::dump::dump;
use millrace_tests::flights;
use millrace_tests::guests::guest;
use millrace_tests::host::HostProcess;
use millrace_tests::workspace_binary;

use super::{Arc, Rig, borrowed, many, wait};

/// A call that is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Begin,
    Flip,
    Abandon,
}

/// Which calls are cut short from now on, and whether what they wanted is done all the same.
#[derive(Debug)]
struct Cut {
    inner: SqliteStore,
    call: Call,
    done: bool,
    /// Calls that are still to be cut short.
    left: AtomicUsize,
    /// Lists that cannot be read after a call was cut short.
    unread: usize,
    /// So many of them are still to come.
    to_come: AtomicUsize,
}

impl Cut {
    fn cuts(&self, call: Call) -> bool {
        let cuts = self.call == call && one_less(&self.left);
        if cuts {
            self.to_come.store(self.unread, Ordering::SeqCst);
        }
        cuts
    }

    async fn cut<T>(
        &self,
        call: Call,
        work: BoxFuture<'_, Result<T, RebuildError>>,
    ) -> Result<T, RebuildError> {
        if !self.cuts(call) {
            return work.await;
        }
        if self.done {
            work.await?;
        }
        Err(BackendError::Closed.into())
    }
}

/// Answers whether there was one left.
fn one_less(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl RebuildStore for Cut {
    fn begin(&self, wanted: NewRebuild) -> BoxFuture<'_, Result<RebuildRecord, RebuildError>> {
        async move { self.cut(Call::Begin, async move { self.inner.begin(wanted).await }.boxed()).await }
            .boxed()
    }

    fn note(&self, number: u64, progress: RebuildProgress) -> BoxFuture<'_, Result<(), RebuildError>> {
        self.inner.note(number, progress)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<RebuildRecord>, RebuildError>> {
        if one_less(&self.to_come) {
            return async { Err(BackendError::Closed.into()) }.boxed();
        }
        RebuildStore::list(&self.inner)
    }

    fn flip(&self, flip: Flip) -> BoxFuture<'_, Result<FlipReport, RebuildError>> {
        async move { self.cut(Call::Flip, async move { self.inner.flip(flip).await }.boxed()).await }.boxed()
    }

    fn abandon(&self, number: u64, why: String) -> BoxFuture<'_, Result<(), RebuildError>> {
        async move { self.cut(Call::Abandon, async move { self.inner.abandon(number, why).await }.boxed()).await }
            .boxed()
    }
}

/// A rig on which a call is cut short, once or for as long as the host lives, with a plugin that has handled events.
async fn rig(call: Call, done: bool, times: usize) -> Rig {
    rig_that_cannot_read(call, done, times, 0).await
}

async fn rig_that_cannot_read(call: Call, done: bool, times: usize, unread: usize) -> Rig {
    let cut = |store: &SqliteStore| -> Arc<dyn RebuildStore> {
        let (inner, left, to_come) = (store.clone(), times.into(), AtomicUsize::default());
        Arc::new(Cut { inner, call, done, left, unread, to_come })
    };
    let rig = Rig::with(|options| options, cut, std::collections::BTreeMap::new());
    rig.deploy("alpha 1").await.expect("it is deployed");
    let mut events = many(300, 20, "add");
    events.extend(many(60, 6, "emit"));
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    rig
}

async fn is_rebuilt(rig: &Rig) {
    rig.flipped("alpha").await;
    rig.settle("alpha").await;
    let rows = rig.rows("counts_alpha").await;
    assert_eq!(rows.len(), 20 + 60);
    assert!(rows.values().all(|(_, by)| *by == 2), "{rows:?}");
    assert_eq!(rows["k0"], (15 + 10, 2));
    assert!(rig.events("emitted-").await.values().all(|times| *times == 1));
    rig.swept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_after_an_end_at_its_begin() {
    for done in [false, true] {
        let mut rig = rig(Call::Begin, done, 1).await;
        let error = rig.rebuild("alpha", Some("alpha 2")).await.expect_err("it was cut short");
        assert_eq!(error.code(), "store_closed");
        rig.restart().await;
        // The host was told of it, or not: then it is asked again.
        if !done {
            rig.rebuild("alpha", Some("alpha 2")).await.expect("nothing stands against it");
        }
        is_rebuilt(&rig).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_after_an_end_while_it_fills() {
    let mut rig = rig(Call::Flip, false, 0).await;
    rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    rig.restart().await;
    // So near the end it may have tried to take over.
    let stage = rig.view("alpha").await.stage;
    assert!(!matches!(stage, RebuildStage::Flipped | RebuildStage::Abandoned), "{stage:?}");
    assert!(rig.rows("counts_alpha").await.values().all(|(_, by)| *by == 1), "the old version serves");
    rig.open_gate();
    is_rebuilt(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_after_an_end_before_the_flip() {
    let mut rig = rig(Call::Flip, false, usize::MAX).await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    wait("it has tried to take over", async || rig.view("alpha").await.tries > 1).await;
    assert!(rig.rows("counts_alpha").await.values().all(|(_, by)| *by == 1), "the old version serves");
    rig.publish(&[("k0", "emit", "1")]).await;
    rig.settle("alpha").await;
    rig.parts.rebuilds = Arc::new(rig.store.clone());
    rig.restart().await;
    rig.flipped("alpha").await;
    assert_eq!(rig.rows("counts_alpha").await["k0"], (15 + 10 + 1, 2));
    assert!(rig.events("emitted-").await.values().all(|times| *times == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_whose_answer_is_lost_has_happened() {
    let rig = rig(Call::Flip, true, 1).await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    is_rebuilt(&rig).await;
    assert_eq!(rig.view("alpha").await.tries, 1);
    rig.publish(&[("k0", "emit", "1")]).await;
    rig.settle("alpha").await;
    assert_eq!(rig.rows("counts_alpha").await["k0"], (15 + 10 + 1, 2), "and its version goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_that_nobody_can_tell_of_is_asked_about_until_somebody_can() {
    for done in [false, true] {
        let rig = rig_that_cannot_read(Call::Flip, done, 1, 3).await;
        rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
        is_rebuilt(&rig).await;
        assert_eq!(rig.view("alpha").await.tries, if done { 1 } else { 2 });
        rig.publish(&[("k0", "emit", "1")]).await;
        rig.settle("alpha").await;
        assert_eq!(rig.rows("counts_alpha").await["k0"], (15 + 10 + 1, 2), "and its version goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_could_not_be_abandoned_goes_on() {
    let rig = rig(Call::Abandon, false, 1).await;
    rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    let error = rig.registry.abandon_rebuild("alpha").await.expect_err("it was cut short");
    assert_eq!(error.code(), "store_closed");
    rig.open_gate();
    is_rebuilt(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandonment_whose_answer_is_lost_can_be_asked_for_again() {
    let rig = rig(Call::Abandon, true, 1).await;
    rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    rig.registry.abandon_rebuild("alpha").await.expect_err("it was cut short");
    let view = rig.registry.abandon_rebuild("alpha").await.expect("it is over, and that is told now");
    assert_eq!(view.stage, RebuildStage::Abandoned);
    rig.open_gate();
    rig.swept().await;
    rig.rebuild("alpha", Some("alpha 3")).await.expect("nothing stands against another one");
    rig.flipped("alpha").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_after_an_end_while_what_it_left_is_swept() {
    let mut rig = rig(Call::Flip, false, 0).await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    rig.flipped("alpha").await;
    rig.restart().await;
    assert_eq!(rig.view("alpha").await.stage, RebuildStage::Flipped, "it is remembered");
    is_rebuilt(&rig).await;
    assert_eq!(rig.show("alpha").await.deployment.version, "2.0.0");
}

/// Rows of a table that are left in the names of rebuilds.
fn left(data: &Path) -> Result<i64> {
    let db = rusqlite::Connection::open(data.join("millrace.db"))?;
    let sql = "SELECT (SELECT count(*) FROM tables WHERE instr(name, '~') > 0)
                    + (SELECT count(*) FROM tasks WHERE instr(processor, '~') > 0)";
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}

/// The real thing: a process, a component, and `kill -9` wherever it happens to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_midst_of_rebuilds_leave_the_store_of_a_quiet_run() -> Result<()> {
    const KILLS: u64 = 6;
    let dir = tempfile::tempdir()?;
    let lines: Vec<String> = flights::lines()?.into_iter().take(6_000).collect();
    let upload = |lines: &[String]| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>();
    let component = || anyhow::Ok(std::fs::read(guest("delay-watch"))?.into());
    let quiet = dir.path().join("quiet");
    let mut host = HostProcess::start_as(setup(workspace_binary("millrace")), &quiet).await?;
    host.deploy(component()?).await?;
    host.publish(upload(&lines)).await?;
    host.settle().await?;
    ensure!(host.terminate()?, "the host ends well");

    let stormy = dir.path().join("stormy");
    let mut host = HostProcess::start_as(setup(workspace_binary("millrace")), &stormy).await?;
    host.deploy(component()?).await?;
    for (round, part) in (0..KILLS).zip(lines.chunks(lines.len() / usize::try_from(KILLS)? + 1)) {
        host.publish(upload(part)).await?;
        // One is under way from before, or this begins another.
        drop(host.post("/v1/plugins/delay-watch/rebuild").await);
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        host.kill_and_start().await?;
        host.settle().await?;
    }
    let mut looks = 0;
    while host.get("/v1/plugins/delay-watch/rebuild").await?["stage"] != "flipped" || left(&stormy)? > 0 {
        looks += 1;
        let view = host.get("/v1/plugins/delay-watch/rebuild").await?;
        ensure!(looks < 6_000, "the rebuild has not taken over in a minute: {view}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let version = host.get("/v1/plugins/delay-watch").await?;
    let events = version["deployment"]["proof"].get("rebuilt").context("it runs what was rebuilt")?;
    ensure!(events["events"].as_u64().is_some(), "it says what it has handled: {version}");
    host.settle().await?;
    ensure!(host.terminate()?, "the host ends well");
    if let Some(difference) = difference(&dump(&quiet)?, &dump(&stormy)?) {
        panic!("the dumps differ:\n{difference}");
    }
    Ok(())
}
