//! What every feed must do: functions over a rig, run for each backend. C6 to C13 are restated here. Where the reference
//! lets one unreadable file stop the feed (C8), numbers from memory (C9 to C11) or loses what is dropped twice, the better
//! rule is asserted: what is broken has a place of its own, and a repeat has the place that it had.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use millrace::control::{
    Board, ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, Desired, EventBody,
    EventId, FleetMark, Kind, Polled, Received, RunState, SnapshotRef, UnsignedEvent,
};

/// Longer than any test should take.
pub(super) const LONG: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::ZERO;

/// One feed, which can be opened several times as if by several processes.
pub(super) trait Rig: Send + Sync + Debug {
    /// With handles and connections of its own. The same host again is the same host after a restart.
    fn open<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Feed>;

    /// Puts something into the feed that is no event, past the sink. It has its place when this answers, or when
    /// somebody polls next.
    fn put_broken(&self) -> BoxFuture<'_, ()>;

    /// Ends all that serves the feed and starts it again on what it has kept. Feeds that were opened before are used no
    /// more.
    fn restart(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Events after which a trim through half of them removes some.
    fn events_to_trim(&self) -> usize {
        8
    }
}

/// What one process has of a feed.
#[derive(Clone, Debug)]
pub(super) struct Feed {
    pub(super) source: Arc<dyn ControlSource>,
    pub(super) sink: Arc<dyn ControlSink>,
    pub(super) board: Arc<dyn Board>,
}

impl Feed {
    pub(super) fn of<T: ControlSource + ControlSink + Board + 'static>(feed: T) -> Self {
        let feed = Arc::new(feed);
        Self { source: feed.clone(), sink: feed.clone(), board: feed }
    }

    pub(super) async fn append(&self, event: &ControlEvent) -> u64 {
        self.sink.append(event).await.unwrap().0
    }

    /// Entries above a version, until there are as many as this. All are acknowledged where that is asked for.
    pub(super) async fn take(&self, mut after: u64, count: usize) -> Vec<Received> {
        let (begin, mut entries) = (std::time::Instant::now(), Vec::<Received>::new());
        while entries.len() < count {
            assert!(begin.elapsed() < LONG, "{} of {count} came: {entries:?}", entries.len());
            let polled =
                self.source.poll(ControlVersion(after), count, Duration::from_secs(1)).await.unwrap();
            for entry in polled.events {
                acknowledge(&*self.source, &entry).await;
                if entry.version().0 > after {
                    after = entry.version().0;
                    entries.push(entry);
                }
            }
        }
        entries
    }

    /// What there is above a version, without waiting; what a source with an acker repeats is left out.
    async fn poll(&self, after: u64, limit: usize) -> Polled {
        let mut polled = self.source.poll(ControlVersion(after), limit, NOW).await.unwrap();
        polled.events.retain(|entry| entry.version().0 > after);
        polled
    }
}

async fn acknowledge(source: &dyn ControlSource, entry: &Received) {
    if let (Some(acker), Received::Event { version, event }) = (source.acker(), entry) {
        acker.acknowledge(event.id(), *version).await.unwrap();
    }
}

/// The removal of a plugin: the smallest event. Each has an id of its own.
pub(super) fn event(plugin: &str) -> ControlEvent {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    with_id(NUMBER.fetch_add(1, Ordering::Relaxed), plugin)
}

pub(super) fn with_id(number: u64, plugin: &str) -> ControlEvent {
    let desired = Desired {
        state: RunState::Removed,
        spec: None,
        stable: None,
        targets: std::collections::BTreeMap::new(),
        rollout: None,
    };
    let event = UnsignedEvent {
        schema_version: 1,
        must_understand: true,
        event_id: EventId::try_from(format!("evt_01JZ{number:022}")).unwrap(),
        kind: Kind::Removed,
        body: EventBody::Plugin { plugin: plugin.into(), desired },
        revision: 2,
        base_revision: 1,
        base_event_id: None,
        issued_at: 1_700_000_000_000_000,
        expires_at: None,
        actor: "ada".into(),
        reason: "it is not needed any more".into(),
    };
    event.without_signature().unwrap()
}

/// The event that came, with its version.
pub(super) fn received(entry: &Received) -> (u64, ControlEvent) {
    match entry {
        Received::Event { version, event } => (version.0, event.clone()),
        broken @ Received::Broken { .. } => panic!("{broken:?}"),
    }
}

