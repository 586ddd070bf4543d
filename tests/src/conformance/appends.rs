//! What a store that has channels beside its checkpoints must do with what commits append, and with entries that are
//! events, too.

use std::sync::Arc;

use bytes::Bytes;
use millrace::channels::{
    Actor, Append, Change, ChannelError, ChannelId, ChannelName, ChannelOptions, ChannelStore, EntryType,
    Gaps, NewChannel, NewEntry, NewProcess, Notice, Outcome, Party, ProcessId, ProcessName, ReadLimit,
    Router,
};
use millrace::checkpoints::{CommitError, Committed, Generation, TaskId};
use millrace::error::Classify;
use millrace::event::{Event, EventBatch, Position};
use millrace::limits::{CAUSATION_DEPTH_MAX, CHANNEL_EVENT_PAYLOAD_BYTES_MAX};
use millrace::tables::Cell;
use serde_json::{Value, json};

use super::Seams;
use super::checkpoints::claim;
use super::effects::{Effects, commit, table, task, tenant};
use super::event_log::ALL;

/// The seams of one store that has channels, too.
#[derive(Clone, Debug)]
pub struct ChannelSeams {
    pub seams: Seams,
    pub channels: Arc<dyn ChannelStore>,
}

/// Where an entry lies, of whom it is, in which epoch, under which number, of which type, and its payload as text.
pub type Told = (u64, String, u32, u64, EntryType, String);

pub fn party(name: &str) -> Party {
    Party::new(name).expect("the test's party has a good name")
}

pub fn process(name: &str) -> ProcessId {
    ProcessId { tenant: tenant("acme"), name: ProcessName::new(name).expect("a good name") }
}

pub fn channel(process_name: &str, name: &str) -> ChannelId {
    ChannelId { process: process(process_name), name: ChannelName::new(name).expect("a good name") }
}

pub fn with_events() -> ChannelOptions {
    ChannelOptions { events: true, ..ChannelOptions::default() }
}

/// A process of `ada` that the plugin `board` executes.
pub async fn make(channels: &Arc<dyn ChannelStore>, name: &str, of: &[(&str, ChannelOptions)]) {
    let new = NewProcess {
        id: process(name),
        submitter: party("ada"),
        executor: Some(party("plugin:board")),
        observers: vec![party("olga")],
        channels: of
            .iter()
            .map(|(name, options)| NewChannel {
                name: ChannelName::new(name).expect("a good name"),
                options: options.clone(),
            })
            .collect(),
    };
    let (_, created) = channels.create(new).await.expect("a process can be made");
    assert!(created);
}

pub async fn entries(channels: &Arc<dyn ChannelStore>, id: &ChannelId) -> Vec<Told> {
    let limit = ReadLimit { entries: 10_000, bytes: 64 << 20 };
    let page = channels.read(id, Position::START, limit).await.expect("a channel can be read");
    let told = page.entries.iter().map(|entry| {
        let text = String::from_utf8_lossy(entry.payload.as_deref().unwrap_or_default()).into_owned();
        let sender = entry.sender.to_string();
        (entry.position.0, sender, entry.epoch, entry.sequence, entry.entry_type, text)
    });
    told.collect()
}

/// The texts alone, in order.
pub async fn texts(channels: &Arc<dyn ChannelStore>, id: &ChannelId) -> Vec<String> {
    entries(channels, id).await.into_iter().map(|told| told.5).collect()
}

/// What `ada` sends.
pub async fn send(channels: &Arc<dyn ChannelStore>, id: &ChannelId, text: &str) -> Result<u64, ChannelError> {
    let payload = Some(Bytes::copy_from_slice(text.as_bytes()));
    let entry = NewEntry { payload, ..NewEntry::default() };
    let append = Append { who: party("ada"), epoch: None, entries: vec![entry] };
    channels.append(id, append).await.map(|appended| appended[0].position.0)
}

impl ChannelSeams {
    async fn make(&self, name: &str, of: &[(&str, ChannelOptions)]) {
        make(&self.channels, name, of).await;
    }

    async fn commit(
        &self,
        of: (&TaskId, Generation),
        position: u64,
        effects: &mut Effects,
    ) -> Result<Committed, CommitError> {
        self.seams.checkpoints.commit(commit(of.0, of.1, position, &[], effects)).await
    }

