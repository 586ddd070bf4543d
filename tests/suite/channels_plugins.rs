//! Claims about processors and channels: what they append with their commits, and entries as what they are given.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod components;
mod hosted;
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use answers::Answers;
use bytes::Bytes;
use millrace::backends::memory::MemoryChannels;
use millrace::backends::sqlite::{CommitStep, LogPlace, SqliteOptions, SqliteStore, StepObserver};
use millrace::channels::{
    Actor, Append, Change, ChannelError, ChannelId, ChannelLimits, ChannelName, ChannelOptions, ChannelStore,
    EntryType, NewChannel, NewEntry, NewProcess, Notice, Party, ProcessId, ProcessName, ReadLimit, Router,
};
use millrace::checkpoints::{CheckpointStore, CommitError};
use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::event::{Position, TenantId};
use millrace::processors::{
    Expect, ProcessorFactory, ProcessorSettings, Resolved, Runner, ShadowSettings, Verdict,
};
use millrace::streams::{EventLog, PageLimit};
use millrace_guest as sdk;
use millrace_tests::conformance::appends;
use millrace_tests::conformance::effects::{Effects, commit, task};
use millrace_tests::native::Native;
use millrace_tests::scene::{Scene, counts, scripted, tenant_id};
use millrace_tests::scripted::Watch;
use millrace_tests::until;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::crash_points::{copy_store, settings, to_the_end};

fn process(name: &str) -> ProcessId {
    ProcessId { tenant: tenant_id("a"), name: ProcessName::new(name).unwrap() }
}

fn channel(process_name: &str, name: &str) -> ChannelId {
    ChannelId { process: process(process_name), name: ChannelName::new(name).unwrap() }
}

fn party(name: &str) -> Party {
    Party::new(name).unwrap()
}

/// A process of `ada`, with channels of which some have events.
async fn make(store: &SqliteStore, tenant: &TenantId, name: &str, executor: &str, channels: &[(&str, bool)]) {
    let new = NewProcess {
        id: ProcessId { tenant: tenant.clone(), name: ProcessName::new(name).unwrap() },
        submitter: party("ada"),
        executor: Some(party(executor)),
        observers: Vec::new(),
        channels: channels
            .iter()
            .map(|(name, events)| NewChannel {
                name: ChannelName::new(name).unwrap(),
                options: ChannelOptions { events: *events, ..ChannelOptions::default() },
            })
            .collect(),
    };
    assert!(store.create(new).await.unwrap().1);
}

/// What `ada` sends.
async fn send(
    store: &SqliteStore,
    id: &ChannelId,
    entry_type: EntryType,
    text: &str,
) -> Result<(), ChannelError> {
    let payload = Some(Bytes::copy_from_slice(text.as_bytes()));
    let entry = NewEntry { payload, entry_type, ..NewEntry::default() };
    let append = Append { who: party("ada"), epoch: None, entries: vec![entry] };
    ChannelStore::append(store, id, append).await.map(drop)
}

/// Sender, number, type and text of each entry, in order; the places are checked on the way.
async fn told(store: &SqliteStore, id: &ChannelId) -> Vec<(String, u64, EntryType, String)> {
    let limit = ReadLimit { entries: 10_000, bytes: 64 << 20 };
    let page = ChannelStore::read(store, id, Position::START, limit).await.unwrap();
    assert!(page.entries.iter().zip(1..).all(|(entry, place)| entry.position == Position(place)));
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
    let one = page.entries.iter().map(|entry| {
        let payload = text(entry.payload.as_deref());
        (entry.sender.to_string(), entry.sequence, entry.entry_type, payload)
    });
    one.collect()
}

async fn texts(store: &SqliteStore, id: &ChannelId) -> Vec<String> {
    told(store, id).await.into_iter().map(|entry| entry.3).collect()
}

/// The events of channels, by channel: position there, depth and what is said, without the host's own times.
async fn events(store: &SqliteStore) -> BTreeMap<String, Vec<(u64, u32, Value)>> {
    let limit = PageLimit { events: 10_000, bytes: 64 << 20 };
    let page = EventLog::read(store, &tenant_id("a"), Position::START, limit).await.unwrap();
    let mut events: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for event in page.events.iter().filter(|event| event.aggregate == "channel") {
        let said = serde_json::from_slice(event.payload).unwrap();
        events.entry(event.agg_id.to_owned()).or_default().push((event.version, event.depth, said));
    }
    events
}

/// Says on `out…` what is said on `in…`, and on `loop` what is said there.
#[derive(Debug)]
struct Echo;

