//! `kill -9` of a host around the flip of a plugin that emits, and of one that appends to channels: each with two lanes
//! and two tenants, for both of which several publish at once. What left the store when the events were handled first
//! has left it once, wherever the host ends.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use millrace::plugins::RebuildStep;
use millrace_tests::chaos::{difference, setup};
use millrace_tests::dump::dump;
use millrace_tests::embedded::Client;
use millrace_tests::guests::{guest, lend_code};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use super::left;
use super::load::{TENANTS, clients, with_tenants};
use super::point::KillPoint;

const PATIENCE: Duration = Duration::from_secs(60);
/// Two of each tenant.
const WRITERS: usize = 4;
/// Of the writers of events, before the rebuild begins.
const BACKLOG: u64 = 1_200;
/// The log forgets most of the backlog, so that what is emitted for it again is another event. It knows whatever is
/// published again after the end.
const KNOWN_AGAIN: u64 = 2_000;
const UPLOAD: u64 = 300;
/// Of one upload while the rebuild is under way, and how long its writer waits after it.
const AT_ONCE: u64 = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// Keys of each writer. The guest emits one event for ten of a key.
const KEYS: u64 = 10;
/// Before the rebuild begins, of each writer. A channel has room for the answers to hundreds.
const QUESTIONS: u64 = 12;
const QUESTION_PAUSE: Duration = Duration::from_millis(50);

/// What a plugin does for which its events are the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Emits,
    Appends,
}

impl Work {
    fn plugin(self) -> &'static str {
        match self {
            Self::Emits => "chaotic",
            Self::Appends => "answers",
        }
    }

    fn backlog(self) -> u64 {
        match self {
            Self::Emits => BACKLOG,
            Self::Appends => QUESTIONS,
        }
    }

    /// So many that each writer has written since.
    fn more(self) -> u64 {
        match self {
            Self::Emits => 10 * AT_ONCE,
            Self::Appends => 3,
        }
    }

    fn pause(self) -> Duration {
        match self {
            Self::Emits => PAUSE,
            Self::Appends => QUESTION_PAUSE,
        }
    }

    /// Answers how many there are of a writer once those from this number on are acknowledged: so many more, or one. To
    /// be repeated where it fails.
    async fn write(self, client: &Client, writer: usize, from: u64, more: u64) -> Result<u64> {
        if self == Self::Emits {
            client.publish(events(writer, from..from + more)).await?;
            return Ok(from + more);
        }
        let path = format!("/v1/processes/p{writer}/channels/requests/entries");
        let entry = json!({ "text": question(from), "sequence": from + 1 });
        client.post(&path, "application/json", entry.to_string()).await?.ok()?;
        Ok(from + 1)
    }
}

/// Events of a writer, who has keys of its own.
fn events(writer: usize, numbers: Range<u64>) -> String {
    numbers.fold(String::new(), |text, number| {
        let line = json!({
            "aggregate": "work", "agg_id": format!("{writer}-{}", number % KEYS), "version": number / KEYS + 1,
            "type": "step", "at": "2013-01-01T00:00:00Z", "payload": { "value": number },
        });
        text + &line.to_string() + "\n"
    })
}

/// A word that is another one each time, and the longest.
fn word(number: u64) -> String {
    "x".repeat(8 + usize::try_from(number % 30).expect("small"))
}

fn question(number: u64) -> String {
    format!("request {}", word(number))
}

fn answer(number: u64) -> String {
    let word = word(number);
    format!("I read 2 words with {} letters. The longest is “{word}”.\n", "request".len() + word.len())
}