    /// A claimed task of `board`.
    async fn board(&self) -> (TaskId, Generation) {
        let task = task("board", "acme", 0);
        let generation = claim(&self.seams, &task).await;
        (task, generation)
    }

    /// The events of channels, oldest first: type, position in the channel, depth, id and payload.
    async fn events(&self) -> Vec<(String, u64, u32, String, Value)> {
        let page = self.seams.log.read(&tenant("acme"), Position::START, ALL).await.unwrap();
        let told = page.events.iter().filter(|event| event.aggregate == "channel").map(|event| {
            let payload = serde_json::from_slice(event.payload).unwrap();
            let (kind, id) = (event.event_type.to_owned(), event.id.to_owned());
            (kind, event.version, event.depth, id, payload)
        });
        told.collect()
    }
}

fn plain() -> ChannelOptions {
    ChannelOptions::default()
}

pub async fn appends_commit_with_the_position_and_in_order(seams: ChannelSeams) {
    seams.make("p", &[("c", plain()), ("d", plain())]).await;
    let (task, generation) = seams.board().await;
    send(&seams.channels, &channel("p", "c"), "ask").await.unwrap();
    let mut effects = Effects::default();
    effects.append("p", "c", "one").append("p", "d", "other").append("p", "c", "two").replying_to(1);
    seams.commit((&task, generation), 4, &mut effects).await.unwrap();
    let mut effects = Effects::default();
    effects.append("p", "c", "").append_of_type("end", "p", "c", "bye");
    seams.commit((&task, generation), 5, &mut effects).await.unwrap();
    let board = || "plugin:board".to_owned();
    let data = EntryType::Data;
    assert_eq!(
        entries(&seams.channels, &channel("p", "c")).await,
        [
            (1, "ada".to_owned(), 0, 1, data, "ask".to_owned()),
            (2, board(), 1, 1, data, "one".to_owned()),
            (3, board(), 1, 2, data, "two".to_owned()),
            (4, board(), 1, 3, data, String::new()),
            (5, board(), 1, 4, EntryType::End, "bye".to_owned()),
        ]
    );
    assert_eq!(texts(&seams.channels, &channel("p", "d")).await, ["other"]);
    let limit = ReadLimit { entries: 10, bytes: 1 << 20 };
    let page = seams.channels.read(&channel("p", "c"), Position(2), limit).await.unwrap();
    assert_eq!(page.entries[0].in_reply_to, Some(1));
    let tasks = seams.seams.checkpoints.tasks(Some("board")).await.unwrap();
    assert_eq!(tasks[0].position, Position(5));
}

pub async fn a_refused_append_leaves_nothing_of_its_commit(seams: ChannelSeams) {
    seams.make("p", &[("c", plain()), ("e", with_events())]).await;
    let tables = [table("rows", false)];
    seams.seams.tables.declare("board", &tables).await.unwrap();
    let (task, generation) = seams.board().await;
    let router = Router::new(Arc::clone(&seams.channels));
    let mut follower = router.subscribe(&channel("p", "c"), &Actor::Host, 0).await.unwrap();
    assert!(matches!(follower.next(10).await.unwrap(), Some(Notice::Ready { .. })));
    let mut effects = Effects::default();
    let cells = [Cell::Int(1), Cell::Text("x")];
    effects.put("k", 0, &cells).emit("e", 1, "{}").append("p", "c", "never").append("p", "e", "never");
    effects.append("p", "c", "x").replying_to(9);
    let whole = commit(&task, generation, 4, &tables, &mut effects);
    let refused = seams.seams.checkpoints.commit(whole).await;
    let Err(CommitError::Refused { reason, .. }) = &refused else { panic!("{refused:?}") };
    assert!(
        reason.starts_with("append to channel `c` of process `p`: channel_reply_unknown: no other sender"),
        "{reason}"
    );
    assert!(seams.seams.tables.get(&task.tenant, "rows", "k").await.unwrap().1.is_none());
    assert!(seams.seams.log.read(&task.tenant, Position::START, ALL).await.unwrap().events.is_empty());
    for name in ["c", "e"] {
        assert!(entries(&seams.channels, &channel("p", name)).await.is_empty());
        let head = seams.channels.head(&channel("p", name)).await.unwrap();
        assert_eq!((head.channel.newest, head.channel.bytes), (Position::START, 0));
        assert!(head.channel.senders.is_empty());
    }
    // Numbers and places go on as if it had never been.
    seams.commit((&task, generation), 4, Effects::default().append("p", "c", "first")).await.unwrap();
    let told = entries(&seams.channels, &channel("p", "c")).await;
    assert_eq!(told, [(1, "plugin:board".to_owned(), 1, 1, EntryType::Data, "first".to_owned())]);
    let Some(Notice::Entries(seen)) = follower.next(10).await.unwrap() else { panic!("it follows") };
    assert_eq!(seen.iter().map(|entry| entry.position.0).collect::<Vec<_>>(), [1]);
    assert_eq!(seen[0].payload.as_deref(), Some(&b"first"[..]));
}