impl sdk::Processor for Echo {
    fn manifest() -> sdk::Manifest {
        sdk::Manifest::new("echo", "1.0.0").types(&["channel.data"]).grants(&["channels"])
    }

    fn load(_: sdk::Context, _: Option<sdk::Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: sdk::Event<'_>, out: &mut sdk::Effects) -> Result<(), sdk::Failure> {
        let entry = event.payload_as::<sdk::ChannelEntry>()?;
        let to = match entry.channel.strip_prefix("in") {
            Some(rest) => format!("out{rest}"),
            None if entry.channel == "loop" => entry.channel.to_string(),
            None => return Ok(()),
        };
        out.append(&entry.process, &to, &sdk::NewEntry::text(entry.text.as_deref().unwrap_or_default()))
    }
}

fn run<P: sdk::Processor + Send>(scene: &Scene, settings: ProcessorSettings) -> Runner {
    Runner::start(&scene.engine, Arc::new(Native::<P>::new()), settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_a_processors_input_in_the_order_of_their_channel() {
    let scene = Scene::new().await;
    let channels: Vec<_> =
        (0..4).flat_map(|n| [(format!("in-{n}"), true), (format!("out-{n}"), false)]).collect();
    let channels: Vec<_> = channels.iter().map(|(name, events)| (name.as_str(), *events)).collect();
    make(&scene.store, &tenant_id("a"), "p", "plugin:echo", &channels).await;
    let mut expected: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut runner = None;
    for n in 0..60 {
        if n == 30 {
            // What was said before it runs it is given, too.
            runner =
                Some(run::<Echo>(&scene, ProcessorSettings { lanes: 4, ..ProcessorSettings::default() }));
        }
        let of = n * n % 4;
        let text = format!("{n}");
        send(&scene.store, &channel("p", &format!("in-{of}")), EntryType::Data, &text).await.unwrap();
        expected.entry(of).or_default().push(text);
    }
    let runner = runner.unwrap();
    scene.done(&runner, scene.last()).await;
    for (of, expected) in expected {
        assert_eq!(texts(&scene.store, &channel("p", &format!("out-{of}"))).await, expected);
    }
    let first = &told(&scene.store, &channel("p", "out-0")).await[0];
    assert_eq!((first.0.as_str(), first.1), ("plugin:echo", 1));
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_that_answers_itself_comes_to_an_end() {
    let scene = Scene::new().await;
    make(&scene.store, &tenant_id("a"), "p", "plugin:echo", &[("loop", true)]).await;
    let runner = run::<Echo>(&scene, ProcessorSettings::default());
    send(&scene.store, &channel("p", "loop"), EntryType::Data, "x").await.unwrap();
    until("the chain has ended", || runner.status().counts.dead_letters == 1).await;
    until("the letter is there", || runner.status().tasks.iter().any(|task| task.held_keys == 1)).await;
    let letters = scene.store.dead_letters("echo", None, 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "refused"));
    assert!(letters[0].message.contains("causation_depth_max is 16"), "{}", letters[0].message);
    let depths: Vec<u32> = events(&scene.store).await["p_loop"].iter().map(|event| event.1).collect();
    assert_eq!(depths, (0..=16).collect::<Vec<_>>());
    assert_eq!(told(&scene.store, &channel("p", "loop")).await.len(), 17);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sample_answers_each_request_once_and_ends_with_its_asker() {
    let scene = Scene::new().await;
    make(&scene.store, &tenant_id("a"), "p", "plugin:answers", &[("requests", true), ("answers", true)])
        .await;
    make(&scene.store, &tenant_id("a"), "q", "plugin:other", &[("requests", true), ("answers", false)]).await;
    let requests = channel("p", "requests");
    send(&scene.store, &requests, EntryType::Data, "Hello mill").await.unwrap();
    send(&scene.store, &channel("q", "requests"), EntryType::Data, "not for it").await.unwrap();
    let runner = run::<Answers>(&scene, ProcessorSettings::default());
    scene.done(&runner, scene.last()).await;
    send(&scene.store, &requests, EntryType::Data, "and again and again").await.unwrap();
    send(&scene.store, &requests, EntryType::End, "").await.unwrap();
    scene.done(&runner, scene.last()).await;
    let answers = told(&scene.store, &channel("p", "answers")).await;
    assert!(answers.iter().zip(1..).all(|(entry, n)| entry.0 == "plugin:answers" && entry.1 == n));
    let text: String = answers.iter().map(|entry| entry.3.as_str()).collect();
    assert_eq!(
        text,
        "I read 2 words with 9 letters. The longest is “hello”.\n\
         I read 4 words with 16 letters. The longest is “again”. You said “again” 2 times and “and” 2 times.\n"
    );
    assert!(answers.len() > 20, "an answer comes in pieces");
    assert_eq!(answers.last().map(|entry| entry.2), Some(EntryType::End));
    assert!(answers[..answers.len() - 1].iter().all(|entry| entry.2 == EntryType::Data));
    assert!(told(&scene.store, &channel("q", "answers")).await.is_empty());
    assert!(scene.store.dead_letters("answers", None, 10).await.unwrap().is_empty());
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_append_is_a_dead_letter_that_can_be_replayed_when_its_cause_is_gone() {
    let scene = Scene::new().await;
    make(&scene.store, &tenant_id("a"), "p", "plugin:other", &[("c", false)]).await;
    scene.store.change(&process("p"), Actor::Host, Change::Unassign).await.unwrap();
    let append = r#"{"text":"once"}"#;
    let last = scene.publish("a", &[("x", "append", append), ("y", "add", "1"), ("x", "add", "1")]).await;
    let settings = ProcessorSettings { retries_max: 0, ..ProcessorSettings::default() };
    let (runner, _) = scene.start(scripted(), settings);
    until("the key is held", || {
        let status = runner.status();
        status.done_through >= last && status.tasks.iter().any(|task| task.held_keys == 1)
    })
    .await;
    assert_eq!(scene.counts("a").await, counts(&[("y", 1)]), "its neighbour goes on, its follower waits");
    let letter = scene.dead().await.pop().unwrap();
    assert_eq!((letter.reason.as_str(), letter.event.get(0).agg_id), ("refused", "x"));
    assert!(
        letter.message.starts_with("append to channel `c` of process `p`: channel_forbidden: unauthorized"),
        "{}",
        letter.message
    );
    let again = runner.resolve(letter, Verdict::Replay).await.unwrap();
    let Resolved::FailedAgain { reason, message } = again else { panic!("{again:?}") };
    assert!(reason == "refused" && message.contains("channel_forbidden"), "{message}");
    assert!(told(&scene.store, &channel("p", "c")).await.is_empty());

    let assign = Change::Assign(party("plugin:scripted"));
    scene.store.change(&process("p"), Actor::Party(party("ada")), assign).await.unwrap();
    let letter = scene.dead().await.pop().unwrap();
    let done = runner.resolve(letter, Verdict::Replay).await.unwrap();
    assert_eq!(done, Resolved::Replayed { out_of_order: false, released: 1 });
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1)]));
    let expected = [("plugin:scripted".to_owned(), 1, EntryType::Data, "once".to_owned())];
    assert_eq!(told(&scene.store, &channel("p", "c")).await, expected);
    assert!(scene.dead().await.is_empty());
    assert!(runner.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_in_the_shadow_appends_nothing_and_is_compared() {
    let scene = Scene::new().await;
    make(&scene.store, &tenant_id("a"), "p", "plugin:scripted", &[("c", true)]).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    let payloads: Vec<_> = (0..60).map(|n| format!(r#"{{"text":"{n}"}}"#)).collect();
    let each: Vec<_> = payloads.iter().map(|payload| ("x", "append", payload.as_str())).collect();
    scene.publish("a", &each).await;
    scene.done(&runner, scene.last()).await;
    let mut candidate = scripted();
    candidate.digest = "candidate".into();
    let candidate: Arc<dyn ProcessorFactory> = Arc::new(candidate);
    let settings = ShadowSettings {
        events: 40,
        time: Duration::from_millis(20),
        time_max: Duration::from_secs(30),
        // What is claimed here is not how fast it is.
        time_ratio_max: 10_000,
        expect: Expect::IdenticalRows,
        ..ShadowSettings::default()
    };
    let outcome = runner.shadow(&candidate, &settings, &CancellationToken::new()).await;
    assert!(outcome.refusal.is_none(), "{:?}", outcome.refusal);
    let appended = outcome.report.appended;
    assert!(appended.same >= 40 && !appended.any(), "{appended:?}");
    let expected: Vec<_> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(texts(&scene.store, &channel("p", "c")).await, expected);
    assert_eq!(events(&scene.store).await["p_c"].len(), 60);
    assert!(runner.stop(Duration::from_secs(20)).await);
}

/// Three commits and a client's append in one transaction, of which the second commit is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_append_in_a_shared_transaction_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (held, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (holds, count) = (Arc::clone(&held), Arc::clone(&synced));
    let observer = StepObserver(Arc::new(move |step| match step {
        CommitStep::Begun => {
            while holds.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        CommitStep::Synced => {
            count.fetch_add(1, Ordering::SeqCst);
        }
        _ => {}
    }));
    let options = SqliteOptions { observer: Some(observer), ..SqliteOptions::new(dir.path()) };
    let store = SqliteStore::open(options).unwrap();
    let channels: Arc<dyn ChannelStore> = Arc::new(store.clone());
    let plain = ChannelOptions::default();
    appends::make(&channels, "p", &[("c", plain.clone()), ("d", appends::with_events())]).await;
    let id = appends::channel("p", "c");
    let router = Router::new(Arc::clone(&channels));
    let mut follower = router.subscribe(&id, &Actor::Host, 0).await.unwrap();
    assert!(matches!(follower.next(10).await.unwrap(), Some(Notice::Ready { .. })));
    let mut commits = Vec::new();
    for lane in 0..3_u32 {
        let task = task("board", "acme", lane);
        let generation = store.claim(&task).await.unwrap().0;
        let mut effects = Effects::default();
        effects.append("p", "c", &lane.to_string()).append("p", "d", &lane.to_string());
        if lane == 1 {
            effects.append("p", "c", "x").replying_to(9);
        }
        commits.push(commit(&task, generation, 1, &[], &mut effects));
    }
    held.store(true, Ordering::SeqCst);
    let before = synced.load(Ordering::SeqCst);
    let answers: Vec<_> = commits.into_iter().map(|commit| CheckpointStore::commit(&store, commit)).collect();
    let asked = NewEntry { payload: Some("client".into()), ..NewEntry::default() };
    let by_client = Append { who: appends::party("ada"), epoch: None, entries: vec![asked] };
    let by_client = channels.append(&id, by_client);
    held.store(false, Ordering::SeqCst);
    let mut done = Vec::new();
    for answer in answers {
        done.push(answer.await);
    }
    assert_eq!(by_client.await.unwrap()[0].position, Position(3));
    assert_eq!(synced.load(Ordering::SeqCst) - before, 1, "they shared a transaction");
    assert!(done[0].is_ok() && done[2].is_ok(), "{done:?}");
    assert!(matches!(&done[1], Err(CommitError::Refused { .. })), "{done:?}");
    let expected = ["0", "2", "client"];
    let Some(Notice::Entries(seen)) = follower.next(10).await.unwrap() else { panic!("it follows") };
    let seen: Vec<_> = seen.iter().map(|entry| entry.payload.clone().unwrap()).collect();
    assert_eq!(seen, expected);
    store.close().await;
    drop((follower, router, channels, store));
    // The records are what the entries say.
    let store = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
    let channels: Arc<dyn ChannelStore> = Arc::new(store);
    assert_eq!(appends::texts(&channels, &id).await, expected);
    assert_eq!(appends::texts(&channels, &appends::channel("p", "d")).await, ["0", "2"]);
    let head = channels.head(&id).await.unwrap();
    assert_eq!((head.channel.newest, head.channel.bytes), (Position(3), 8));
    let numbers: Vec<_> = head.channel.senders.iter().map(|s| (s.party.to_string(), s.last)).collect();
    assert_eq!(numbers, [("plugin:board".to_owned(), 2), ("ada".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_log_lies_elsewhere_what_is_appended_waits_to_be_carried_and_no_entry_is_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { log: LogPlace::Elsewhere, ..SqliteOptions::new(dir.path()) };
    let store = SqliteStore::open(options).unwrap();
    let memory = MemoryChannels::new(
        ChannelLimits { events: true, ..ChannelLimits::default() },
        Arc::new(SystemClock),
    );
    let stores: [Arc<dyn ChannelStore>; 2] = [Arc::new(store.clone()), Arc::new(memory)];
    for channels in stores {
        appends::make(&channels, "p", &[("c", ChannelOptions::default())]).await;
        let channel = NewChannel { name: ChannelName::new("d").unwrap(), options: appends::with_events() };
        let add = Change::AddChannel { channel, exists_ok: false };
        let refused = channels.change(&appends::process("p"), Actor::Host, add).await.unwrap_err();
        assert_eq!(refused.code(), "channel_option_invalid");
        assert!(
            refused.to_string().starts_with("events is true; it needs a store that has the log"),
            "{refused}"
        );
    }
    let task = task("board", "acme", 0);
    let generation = store.claim(&task).await.unwrap().0;
    let mut effects = Effects::default();
    let whole = commit(&task, generation, 1, &[], effects.emit("e", 1, "{}").append("p", "c", "x"));
    CheckpointStore::commit(&store, whole).await.unwrap();
    assert_eq!(millrace::checkpoints::Outbox::len(&store), 2);
    let id = appends::channel("p", "c");
    assert_eq!(store.head(&id).await.unwrap().channel.newest, Position::START, "it is not of this store");
}

/// What a run leaves in channels and of them in the log.
#[derive(Debug, PartialEq)]
struct Left {
    entries: BTreeMap<String, Vec<(String, u64, EntryType, String)>>,
    events: BTreeMap<String, Vec<(u64, u32, Value)>>,
}

const KEYS: [&str; 5] = ["v", "w", "x", "y", "z"];

async fn left(store: &SqliteStore) -> Left {
    let mut entries = BTreeMap::new();
    for key in KEYS {
        entries.insert(key.to_owned(), told(store, &channel("p", key)).await);
    }
    Left { entries, events: events(store).await }
}

/// The store as it ends, with a copy of it made when this step is passed for so many times. Each key appends to the
/// channel of its own name; a retry, a rejected event, a trap, a refused append and one that is
/// left out are in play.
async fn undisturbed(step: CommitStep, times: usize, copy_to: &Path) -> Left {
    let (begun, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (counts_now, count, copy) = (Arc::clone(&begun), Arc::clone(&passed), copy_to.to_owned());
    let from: Arc<Mutex<PathBuf>> = Arc::default();
    let source = Arc::clone(&from);
    let observer = StepObserver(Arc::new(move |at| {
        let counted = at == step && counts_now.load(Ordering::SeqCst);
        if counted && count.fetch_add(1, Ordering::SeqCst) + 1 == times {
            copy_store(&source.lock().expect("test"), &copy);
        }
    }));
    let options = |options: SqliteOptions| {
        from.lock().expect("test").clone_from(&options.dir);
        SqliteOptions { observer: Some(observer), ..options }
    };
    let scene = Scene::with(options, |store| store).await;
    let channels: Vec<_> = KEYS.iter().map(|key| (*key, matches!(*key, "x" | "y"))).collect();
    make(&scene.store, &tenant_id("a"), "p", "plugin:scripted", &channels).await;
    let to = |key: &str, more: &str| format!(r#"{{"channel":"{key}"{more}}}"#);
    let (one, two) = (r#","text":"1""#, r#","text":"2""#);
    let said = [
        ("x", "append", to("x", one)),
        ("y", "append", to("y", r#","text":"1","times":3"#)),
        ("x", "retry", "1".to_owned()),
        ("x", "append", to("x", two)),
        ("z", "reject", "1".to_owned()),
        ("z", "append", to("z", one)),
        ("w", "trap", "1".to_owned()),
        ("w", "append", to("w", one)),
        ("v", "append", to("v", r#","text":"0","reply":9"#)),
        ("v", "append", to("missing", one)),
        ("v", "append", to("v", one)),
        ("y", "append", to("y", r#","type":"end""#)),
    ];
    let each: Vec<_> = said.iter().map(|(key, of, payload)| (*key, *of, payload.as_str())).collect();
    scene.publish("a", &each).await;
    begun.store(true, Ordering::SeqCst);
    let (runner, _) = scene.start(scripted(), settings());
    to_the_end(&scene, &runner).await;
    assert!(runner.stop(Duration::from_secs(20)).await);
    assert!(passed.load(Ordering::SeqCst) >= times, "{step:?} was passed {passed:?} times");
    let left = left(&scene.store).await;
    scene.close().await;
    left
}

async fn go_on(dir: &Path) -> Left {
    let scene = Scene::on(SqliteStore::open(SqliteOptions::new(dir)).unwrap());
    let watch: Arc<Watch> = Arc::default();
    let runner = scene.start_again(&watch, 1, settings());
    to_the_end(&scene, &runner).await;
    assert!(runner.stop(Duration::from_secs(20)).await);
    let left = left(&scene.store).await;
    scene.close().await;
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_ends_at_any_step_of_a_commit_has_appended_everything_once() {
    for step in CommitStep::ALL {
        for times in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let undisturbed = undisturbed(step, times, dir.path()).await;
            let texts = |key: &str| {
                let of = undisturbed.entries[key].iter();
                of.map(|entry| entry.3.clone()).collect::<Vec<_>>()
            };
            assert_eq!([texts("v"), texts("w"), texts("z")], [["1"], ["1"], ["1"]]);
            assert_eq!((texts("x").join(","), texts("y").join(",")), ("1,2".into(), "1,1,1,".into()));
            assert_eq!(undisturbed.events["p_x"].len() + undisturbed.events["p_y"].len(), 6);
            assert_eq!(undisturbed, go_on(dir.path()).await, "cut at {step:?}, number {times}");
        }
    }
}