/// A host that has what the plugin compiles to.
async fn start(work: Work, setup: Setup, data: &Path) -> Result<HostProcess> {
    if work == Work::Emits {
        let (store, component) = (data.to_owned(), Bytes::from(std::fs::read(guest(work.plugin()))?));
        tokio::task::spawn_blocking(move || lend_code(&store, &[component])).await??;
    }
    let setup = with_tenants(setup, data)?
        .set(&format!("plugins.{}.lanes=2", work.plugin()))
        .set(&format!("store.dedup_events_max={KNOWN_AGAIN}"))
        .set(r#"plugins.answers.grants=["channels"]"#)
        .set(r#"plugins.answers.channels=["answers"]"#)
        .set("channels.channel_rate_limited=false");
    let host = HostProcess::start_as(setup, data).await?;
    let clients = clients(&host)?;
    clients[0].deploy(work.plugin()).await?;
    if work == Work::Appends {
        let channels = json!([{ "name": "requests", "events": true }, "answers"]);
        let process = json!({ "executor": "plugin:answers", "channels": channels }).to_string();
        for writer in 0..WRITERS {
            let client = &clients[writer % TENANTS.len()];
            let request = client.request(Method::PUT, &format!("/v1/processes/p{writer}"));
            let request = request.header("content-type", "application/json").body(process.clone());
            client.send(request).await?.ok()?;
        }
    }
    Ok(host)
}

struct Scene {
    work: Work,
    dir: tempfile::TempDir,
    point: KillPoint,
    host: HostProcess,
    clients: Vec<Client>,
    /// How many each writer has written.
    written: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
    writing: JoinSet<()>,
}

impl Scene {
    /// The plugin has handled the backlog, and more comes from everybody.
    async fn new(work: Work) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (point, killable) = KillPoint::new(dir.path())?;
        let host = start(work, killable, &dir.path().join("killed")).await?;
        let (clients, written) = (clients(&host)?, (0..WRITERS).map(|_| Arc::default()).collect());
        let mut scene =
            Self { work, dir, point, host, clients, written, stop: Arc::default(), writing: JoinSet::new() };
        let backlog = vec![work.backlog(); WRITERS];
        write(work, &scene.clients, &backlog).await?;
        for (writer, written) in scene.written.iter().enumerate() {
            written.store(backlog[writer], Ordering::SeqCst);
            let (client, written) = (scene.clients[writer % TENANTS.len()].clone(), Arc::clone(written));
            let stop = Arc::clone(&scene.stop);
            scene.writing.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let from = written.load(Ordering::SeqCst);
                    // What has no answer is written again.
                    loop {
                        tokio::time::sleep(work.pause()).await;
                        if let Ok(until) = work.write(&client, writer, from, AT_ONCE).await {
                            written.store(until, Ordering::SeqCst);
                            break;
                        }
                    }
                }
            });
        }
        scene.goes_on("everybody writes").await?;
        Ok(scene)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("killed")
    }

    fn written(&self) -> Vec<u64> {
        self.written.iter().map(|written| written.load(Ordering::SeqCst)).collect()
    }

    async fn until(
        &mut self,
        what: &str,
        mut done: impl AsyncFnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !done(self).await? {
            ensure!(begun.elapsed() < PATIENCE, "waited a minute: {what}: {}", self.host.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn goes_on(&mut self, what: &str) -> Result<()> {
        let wanted: Vec<u64> = self.written().iter().map(|written| written + self.work.more()).collect();
        let have = async |scene: &mut Self| {
            anyhow::Ok(scene.written().iter().zip(&wanted).all(|(written, wanted)| written >= wanted))
        };
        self.until(what, have).await
    }

    /// Has a rebuild begin, and the host end at a step of it. Starts it again.
    async fn is_killed_at(&mut self, step: RebuildStep) -> Result<()> {
        self.point.set(step, 1)?;
        let path = format!("/v1/plugins/{}/rebuild", self.work.plugin());
        // It may end before it answers.
        if let Ok(answer) = self.clients[0].send(self.clients[0].request(Method::POST, &path)).await {
            answer.ok()?;
        }
        self.until("the host ends at the step", async |scene| scene.host.has_ended()).await?;
        self.point.clear(step, &self.host.said())?;
        self.host.kill_and_start().await
    }

    /// Nobody asks for the rebuild again.
    async fn takes_over(&mut self) -> Result<()> {
        let path = format!("/v1/plugins/{}/rebuild", self.work.plugin());
        let flipped = async |scene: &mut Self| {
            anyhow::Ok(scene.clients[0].get(&path).await?.ok()?["stage"] == "flipped")
        };
        self.until("the rebuild has taken over", flipped).await?;
        let data = self.data();
        self.until("nothing is left of it", async |_| Ok(left(&data)? == 0)).await?;
        self.goes_on("everybody goes on").await
    }

    /// Answers how many each writer has written.
    async fn comes_to_rest(&mut self) -> Result<Vec<u64>> {
        self.stop.store(true, Ordering::SeqCst);
        let rest = async {
            while let Some(ended) = self.writing.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, rest).await.context("what is under way is taken")??;
        self.clients[0].settle().await?;
        let path = format!("/v1/plugins/{}", self.work.plugin());
        let status = self.clients[0].get(&path).await?.ok()?;
        ensure!(status["deployment"]["lanes"] == 2, "it has two lanes: {status}");
        ensure!(status["counters"]["dead_letters"] == 0, "all was handled: {status}");
        ensure!(self.host.terminate()?, "the host ends well");
        Ok(self.written())
    }
}

/// Writes so many of each writer, and waits until the plugin has handled them.
async fn write(work: Work, clients: &[Client], until: &[u64]) -> Result<()> {
    for (writer, until) in until.iter().enumerate() {
        let client = &clients[writer % TENANTS.len()];
        let mut from = 0;
        while from < *until {
            from = work.write(client, writer, from, UPLOAD.min(until - from)).await?;
        }
    }
    clients[0].settle().await
}

/// What a host without rebuilds and ends makes of the same events.
async fn fresh(written: &[u64], data: &Path) -> Result<String> {
    let mut host = start(Work::Emits, setup(workspace_binary("millrace")), data).await?;
    write(Work::Emits, &clients(&host)?, written).await?;
    ensure!(host.terminate()?, "the host ends well");
    dump(data)
}

/// Each question has its answer once, in order, piece by piece.
fn all_is_answered(data: &Path, written: &[u64]) -> Result<()> {
    let db = rusqlite::Connection::open(data.join("millrace.db"))?;
    let sql = "SELECT e.sequence, e.payload
               FROM channel_entries e JOIN channels c ON c.id = e.channel JOIN processes p ON p.id = c.process
               WHERE p.name = ?1 AND p.tenant = ?2 AND c.name = 'answers' ORDER BY e.position";
    let mut statement = db.prepare(sql)?;
    for (writer, written) in written.iter().enumerate() {
        let place = (format!("p{writer}"), TENANTS[writer % TENANTS.len()]);
        let entries =
            statement.query_map(place, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let (sequences, pieces): (Vec<i64>, Vec<Vec<u8>>) =
            entries.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let (told, expected) =
            (String::from_utf8(pieces.concat())?, (0..*written).map(answer).collect::<String>());
        if told != expected {
            let same = told.lines().zip(expected.lines()).take_while(|(told, expected)| told == expected);
            let lines = [told.lines().count(), expected.lines().count()];
            bail!("of the answers of writer {writer} the first {} are right: {lines:?}", same.count());
        }
        ensure!(sequences.iter().copied().eq((1..).take(sequences.len())), "neither hole nor repeat");
    }
    Ok(())
}

async fn killed_at(work: Work, step: RebuildStep) -> Result<()> {
    let mut scene = Box::pin(Scene::new(work)).await?;
    scene.is_killed_at(step).await?;
    scene.takes_over().await?;
    let written = scene.comes_to_rest().await?;
    if work == Work::Appends {
        return all_is_answered(&scene.data(), &written);
    }
    let expected = Box::pin(fresh(&written, &scene.dir.path().join("fresh"))).await?;
    for section in ["rows_chaotic_chains", "keyed state", "states"] {
        ensure!(!expected.contains(&format!("== {section}: 0\n")), "something is in {section}");
    }
    ensure!(expected.contains("\"echo.made\""), "it emits");
    match difference(&expected, &dump(&scene.data())?) {
        Some(difference) => bail!("the dumps differ:\n{difference}"),
        None => Ok(()),
    }
}

macro_rules! kills {
    ($($name:ident: $work:ident at $step:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<()> {
                killed_at(Work::$work, RebuildStep::$step).await
            }
        )*
    };
}

kills! {
    a_host_killed_while_both_versions_stand_emits_each_event_once: Emits at Holding,
    a_host_killed_before_its_flip_is_committed_emits_each_event_once: Emits at Flipping,
    a_host_killed_after_its_flip_is_committed_emits_each_event_once: Emits at Flipped,
    a_host_killed_while_both_versions_stand_appends_each_entry_once: Appends at Holding,
    a_host_killed_before_its_flip_is_committed_appends_each_entry_once: Appends at Flipping,
    a_host_killed_after_its_flip_is_committed_appends_each_entry_once: Appends at Flipped,
}