/// Commits that arrive together may share a transaction; one that is refused does not disturb the others.
pub async fn neighbours_of_a_refused_append_go_on(seams: ChannelSeams) {
    seams.make("p", &[("c", plain()), ("d", with_events())]).await;
    let mut tasks = Vec::new();
    for lane in 0..3 {
        let task = task("board", "acme", lane);
        tasks.push((claim(&seams.seams, &task).await, task));
    }
    for round in 1..=40 {
        let begun: Vec<_> = tasks
            .iter()
            .enumerate()
            .map(|(lane, (generation, task))| {
                let mut effects = Effects::default();
                let text = format!("{round}.{lane}");
                effects.append("p", "c", &text).append("p", "d", &text);
                if lane == 1 {
                    effects.append("p", "c", "x").replying_to(9);
                }
                let whole = commit(task, *generation, round, &[], &mut effects);
                seams.seams.checkpoints.commit(whole)
            })
            .collect();
        let mut done = Vec::new();
        for answer in begun {
            done.push(answer.await.is_ok());
        }
        assert_eq!(done, [true, false, true]);
    }
    let expected: Vec<String> =
        (1..=40).flat_map(|round| [format!("{round}.0"), format!("{round}.2")]).collect();
    for name in ["c", "d"] {
        let told = entries(&seams.channels, &channel("p", name)).await;
        assert_eq!(told.iter().map(|told| told.5.clone()).collect::<Vec<_>>(), expected);
        assert!(told.iter().zip(1..).all(|(told, place)| (told.0, told.3) == (place, place)), "{told:?}");
    }
    let events = seams.events().await;
    let said: Vec<_> = events.iter().map(|event| event.4["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(said, expected);
    assert!(events.iter().zip(1..).all(|(event, place)| event.1 == place));
}

/// Processes that `board` cannot append to: of its former life, somebody else's, closed, and of nobody; and `p`, to whose
/// channel `small` no data fits any more.
async fn make_obstacles(seams: &ChannelSeams, of: (&TaskId, Generation)) {
    let small = ChannelOptions { entries_max: 1, ..plain() };
    seams.make("p", &[("c", plain()), ("d", plain()), ("small", small), ("events", with_events())]).await;
    for name in ["closed", "other", "former", "nobody", "closed-and-nobody"] {
        seams.make(name, &[("c", plain())]).await;
    }
    let mut effects = Effects::default();
    effects.append("p", "small", "fills it").append("former", "c", "mine");
    seams.commit(of, 1, &mut effects).await.unwrap();
    for name in ["nobody", "closed-and-nobody"] {
        seams.channels.change(&process(name), Actor::Host, Change::Unassign).await.unwrap();
    }
    for name in ["closed", "closed-and-nobody"] {
        let close = Change::Close { outcome: Outcome::Success, reason: String::new() };
        seams.channels.change(&process(name), Actor::Host, close).await.unwrap();
    }
    for name in ["other", "former"] {
        let assign = Change::Assign(party("plugin:other"));
        seams.channels.change(&process(name), Actor::Host, assign).await.unwrap();
    }
    let observes = Change::Observe(vec![party("plugin:watcher")]);
    seams.channels.change(&process("other"), Actor::Host, observes).await.unwrap();
}

pub async fn an_entry_that_nobody_takes_is_left_out_of_its_commit(seams: ChannelSeams) {
    let (task, generation) = seams.board().await;
    make_obstacles(&seams, (&task, generation)).await;
    let mut position = 1;
    for (process, channel, code, says) in [
        ("none", "c", "channel_unknown", "process `none` has no channel"),
        ("p", "none", "channel_unknown", "has no channel `none`"),
        ("other", "c", "channel_forbidden", "`plugin:board` is neither"),
        ("closed-and-nobody", "c", "channel_forbidden", "`plugin:board` is neither"),
        ("former", "c", "channel_access_revoked", "epoch 1"),
        ("closed", "c", "process_closed", "process `closed` is closed"),
    ] {
        position += 1;
        let mut effects = Effects::default();
        effects.append("p", "c", "before").append(process, channel, "x").append("p", "c", "after");
        effects.append(process, channel, "y");
        let done = seams.commit((&task, generation), position, &mut effects).await.unwrap();
        let counts: Vec<_> = done.dropped.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts.len(), 1, "{process}: {counts:?}");
        assert_eq!((counts[0].0.code(), counts[0].1), (code, 2), "{process}");
        let first = done.dropped.first().unwrap();
        let whole = format!("append to channel `{channel}` of process `{process}`: {code}: ");
        assert!(first.starts_with(&whole) && first.contains(says), "{first}");
    }
    let told = texts(&seams.channels, &channel("p", "c")).await;
    assert_eq!(told, ["before", "after"].repeat(6));
    for name in ["closed", "closed-and-nobody", "other"] {
        assert!(entries(&seams.channels, &channel(name, "c")).await.is_empty());
    }
    assert_eq!(texts(&seams.channels, &channel("former", "c")).await, ["mine"]);
    // What follows on an end of its own is left out, and the end stays.
    let mut ended = Effects::default();
    ended.append("p", "d", "last").append_of_type("end", "p", "d", "").append("p", "d", "x");
    let done = seams.commit((&task, generation), 9, &mut ended).await.unwrap();
    assert!(
        done.dropped.first().unwrap().contains(": channel_half_closed: `plugin:board` has ended its half")
    );
    assert_eq!(texts(&seams.channels, &channel("p", "d")).await, ["last", ""]);
    // Who only observes may not append, whatever its name.
    let watcher = TaskId { processor: "watcher".into(), ..task.clone() };
    let held = claim(&seams.seams, &watcher).await;
    let done = seams.commit((&watcher, held), 1, Effects::default().append("other", "c", "x")).await.unwrap();
    assert!(done.dropped.first().unwrap().contains("only as its submitter or executor"));
    let tasks = seams.seams.checkpoints.tasks(Some("board")).await.unwrap();
    assert_eq!(tasks[0].position, Position(9), "all else of the commits is there");
}

pub async fn an_entry_that_is_refused_says_whether_it_may_be_taken_later(seams: ChannelSeams) {
    let (task, generation) = seams.board().await;
    make_obstacles(&seams, (&task, generation)).await;
    let mut cases: Vec<(bool, &str, &str, Effects)> = Vec::new();
    let mut case = |later, code, says, effects: &mut Effects| {
        cases.push((later, code, says, std::mem::take(effects)));
    };
    case(true, "channel_full", "channel log is full", Effects::default().append("p", "small", "x"));
    case(true, "channel_forbidden", "is neither", Effects::default().append("nobody", "c", "x"));
    let mut reply = Effects::default();
    case(false, "channel_reply_unknown", "sequence 9", reply.append("p", "c", "x").replying_to(9));
    let over = "x".repeat(CHANNEL_EVENT_PAYLOAD_BYTES_MAX + 1);
    let mut large = Effects::default();
    case(false, "channel_event_payload_bytes_max", "is 122880", large.append("p", "events", &over));
    for (later, code, says, mut effects) in cases {
        effects.append("p", "c", "x");
        let refused = seams.commit((&task, generation), 2, &mut effects).await.unwrap_err();
        assert_eq!(refused.code(), "effects_refused");
        let (passes, reason) = match &refused {
            CommitError::Refused { reason, .. } => (false, reason),
            CommitError::NotNow { reason, .. } => (true, reason),
            other => panic!("{code}: {other:?}"),
        };
        assert_eq!(passes, later, "{code}");
        assert!(reason.contains(&format!(": {code}: ")) && reason.contains(says), "{code}: {reason}");
    }
    assert!(entries(&seams.channels, &channel("p", "c")).await.is_empty());
    // There is always room for the end.
    let mut end = Effects::default();
    seams.commit((&task, generation), 2, end.append_of_type("end", "p", "small", "")).await.unwrap();
}

pub async fn another_tenants_process_is_out_of_reach(seams: ChannelSeams) {
    seams.make("p", &[("c", plain())]).await;
    let stranger = task("board", "beta", 0);
    let generation = claim(&seams.seams, &stranger).await;
    let done = seams.commit((&stranger, generation), 1, Effects::default().append("p", "c", "x")).await;
    assert!(done.unwrap().dropped.first().unwrap().contains("channel_unknown"));
    assert!(entries(&seams.channels, &channel("p", "c")).await.is_empty());
}

pub async fn an_assignment_begins_an_epoch_and_its_numbers(seams: ChannelSeams) {
    seams.make("p", &[("c", ChannelOptions { gaps: Gaps::Report, ..plain() })]).await;
    let (task, generation) = seams.board().await;
    for position in 1..=2 {
        seams.commit((&task, generation), position, Effects::default().append("p", "c", "x")).await.unwrap();
    }
    let again = Change::Assign(party("plugin:board"));
    seams.channels.change(&process("p"), Actor::Host, again).await.unwrap();
    seams.commit((&task, generation), 3, Effects::default().append("p", "c", "y")).await.unwrap();
    let told = entries(&seams.channels, &channel("p", "c")).await;
    let numbers: Vec<_> = told.iter().map(|told| (told.0, told.2, told.3)).collect();
    assert_eq!(numbers, [(1, 1, 1), (2, 1, 2), (3, 2, 1)]);
}

pub async fn a_fenced_commit_appends_nothing(seams: ChannelSeams) {
    seams.make("p", &[("c", with_events())]).await;
    let (task, outdated) = seams.board().await;
    let held = claim(&seams.seams, &task).await;
    let late = seams.commit((&task, outdated), 1, Effects::default().append("p", "c", "late")).await;
    assert!(matches!(late, Err(CommitError::Fenced { .. })));
    seams.commit((&task, held), 1, Effects::default().append("p", "c", "in time")).await.unwrap();
    assert_eq!(texts(&seams.channels, &channel("p", "c")).await, ["in time"]);
    assert_eq!(seams.events().await.len(), 1);
}

pub async fn an_entry_of_a_channel_with_events_is_an_event(seams: ChannelSeams) {
    seams.make("p", &[("c", with_events()), ("quiet", plain())]).await;
    let (task, generation) = seams.board().await;
    let id = channel("p", "c");
    assert_eq!(send(&seams.channels, &id, "ask").await.unwrap(), 1);
    send(&seams.channels, &channel("p", "quiet"), "no event").await.unwrap();
    let mut effects = Effects::default();
    effects.append("p", "c", "answer").replying_to(1).append("p", "quiet", "no event");
    effects.append_of_type("end", "p", "c", "").emit("e", 1, "{}");
    let mut whole = commit(&task, generation, 1, &[], &mut Effects::default());
    whole.effects = vec![effects.check_at_depth(&[], 4)];
    seams.seams.checkpoints.commit(whole).await.unwrap();
    let failed = NewEntry { entry_type: EntryType::Error, error: Some("gone".into()), ..NewEntry::default() };
    let append = Append { who: party("ada"), epoch: None, entries: vec![failed] };
    seams.channels.append(&id, append).await.unwrap();
    let events = seams.events().await;
    let told: Vec<_> = events.iter().map(|event| (event.0.as_str(), event.1, event.2)).collect();
    assert_eq!(
        told,
        [("channel.data", 1, 0), ("channel.data", 2, 5), ("channel.end", 3, 5), ("channel.error", 4, 0)],
        "one deeper than what led to it"
    );
    assert_eq!(
        events[1].4,
        json!({
            "process": "p", "channel": "c", "position": 2, "epoch": 1, "sequence": 1, "inreplyto": 1,
            "senderid": "plugin:board", "executorid": "plugin:board", "type": "data", "payload": "YW5zd2Vy",
            "text": "answer",
        })
    );
    assert_eq!((&events[3].4["error"], &events[3].4["payload"]), (&json!("gone"), &json!(null)));
    let page = seams.seams.log.read(&tenant("acme"), Position::START, ALL).await.unwrap();
    assert_eq!(page.events.len(), 5, "and the emitted one");
    assert!(page.events.iter().zip(1..).all(|(event, place)| event.position == Position(place)));
    let of_channel = page.events.iter().find(|event| event.aggregate == "channel").unwrap();
    assert_eq!(of_channel.agg_id, "p_c");
    // A repeat says nothing new.
    let again = || Append { who: party("ada"), epoch: None, entries: vec![NewEntry::data(1, "ask")] };
    assert!(seams.channels.append(&id, again()).await.unwrap()[0].repeated);
    assert_eq!(seams.events().await.len(), 4);
}

pub async fn a_chain_of_answers_comes_to_an_end(seams: ChannelSeams) {
    seams.make("p", &[("c", with_events()), ("quiet", plain())]).await;
    let (task, generation) = seams.board().await;
    let at = |name: &'static str, depth| {
        let mut whole = commit(&task, generation, 1, &[], &mut Effects::default());
        whole.effects = vec![Effects::default().append("p", name, "x").check_at_depth(&[], depth)];
        seams.seams.checkpoints.commit(whole)
    };
    at("c", CAUSATION_DEPTH_MAX - 1).await.unwrap();
    let refused = at("c", CAUSATION_DEPTH_MAX).await.unwrap_err().to_string();
    assert!(refused.contains("causation_depth_max is 16"), "{refused}");
    at("quiet", CAUSATION_DEPTH_MAX).await.unwrap();
    assert_eq!(seams.events().await.len(), 1);
}