pub(super) fn is_broken(entry: &Received) -> bool {
    matches!(entry, Received::Broken { name, code, reason, .. }
        if !name.is_empty() && !reason.is_empty() && code.starts_with("control_event_"))
}

/// What each is refused by; empty of an event.
pub(super) fn codes(entries: &[Received]) -> Vec<&'static str> {
    let code = |entry: &Received| match entry {
        Received::Event { .. } => "",
        Received::Broken { code, .. } => *code,
    };
    entries.iter().map(code).collect()
}

pub(super) async fn c06_c09_entries_come_ascending_as_they_were_appended(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let sent: Vec<_> = ["one", "two", "three"].map(event).into();
    let mut versions = Vec::new();
    for event in &sent {
        versions.push(feed.append(event).await);
    }
    assert!(versions[0] > 0 && versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    let came: Vec<_> = rig.open("b").await.take(0, 3).await.iter().map(received).collect();
    assert_eq!(came, versions.into_iter().zip(sent).collect::<Vec<_>>());
}

pub(super) async fn c07_a_poll_answers_what_is_after_each_version_and_no_more_than_asked(rig: Arc<dyn Rig>) {
    let writer = rig.open("writer").await;
    let mut versions = vec![0];
    for plugin in ["one", "two", "three", "four"] {
        versions.push(writer.append(&event(plugin)).await);
    }
    for (place, after) in versions.iter().enumerate() {
        // Each is a host of its own: a broker remembers how far one has read.
        let rest: Vec<u64> = versions[place + 1..].to_vec();
        for limit in 1..=rest.len() + 1 {
            let reader = rig.open(&format!("reader-{place}-{limit}")).await;
            let polled = if rest.is_empty() {
                reader.poll(*after, limit).await
            } else {
                reader.source.poll(ControlVersion(*after), limit, LONG).await.unwrap()
            };
            let came: Vec<u64> = polled.events.iter().map(|entry| entry.version().0).collect();
            assert!(came.len() <= limit && rest.starts_with(&came), "after {after}: {came:?} of {rest:?}");
            assert!(rest.is_empty() || !came.is_empty());
            assert_eq!((polled.oldest.0, polled.newest.0), (versions[1], versions[4]));
        }
    }
    assert!(writer.poll(versions[4], 10).await.events.is_empty());
}

pub(super) async fn c08_what_is_no_event_has_a_place_and_keeps_no_other_from_coming(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let [first, second, third] = ["one", "two", "three"].map(event);
    feed.append(&first).await;
    rig.put_broken().await;
    feed.take(0, 2).await;
    feed.append(&second).await;
    rig.put_broken().await;
    feed.append(&third).await;
    for host in ["b", "c"] {
        let mut entries = rig.open(host).await.take(0, 5).await;
        assert!(entries.windows(2).all(|pair| pair[0].version() < pair[1].version()), "{entries:?}");
        assert_eq!(entries.iter().filter(|entry| is_broken(entry)).count(), 2, "{entries:?}");
        assert!(is_broken(&entries[1]));
        entries.retain(|entry| !is_broken(entry));
        let events: Vec<_> = entries.iter().map(|entry| received(entry).1).collect();
        assert_eq!(events, [first.clone(), second.clone(), third.clone()]);
    }
}

pub(super) async fn c10_a_repeat_has_the_version_that_it_had_and_other_content_is_refused(rig: Arc<dyn Rig>) {
    let (feed, other) = (rig.open("a").await, rig.open("b").await);
    let (first, second) = (with_id(u64::from(u32::MAX), "one"), event("two"));
    let version = feed.append(&first).await;
    let next = feed.append(&second).await;
    assert!(next > version);
    for feed in [&feed, &other] {
        assert_eq!(feed.append(&first).await, version);
        let refused = feed.sink.append(&with_id(u64::from(u32::MAX), "another")).await.unwrap_err();
        assert!(
            matches!(&refused, ControlFeedError::EventIdTaken { event_id } if event_id == first.id().as_str()),
            "{refused}"
        );
    }
    assert!(other.append(&event("three")).await > next);
    assert_eq!(rig.open("c").await.take(0, 3).await.len(), 3);
    assert!(feed.poll(other.append(&event("four")).await, 10).await.events.is_empty(), "nothing came twice");
}

pub(super) async fn c11_a_restart_keeps_everything_and_goes_on_counting(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let (first, second) = (event("one"), event("two"));
    let versions = [feed.append(&first).await, feed.append(&second).await];
    let mark = mark(versions[1], "x");
    feed.board.set_mark(&mark).await.unwrap();
    drop(feed);
    rig.restart().await;
    let feed = rig.open("a").await;
    assert_eq!(feed.append(&first).await, versions[0], "a repeat is known");
    let third = event("three");
    let version = feed.append(&third).await;
    assert!(version > versions[1]);
    let came: Vec<_> = feed.take(0, 3).await.iter().map(received).collect();
    assert_eq!(came, [(versions[0], first), (versions[1], second), (version, third)]);
    assert_eq!(feed.board.mark().await.unwrap(), Some(mark));
}

pub(super) async fn c62_several_sinks_at_once_give_each_event_a_version_of_its_own(rig: Arc<dyn Rig>) {
    let mut sending = tokio::task::JoinSet::new();
    for host in 0..3 {
        let feed = rig.open(&format!("host-{host}")).await;
        for _ in 0..4 {
            let feed = feed.clone();
            sending.spawn(async move {
                let mut sent = Vec::new();
                for number in 0..5 {
                    let event = event(&format!("plugin-{number}"));
                    sent.push((feed.append(&event).await, event));
                }
                sent
            });
        }
    }
    let mut sent: Vec<(u64, ControlEvent)> = sending.join_all().await.into_iter().flatten().collect();
    sent.sort_by_key(|(version, _)| *version);
    let different: BTreeSet<u64> = sent.iter().map(|(version, _)| *version).collect();
    assert_eq!(different.len(), 60, "{different:?}");
    let came: Vec<_> = rig.open("reader").await.take(0, 60).await.iter().map(received).collect();
    assert_eq!(came, sent);
}

pub(super) async fn one_event_through_several_sinks_at_once_is_there_once(rig: Arc<dyn Rig>) {
    let event = event("one");
    let mut sending = tokio::task::JoinSet::new();
    for host in 0..3 {
        let feed = rig.open(&format!("host-{host}")).await;
        for _ in 0..3 {
            let (feed, event) = (feed.clone(), event.clone());
            sending.spawn(async move { feed.append(&event).await });
        }
    }
    let versions: BTreeSet<u64> = sending.join_all().await.into_iter().collect();
    assert_eq!(versions.len(), 1, "{versions:?}");
    let feed = rig.open("reader").await;
    let last = feed.append(&self::event("two")).await;
    let came: Vec<u64> = feed.take(0, 2).await.iter().map(|entry| entry.version().0).collect();
    assert_eq!(came, [*versions.first().unwrap(), last]);
}

pub(super) async fn a_poll_that_waits_is_woken_by_what_another_appends(rig: Arc<dyn Rig>) {
    let (reader, writer) = (rig.open("reader").await, rig.open("writer").await);
    for plugin in ["one", "two"] {
        let after = reader.source.poll(ControlVersion(0), 1, NOW).await.unwrap().newest;
        let waiting = {
            let reader = reader.clone();
            async move { reader.source.poll(after, 10, LONG * 10).await.unwrap() }
        };
        let event = event(plugin);
        let appended = async {
            // The reader is asked first; whether it is waiting already makes no difference to what it answers.
            tokio::task::yield_now().await;
            writer.append(&event).await
        };
        let both = async { tokio::join!(waiting, appended) };
        let (polled, version) = tokio::time::timeout(LONG, both).await.expect("it is woken");
        let new: Vec<_> =
            polled.events.iter().filter(|entry| entry.version() > after).map(received).collect();
        assert_eq!(new, [(version, event)]);
        for entry in &polled.events {
            acknowledge(&*reader.source, entry).await;
        }
    }
}

pub(super) async fn a_poll_that_is_given_up_takes_nothing_along(rig: Arc<dyn Rig>) {
    let (reader, writer) = (rig.open("reader").await, rig.open("writer").await);
    for _ in 0..3 {
        let given_up =
            tokio::time::timeout(Duration::from_millis(20), reader.source.poll(ControlVersion(0), 10, LONG));
        assert!(given_up.await.is_err(), "there is nothing to answer");
    }
    let event = event("one");
    let version = writer.append(&event).await;
    assert_eq!(received(&reader.take(0, 1).await[0]), (version, event));
}

pub(super) async fn who_is_behind_what_was_trimmed_is_told_where_the_feed_begins(rig: Arc<dyn Rig>) {
    let (feed, count) = (rig.open("a").await, rig.events_to_trim());
    assert_eq!(feed.sink.trim(ControlVersion(1_000)).await.unwrap(), 0, "there is nothing to trim");
    let mut versions = Vec::new();
    for _ in 0..count {
        versions.push(feed.append(&event("one")).await);
    }
    let through = versions[count / 2];
    let gone = usize::try_from(feed.sink.trim(ControlVersion(through)).await.unwrap()).unwrap();
    assert!(gone > 0 && gone <= count / 2 + 1, "{gone} of {count}");
    // What went are the first ones.
    let oldest = versions[gone];
    let reader = rig.open("reader").await;
    let behind = reader.source.poll(ControlVersion(0), 10, NOW).await.unwrap_err();
    assert!(
        matches!(&behind, ControlFeedError::BehindRetention { asked: 0, oldest: told } if *told == oldest),
        "{behind}: the oldest is {oldest}"
    );
    let fresh = rig.open("fresh").await;
    let came: Vec<u64> =
        fresh.take(versions[gone - 1], count - gone).await.iter().map(|entry| entry.version().0).collect();
    assert_eq!(came, versions[gone..]);
    let polled = fresh.poll(versions[count - 1], 10).await;
    assert_eq!((polled.oldest.0, polled.newest.0), (oldest, versions[count - 1]));
    // A second time there is nothing left to do, and what comes next is above all that ever was.
    assert_eq!(feed.sink.trim(ControlVersion(through)).await.unwrap(), 0);
    rig.restart().await;
    let feed = rig.open("a").await;
    assert!(feed.append(&event("two")).await > versions[count - 1]);
    let behind = feed.source.poll(ControlVersion(0), 10, NOW).await;
    assert!(matches!(behind, Err(ControlFeedError::BehindRetention { .. })), "{behind:?}");
}

/// So many stay for hosts that were away, also where versions are times.
pub(super) async fn w15_what_is_kept_is_counted_in_events(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let mut versions = Vec::new();
    for _ in 0..6 {
        versions.push(feed.append(&event("one")).await);
    }
    let keeping =
        async |through: u64, kept| feed.sink.keeping(ControlVersion(through), kept).await.unwrap().0;
    assert_eq!(keeping(versions[4], 2).await, versions[2], "{versions:?}");
    assert_eq!(keeping(versions[4], 0).await, versions[4], "{versions:?}");
    assert!(keeping(versions[4], 9).await < versions[0], "{versions:?}");
}

/// A host has read what the feed does not have any more: it is another one, or an older copy.
pub(super) async fn who_is_beyond_the_newest_is_told_and_what_comes_next_is_above(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let mut newest = 0;
    for plugin in ["one", "two"] {
        newest = feed.append(&event(plugin)).await;
    }
    let (beyond, host) = (newest + 5, rig.open("host").await);
    let told = host.source.poll(ControlVersion(beyond), 10, NOW).await.unwrap_err();
    assert!(matches!(told, ControlFeedError::BehindRetention { asked, .. } if asked == beyond), "{told}");
    // An origin that remembers as much, in a process that has not read anything.
    let origin = rig.open("later").await;
    origin.sink.saw(ControlVersion(beyond));
    let sent = event("three");
    let version = origin.append(&sent).await;
    assert!(version > beyond, "{version} would be taken for something known at {beyond}");
    assert_eq!(comes(&host, beyond, &sent).await, version);
    assert_eq!(origin.append(&sent).await, version);
    assert!(rig.open("a").await.append(&event("four")).await > version);
}

/// Waits for an event as a host does that goes on where it is told to. At which version it comes.
pub(super) async fn comes(host: &Feed, mut after: u64, sent: &ControlEvent) -> u64 {
    let begin = std::time::Instant::now();
    loop {
        assert!(begin.elapsed() < LONG, "it does not come after {after}");
        match host.source.poll(ControlVersion(after), 10, Duration::from_secs(1)).await {
            Ok(polled) => {
                let found = polled
                    .events
                    .iter()
                    .find(|entry| matches!(entry, Received::Event { event, .. } if event == sent));
                if let Some(entry) = found {
                    return entry.version().0;
                }
                for entry in &polled.events {
                    acknowledge(&*host.source, entry).await;
                    after = after.max(entry.version().0);
                }
            }
            Err(ControlFeedError::BehindRetention { oldest, .. }) => after = after.max(oldest - 1),
            Err(error) => panic!("{error}"),
        }
    }
}

/// For sources with an acker; the others say that they have none.
pub(super) async fn c25_what_is_not_acknowledged_comes_again_and_what_is_does_not(rig: Arc<dyn Rig>) {
    let feed = rig.open("a").await;
    let (first, second) = (event("one"), event("two"));
    let versions = [feed.append(&first).await, feed.append(&second).await];
    let source = rig.open("a").await.source;
    let Some(acker) = source.acker() else {
        // Then the cursor alone decides, and the same poll answers the same.
        for _ in 0..2 {
            assert_eq!(source.poll(ControlVersion(0), 10, LONG).await.unwrap().events.len(), 2);
        }
        return;
    };
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let polled = source.poll(ControlVersion(0), 10, Duration::from_secs(1)).await.unwrap();
        seen.extend(polled.events.iter().map(|entry| entry.version().0));
    }
    // The second is committed, the first is not.
    acker.acknowledge(second.id(), ControlVersion(versions[1])).await.unwrap();
    acker.acknowledge(second.id(), ControlVersion(versions[1])).await.unwrap();
    acker.acknowledge(event("unknown").id(), ControlVersion(versions[1] + 10)).await.unwrap();
    drop(source);
    let begin = std::time::Instant::now();
    let source = rig.open("a").await.source;
    let again = loop {
        assert!(begin.elapsed() < LONG, "the first comes again");
        // Whatever the cursor is: something after it may have been committed before.
        let polled =
            source.poll(ControlVersion(versions[1]), 10, Duration::from_secs(1)).await.unwrap().events;
        if !polled.is_empty() {
            break polled;
        }
    };
    let again: Vec<_> = again.iter().map(received).collect();
    assert_eq!(again, [(versions[0], first.clone())]);
    source.acker().unwrap().acknowledge(first.id(), ControlVersion(versions[0])).await.unwrap();
    let third = event("three");
    let version = feed.append(&third).await;
    let source = rig.open("a").await.source;
    let polled = source.poll(ControlVersion(versions[1]), 10, LONG).await.unwrap();
    assert_eq!(polled.events.iter().map(received).collect::<Vec<_>>(), [(version, third)]);
}

pub(super) async fn a_board_has_the_newest_word_of_each_host(rig: Arc<dyn Rig>) {
    let (one, other) = (rig.open("a").await, rig.open("b").await);
    assert_eq!(other.board.reports().await.unwrap(), []);
    one.board.report("a", "{\"n\":1}").await.unwrap();
    other.board.report("b", "not even JSON").await.unwrap();
    let said = |reports: Vec<(String, Duration, String)>| {
        reports.into_iter().map(|(host, _, report)| (host, report)).collect::<Vec<_>>()
    };
    let both = [("a".to_owned(), "{\"n\":1}".to_owned()), ("b".into(), "not even JSON".into())];
    let mut found = said(other.board.reports().await.unwrap());
    found.sort();
    assert_eq!(found, both);
    let ages = async || {
        let reports = one.board.reports().await.unwrap();
        let age = |host: &str| reports.iter().find(|(name, ..)| name == host).unwrap().1;
        (age("a"), age("b"))
    };
    let begin = std::time::Instant::now();
    while ages().await.1 < Duration::from_millis(50) {
        assert!(begin.elapsed() < LONG, "a report grows older");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    one.board.report("a", "{\"n\":2}").await.unwrap();
    let (a, b) = ages().await;
    assert!(a < b, "{a:?} is since the newest word, {b:?} since the only one");
    other.board.forget("b").await.unwrap();
    other.board.forget("nobody").await.unwrap();
    assert_eq!(said(one.board.reports().await.unwrap()), [("a".to_owned(), "{\"n\":2}".to_owned())]);
}

pub(super) async fn a_board_takes_no_name_that_leads_elsewhere_and_no_report_without_end(rig: Arc<dyn Rig>) {
    let board = rig.open("a").await.board;
    for host in ["", ".", "..", ".a", "a/b", "../a", "a b", "a\n", "ä", &"a".repeat(65)] {
        let refused = board.report(host, "{}").await.unwrap_err();
        assert!(matches!(refused, ControlFeedError::Settings { .. }), "{host:?}: {refused}");
    }
    let large = "x".repeat(millrace::limits::CONTROL_REPORT_BYTES_MAX + 1);
    let refused = board.report("a", &large).await.unwrap_err();
    assert!(
        matches!(refused, ControlFeedError::Limit { limit: "control_report_bytes_max", .. }),
        "{refused}"
    );
    board.report("a", &large[1..]).await.unwrap();
    let longest = "a.B-1_".repeat(11)[..64].to_owned();
    board.report(&longest, "{}").await.unwrap();
    assert_eq!(board.reports().await.unwrap().len(), 2);
}

fn mark(version: u64, digest: &str) -> FleetMark {
    let snapshot = Some(SnapshotRef { version: ControlVersion(version), digest: "sha256:0".into() });
    FleetMark { version: ControlVersion(version), state_digest: digest.into(), snapshot }
}

pub(super) async fn a_mark_never_goes_back(rig: Arc<dyn Rig>) {
    let (one, other) = (rig.open("a").await.board, rig.open("b").await.board);
    assert_eq!(one.mark().await.unwrap(), None);
    one.set_mark(&mark(5, "five")).await.unwrap();
    assert_eq!(other.mark().await.unwrap(), Some(mark(5, "five")));
    other.set_mark(&mark(4, "four")).await.unwrap();
    assert_eq!(one.mark().await.unwrap(), Some(mark(5, "five")));
    other.set_mark(&mark(5, "five again")).await.unwrap();
    assert_eq!(one.mark().await.unwrap(), Some(mark(5, "five again")));
    // As numbers, not as texts.
    one.set_mark(&mark(10, "ten")).await.unwrap();
    other.set_mark(&mark(9, "nine")).await.unwrap();
    assert_eq!(other.mark().await.unwrap(), Some(mark(10, "ten")));
    let mut setting = tokio::task::JoinSet::new();
    for version in 11..31 {
        let board = if version % 2 == 0 { one.clone() } else { other.clone() };
        setting.spawn(async move { board.set_mark(&mark(version, "many")).await.unwrap() });
    }
    setting.join_all().await;
    assert_eq!(one.mark().await.unwrap(), Some(mark(30, "many")));
    // Only once somebody has taken it away.
    for _ in 0..2 {
        other.forget_mark().await.unwrap();
        assert_eq!(one.mark().await.unwrap(), None);
    }
    one.set_mark(&mark(2, "two")).await.unwrap();
    assert_eq!(other.mark().await.unwrap(), Some(mark(2, "two")));
}

/// Runs all of it for a backend: `feeds_conformance!(files, rig)`, where `rig()` answers a future with an `Arc<dyn Rig>`.
macro_rules! feeds_conformance {
    ($backend:ident, $rig:expr) => {
        $crate::control::feeds::feeds_conformance!($backend, $rig;
            c06_c09_entries_come_ascending_as_they_were_appended,
            c07_a_poll_answers_what_is_after_each_version_and_no_more_than_asked,
            c08_what_is_no_event_has_a_place_and_keeps_no_other_from_coming,
            c10_a_repeat_has_the_version_that_it_had_and_other_content_is_refused,
            c11_a_restart_keeps_everything_and_goes_on_counting,
            c62_several_sinks_at_once_give_each_event_a_version_of_its_own,
            one_event_through_several_sinks_at_once_is_there_once,
            a_poll_that_waits_is_woken_by_what_another_appends,
            a_poll_that_is_given_up_takes_nothing_along,
            who_is_behind_what_was_trimmed_is_told_where_the_feed_begins,
            w15_what_is_kept_is_counted_in_events,
            who_is_beyond_the_newest_is_told_and_what_comes_next_is_above,
            c25_what_is_not_acknowledged_comes_again_and_what_is_does_not,
            a_board_has_the_newest_word_of_each_host,
            a_board_takes_no_name_that_leads_elsewhere_and_no_report_without_end,
            a_mark_never_goes_back);
    };
    ($backend:ident, $rig:expr; $($case:ident),+ $(,)?) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    $crate::control::feeds::$case($rig().await).await;
                }
            )+
        }
    };
}
pub(super) use feeds_conformance;