pub async fn an_entry_that_is_an_event_is_bounded(seams: ChannelSeams) {
    seams.make("p", &[("c", with_events())]).await;
    let (task, generation) = seams.board().await;
    let id = channel("p", "c");
    let most = "x".repeat(CHANNEL_EVENT_PAYLOAD_BYTES_MAX);
    let over = "x".repeat(CHANNEL_EVENT_PAYLOAD_BYTES_MAX + 1);
    assert_eq!(
        send(&seams.channels, &id, &over).await.unwrap_err().code(),
        "channel_event_payload_bytes_max"
    );
    let refused = seams.commit((&task, generation), 1, Effects::default().append("p", "c", &over)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("channel_event_payload_bytes_max is 122880"), "{refused}");
    send(&seams.channels, &id, &most).await.unwrap();
    seams.commit((&task, generation), 1, Effects::default().append("p", "c", &most)).await.unwrap();
    let events = seams.events().await;
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event.4["text"] == most.as_str()));
}

pub async fn a_process_that_is_made_again_has_events_of_its_own(seams: ChannelSeams) {
    let id = channel("p", "c");
    for life in ["first", "second"] {
        seams.make("p", &[("c", with_events())]).await;
        assert_eq!(send(&seams.channels, &id, life).await.unwrap(), 1);
        assert!(seams.channels.remove(&id.process, None).await.unwrap());
    }
    let events = seams.events().await;
    let said: Vec<_> = events.iter().map(|event| (event.1, event.4["text"].clone())).collect();
    assert_eq!(said, [(1, json!("first")), (1, json!("second"))]);
    assert_ne!(events[0].3, events[1].3, "an event's id is its own");
}

/// Whoever may publish chooses ids, and must not be able to keep somebody's entry out with one.
pub async fn an_id_that_is_taken_keeps_no_entry_out(seams: ChannelSeams) {
    seams.make("p", &[("c", with_events())]).await;
    let id = channel("p", "c");
    let created_at = seams.channels.head(&id).await.unwrap().channel.created_at;
    let mut taken = EventBatch::new(tenant("acme"));
    let event_id = format!("p_c/{}/1", created_at.0);
    let event = Event { id: &event_id, aggregate: "a", agg_id: "x", event_type: "a.b", ..Event::default() };
    taken.push(&event).unwrap();
    seams.seams.log.append(taken).await.unwrap();
    assert_eq!(send(&seams.channels, &id, "ask").await.unwrap(), 1);
    let events = seams.events().await;
    assert_eq!((events.len(), &events[0].3), (1, &event_id));
    assert_eq!(seams.seams.log.read(&tenant("acme"), Position::START, ALL).await.unwrap().events.len(), 2);
}
