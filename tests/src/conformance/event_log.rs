//! What every event log must do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::limits::{BATCH_EVENTS_MAX, EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX};
use millrace::streams::{Appended, EventLog, PageLimit, Retention, StreamError, StreamName};

use super::effects::tenant;
use crate::sleeper::Sleeper;

type Log = Arc<dyn EventLog>;

pub const ALL: PageLimit = PageLimit { events: 4_096, bytes: 4 << 20 };

/// A batch of events with these ids and payloads.
pub fn batch(tenant: &TenantId, events: &[(&str, &str)]) -> EventBatch {
    let mut batch = EventBatch::new(tenant.clone());
    for (id, payload) in events {
        let event = Event {
            id,
            aggregate: "flight",
            agg_id: "LX8",
            version: 1,
            event_type: "flight.departed",
            at: Micros(1_385_884_800_000_001),
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("the test's event is valid");
    }
    batch
}

pub async fn append_one(log: &Log, tenant: &TenantId, id: &str) -> Appended {
    log.append(batch(tenant, &[(id, "{}")])).await.expect("an append succeeds")[0]
}

pub async fn ids(log: &Log, tenant: &TenantId, after: Position) -> Vec<String> {
    let page = log.read(tenant, after, ALL).await.expect("a read succeeds");
    page.events.iter().map(|event| event.id.to_owned()).collect()
}

fn positions(appended: &[Appended]) -> Vec<u64> {
    appended.iter().map(|a| a.position.0).collect()
}

pub async fn append_then_read(log: Log) {
    let acme = tenant("acme");
    let mut sent = EventBatch::new(acme.clone());
    let event = Event {
        position: Position(0),
        id: "a",
        aggregate: "flight",
        agg_id: "LX8 Zürich",
        version: u64::try_from(i64::MAX).unwrap(),
        event_type: "flight.departed",
        at: Micros(-5),
        schema_version: 7,
        depth: 3,
        scope: "eu",
        kind: "k",
        cursor: "c-1",
        traceparent: "00-1-2-01",
        payload: "{\"text\": \"\\u0000 ü\",  \"n\": 9007199254740993}".as_bytes(),
    };
    sent.push(&event).unwrap();
    sent.push(&Event { id: "b", scope: "", kind: "", cursor: "", traceparent: "", ..event }).unwrap();
    let appended = log.append(sent).await.unwrap();
    assert_eq!(positions(&appended), [1, 2]);
    assert!(appended.iter().all(|a| !a.repeated));
    let page = log.read(&acme, Position::START, ALL).await.unwrap();
    assert_eq!(page.events.get(0), Event { position: Position(1), ..event });
    assert_eq!(page.events.get(1).traceparent, "");
    assert_eq!(page.events.len(), 2);
    assert_eq!((page.next, page.oldest), (Position(2), Position(1)));
    assert_eq!(log.bounds().newest, Position(2));
}

/// A JSON text that is odd in every way that it may be.
pub const ODD_JSON: &str = r#"{ "big" :9223372036854775807, "min":-9223372036854775808,"u":18446744073709551615,
  "huge":123456789012345678901234567890.10, "e":1E+2,"tiny":-0.0e-400,"dup":1,"dup":2, "":[ ],"z":{"b":1,"a":2},
  "esc":"\u0000\ud83d\ude00\/\b\f\n\r\t\"\\\u2028", "half":"\ud800", "text":"Zürich 😀 <&>'" ,"n":null,"t":true}"#;

/// Payloads that somebody may have, and some that nobody should.
fn payloads() -> Vec<Vec<u8>> {
    let bytes = (0..=u8::MAX).cycle();
    let large = ["\"", &"ü\u{1f600}\\n".repeat(EVENT_PAYLOAD_BYTES_MAX / 8 - 1), "\""].concat();
    let texts = ["null", "\"\"", "0", " [1 ,\t2]\r\n", "7", "true", ODD_JSON, &large];
    let mut payloads: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    // A log looks into no payload: neither nothing nor what is no text may become something else.
    payloads.extend([Vec::new(), vec![0], bytes.clone().take(1_000).collect()]);
    payloads.push(bytes.take(EVENT_PAYLOAD_BYTES_MAX).collect());
    payloads
}

/// Events with every field at its bounds, and with every field that may be left out left out.
fn odd_events(of: &TenantId) -> EventBatch {
    let longest = "ü".repeat(NAME_BYTES_MAX / 2);
    let odd = r#"'"; DROP TABLE events; -- \ %s {1}:/?#[]@!$&()*+,= 😀"#;
    let mut batch = EventBatch::new(of.clone());
    for (number, payload) in (0_u32..).zip(payloads()) {
        let (name, at) = if number % 2 == 0 { (odd, i64::MIN) } else { (&*longest, i64::MAX) };
        let whole = Event {
            position: Position(0),
            id: &format!("{number} {odd}"),
            aggregate: name,
            agg_id: name,
            version: u64::try_from(i64::MAX).unwrap() - u64::from(number),
            event_type: name,
            at: Micros(at),
            schema_version: u32::MAX - number,
            depth: u32::MAX - number,
            scope: name,
            kind: name,
            cursor: name,
            traceparent: name,
            payload: &payload,
        };
        batch.push(&whole).unwrap();
    }
    let least = Event { aggregate: "a", agg_id: "b", event_type: "c", ..Event::default() };
    batch.push(&least).unwrap();
    batch
}

/// What a stream of a tenant has, page by page.
async fn whole(log: &Log, of: &TenantId, stream: &StreamName) -> EventBatch {
    let (mut all, mut after) = (EventBatch::new(of.clone()), Position::START);
    while after < log.bounds().newest {
        let page = log.read_stream(of, stream, after, ALL).await.unwrap();
        all.extend_from(&page.events);
        after = page.next;
    }
    all
}

fn same_events(found: &EventBatch, sent: &EventBatch, appended: &[Appended], how: &str) {
    assert_eq!((found.len(), &found.tenant), (sent.len(), &sent.tenant), "{how}");
    for (index, (event, sent)) in found.iter().zip(sent.iter()).enumerate() {
        assert!(event.payload == sent.payload, "{how}: the payload of event {index} is another one");
        assert_eq!(event, Event { position: appended[index].position, ..sent }, "{how}: event {index}");
    }
}

pub async fn c02_every_field_and_every_byte_comes_back(log: Log) {
    let (acme, rival) = (tenant("acme"), tenant("a.b-c_0"));
    let orders: StreamName = "orders".parse().unwrap();
    // Two tenants have the same events, and a named stream, too: each is told apart.
    for (of, stream) in [(&acme, &StreamName::Events), (&rival, &StreamName::Events), (&acme, &orders)] {
        let sent = odd_events(of);
        let appended = log.append_to(stream, sent.clone()).await.unwrap();
        assert!(appended.iter().all(|one| !one.repeated));
        same_events(&whole(&log, of, stream).await, &sent, &appended, "a stream");
        // What was sent is recognised in what was kept.
        let again = log.append_to(stream, sent.clone()).await.unwrap();
        let repeated = appended.iter().map(|one| Appended { repeated: true, ..*one });
        assert_eq!(again, repeated.collect::<Vec<_>>());
        if *stream != StreamName::Events {
            continue;
        }
        let (mut read, mut after) = (EventBatch::new(of.clone()), Position::START);
        while after < log.bounds().newest {
            let page = log.read(of, after, PageLimit { events: 3, ..ALL }).await.unwrap();
            read.extend_from(&page.events);
            after = page.next;
        }
        same_events(&read, &sent, &appended, "pages");
        let mut tail = EventBatch::new(of.clone());
        let before = Position(appended[0].position.0 - 1);
        for chunk in log.tail().read(of, before, 1_000).expect("the tail reaches back") {
            tail.extend_from(&chunk);
        }
        same_events(&tail, &sent, &appended, "the tail");
    }
}

/// The reference mints ids that increase. Here an id is derived from what the event says, so that a repeat is
/// recognised; the order is the position's, and holds over all processes.
pub async fn c01_a_thousand_events_have_increasing_positions_and_ids_of_their_own(log: Log) {
    let acme = tenant("acme");
    let (mut positions, mut ids) = (Vec::new(), BTreeSet::new());
    for hundred in 0..10 {
        let mut batch = EventBatch::new(acme.clone());
        for one in 1..=100 {
            let version = hundred * 100 + one;
            let event =
                Event { aggregate: "thing", agg_id: "a", version, event_type: "t", ..Event::default() };
            batch.push(&event).unwrap();
        }
        positions.extend(log.append(batch).await.unwrap().into_iter().map(|appended| appended.position));
    }
    assert!(positions.is_sorted_by(|a, b| a < b) && positions.len() == 1_000);
    let kept = whole(&log, &acme, &StreamName::Events).await;
    for (version, (event, position)) in (1_u64..).zip(kept.iter().zip(&positions)) {
        assert_eq!((event.position, event.version), (*position, version));
        assert!(event.id.len() == 32 && event.id.bytes().all(|b| b.is_ascii_hexdigit()), "{}", event.id);
        ids.insert(event.id.to_owned());
    }
    assert_eq!(ids.len(), 1_000);
}

pub async fn empty_batch_appends_nothing(log: Log) {
    assert!(log.append(EventBatch::new(tenant("acme"))).await.unwrap().is_empty());
    assert_eq!(log.bounds().newest, Position::START);
    assert!(log.tenants().is_empty());
}

pub async fn tenants_do_not_see_each_other(log: Log) {
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    append_one(&log, &acme, "same").await;
    let other = log.append(batch(&beta, &[("same", "[1]")])).await.unwrap();
    assert_eq!(other[0], Appended { position: Position(2), repeated: false });
    append_one(&log, &acme, "more").await;
    assert_eq!(ids(&log, &acme, Position::START).await, ["same", "more"]);
    assert_eq!(ids(&log, &beta, Position::START).await, ["same"]);
    assert!(ids(&log, &tenant("gamma"), Position::START).await.is_empty());
    let mut names = log.tenants();
    names.sort();
    assert_eq!(names, [acme, beta]);
}

pub async fn known_id_keeps_position(log: Log) {
    let acme = tenant("acme");
    let first = append_one(&log, &acme, "a").await;
    append_one(&log, &acme, "b").await;
    let again = append_one(&log, &acme, "a").await;
    assert_eq!(again, Appended { position: first.position, repeated: true });
    // The same JSON in another spelling is the same content.
    let spelled = log.append(batch(&acme, &[("a", "{ }")])).await.unwrap();
    assert!(spelled[0].repeated);
    assert_eq!(ids(&log, &acme, Position::START).await, ["a", "b"]);
}

pub async fn other_content_under_a_known_id_is_refused(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    match log.append(batch(&acme, &[("b", "{}"), ("a", "[]")])).await {
        Err(StreamError::IdTaken { index: 1, id, position }) => {
            assert_eq!((id.as_str(), position), ("a", Position(1)));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn refused_batch_leaves_nothing(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    log.append(batch(&acme, &[("b", "{}"), ("c", "{}"), ("a", "[]")])).await.unwrap_err();
    assert_eq!(ids(&log, &acme, Position::START).await, ["a"]);
    // The refused ids are free and the place is not used up.
    assert_eq!(append_one(&log, &acme, "b").await, Appended { position: Position(2), repeated: false });
}

pub async fn repeat_inside_a_batch_is_recognised(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "z").await;
    let events = [("a", "{}"), ("z", "{}"), ("a", "{}"), ("b", "{}"), ("b", "{}"), ("z", "{}")];
    let appended = log.append(batch(&acme, &events)).await.unwrap();
    assert_eq!(positions(&appended), [2, 1, 2, 3, 3, 1]);
    let repeated: Vec<bool> = appended.iter().map(|a| a.repeated).collect();
    assert_eq!(repeated, [false, true, true, false, true, true]);
    assert_eq!(ids(&log, &acme, Position::START).await, ["z", "a", "b"]);
    let conflict = log.append(batch(&acme, &[("y", "{}"), ("q", "{}"), ("y", "[]")])).await;
    assert!(matches!(conflict, Err(StreamError::IdTaken { index: 2, .. })), "{conflict:?}");
}

pub async fn batch_beyond_its_bound_is_refused(log: Log) {
    let acme = tenant("acme");
    let mut large = EventBatch::new(acme.clone());
    for version in 1..=BATCH_EVENTS_MAX as u64 + 1 {
        let event = Event {
            aggregate: "a",
            agg_id: "1",
            version,
            event_type: "t",
            payload: b"1",
            ..Event::default()
        };
        large.push(&event).unwrap();
    }
    assert!(matches!(log.append(large).await, Err(StreamError::TooManyEvents { events: 1001, max: 1000 })));
    assert_eq!(log.bounds().newest, Position::START);
}

pub async fn page_keeps_its_limits(log: Log) {
    let acme = tenant("acme");
    let payload = format!("\"{}\"", "x".repeat(1_000));
    let events: Vec<String> = (0..10).map(|n| format!("id-{n}")).collect();
    let events: Vec<(&str, &str)> = events.iter().map(|id| (id.as_str(), payload.as_str())).collect();
    log.append(batch(&acme, &events)).await.unwrap();
    let few = log.read(&acme, Position::START, PageLimit { events: 3, bytes: 1 << 20 }).await.unwrap();
    assert_eq!((few.events.len(), few.next), (3, Position(3)));
    let small = log.read(&acme, Position(3), PageLimit { events: 100, bytes: 2_500 }).await.unwrap();
    assert_eq!((small.events.len(), small.next), (2, Position(5)));
    let tiny = log.read(&acme, Position(5), PageLimit { events: 100, bytes: 1 }).await.unwrap();
    assert_eq!((tiny.events.len(), tiny.next), (1, Position(6)));
    let rest = log.read(&acme, Position(6), ALL).await.unwrap();
    assert_eq!((rest.events.len(), rest.next), (4, Position(10)));
}

pub async fn reader_of_a_quiet_tenant_moves_on(log: Log) {
    let (acme, quiet) = (tenant("acme"), tenant("quiet"));
    append_one(&log, &quiet, "q").await;
    for id in ["a", "b", "c"] {
        append_one(&log, &acme, id).await;
    }
    let page = log.read(&quiet, Position(1), ALL).await.unwrap();
    assert!(page.events.is_empty());
    assert_eq!(page.next, Position(4));
    let unknown = log.read(&tenant("unknown"), Position::START, ALL).await.unwrap();
    assert_eq!(unknown.next, Position(4));
    append_one(&log, &quiet, "r").await;
    assert_eq!(ids(&log, &quiet, page.next).await, ["r"]);
}

pub async fn trimmed_position_is_lost(log: Log) {
    let acme = tenant("acme");
    for n in 0..10 {
        append_one(&log, &acme, &format!("id-{n}")).await;
    }
    let gone = log.trim(Retention { events: Some(4), age: None }).await.unwrap();
    assert_eq!(gone, 6);
    assert_eq!((log.bounds().trimmed, log.bounds().newest), (Position(6), Position(10)));
    match log.read(&acme, Position(5), ALL).await {
        Err(StreamError::PositionLost { asked, trimmed }) => {
            assert_eq!((asked, trimmed), (Position(5), Position(6)));
        }
        other => panic!("{other:?}"),
    }
    let page = log.read(&acme, Position(6), ALL).await.unwrap();
    assert_eq!((page.events.len(), page.oldest), (4, Position(7)));
    assert_eq!(log.trim(Retention { events: Some(4), age: None }).await.unwrap(), 0);
}

/// The reference keeps about so many. Here whoever reads has as many as are to be kept and no more, after each cut.
pub async fn c13_a_cap_keeps_what_it_says_and_tells_of_what_is_gone(log: Log) {
    const CAP: u64 = 100;
    let acme = tenant("acme");
    for ten in 0..40 {
        let names: Vec<String> = (0..10).map(|one| format!("id-{ten}-{one}")).collect();
        let events: Vec<(&str, &str)> = names.iter().map(|id| (id.as_str(), "{}")).collect();
        log.append(batch(&acme, &events)).await.unwrap();
        let newest = log.bounds().newest.0;
        let gone = log.trim(Retention { events: Some(CAP), age: None }).await.unwrap();
        assert_eq!(gone, if newest > CAP { 10 } else { 0 }, "at {newest}");
        let trimmed = newest.saturating_sub(CAP);
        assert_eq!(log.bounds().trimmed, Position(trimmed));
        let kept = ids(&log, &acme, Position(trimmed)).await;
        assert_eq!((kept.len() as u64, kept.last()), (newest.min(CAP), names.last()));
        if let Some(before) = trimmed.checked_sub(1) {
            let lost = log.read(&acme, Position(before), ALL).await;
            assert!(matches!(lost, Err(StreamError::PositionLost { .. })), "{before}: {lost:?}");
        }
    }
    assert_eq!(log.bounds().newest, Position(400), "what was published is counted");
}

pub async fn trimmed_id_is_new_again(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    append_one(&log, &acme, "b").await;
    log.trim(Retention { events: Some(1), age: None }).await.unwrap();
    assert_eq!(append_one(&log, &acme, "a").await, Appended { position: Position(3), repeated: false });
    assert!(append_one(&log, &acme, "b").await.repeated);
}

pub async fn trimming_everything_keeps_the_count(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    append_one(&log, &acme, "b").await;
    assert_eq!(log.trim(Retention { events: Some(0), age: None }).await.unwrap(), 2);
    assert_eq!((log.bounds().trimmed, log.bounds().newest), (Position(2), Position(2)));
    assert_eq!(append_one(&log, &acme, "c").await.position, Position(3));
}

pub async fn old_events_go_by_age(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    // The event's own time is long ago; what counts is the time of append.
    let hour = Retention { age: Some(Duration::from_secs(3_600)), events: None };
    assert_eq!(log.trim(hour).await.unwrap(), 0);
    assert_eq!(log.trim(Retention::default()).await.unwrap(), 0);
    assert_eq!(log.bounds().trimmed, Position::START);
}

pub async fn position_beyond_the_newest_is_ahead(log: Log) {
    let acme = tenant("acme");
    append_one(&log, &acme, "a").await;
    match log.read(&acme, Position(2), ALL).await {
        Err(StreamError::PositionAhead { asked, newest }) => {
            assert_eq!((asked, newest), (Position(2), Position(1)));
        }
        other => panic!("{other:?}"),
    }
    assert!(log.read(&acme, Position(1), ALL).await.unwrap().events.is_empty());
}

pub async fn tail_has_what_was_acknowledged(log: Log) {
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    for id in ["a", "b"] {
        append_one(&log, &acme, id).await;
        append_one(&log, &beta, id).await;
    }
    let chunks = log.tail().read(&acme, Position::START, 100).expect("the tail reaches back to the start");
    let seen: Vec<u64> = chunks.iter().flat_map(|chunk| chunk.iter().map(|e| e.position.0)).collect();
    assert_eq!(seen, [1, 3]);
    assert!(log.tail().read(&beta, Position(4), 100).expect("the tail has the newest").is_empty());
    assert_eq!(*log.tail().newest().borrow(), Position(4));
}

pub async fn follower_wakes(log: Log) {
    let acme = tenant("acme");
    let mut reader = log.tail().follow(&acme);
    let follower = Arc::clone(&log);
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move {
        assert!(reader.wait_after(Position::START).await);
        ids(&follower, &tenant("acme"), Position::START).await
    });
    append_one(&log, &acme, "a").await;
    let seen = tokio::time::timeout(Duration::from_secs(60), waiting.join_next()).await;
    assert_eq!(seen.expect("the follower woke").unwrap().unwrap(), ["a"]);
}

pub async fn c23_an_append_wakes_those_who_follow_its_tenants_and_nobody_else(log: Log) {
    let [acme, beta, rival] = ["acme", "beta", "rival"].map(tenant);
    let from = append_one(&log, &rival, "r").await.position;
    let (mut ours, mut theirs) = (log.tail().follow(&acme), log.tail().follow(&beta));
    let (mut rivals, mut strangers) = (log.tail().follow(&rival), log.tail().follow(&tenant("nobody")));
    let mut rival_sleeps = Sleeper::new(rivals.wait_after(from));
    let mut stranger_sleeps = Sleeper::new(strangers.wait_after(from));
    // Two tenants in what may be one commit: each is named.
    let waking = async {
        let (a, b) = tokio::join!(append_one(&log, &acme, "a"), append_one(&log, &beta, "b"));
        assert!(ours.wait_after(from).await && theirs.wait_after(from).await);
        assert_eq!((ours.newest(), theirs.newest()), (a.position, b.position));
    };
    tokio::time::timeout(Duration::from_secs(60), waking).await.expect("both are woken");
    assert!(rival_sleeps.sleeps() && stranger_sleeps.sleeps(), "they sleep on");
    let newest = ours.newest();
    let mut sleeps = Sleeper::new(ours.wait_after(newest));
    assert!(append_one(&log, &acme, "a").await.repeated);
    append_one(&log, &beta, "c").await;
    assert!(sleeps.sleeps(), "a repeat is nothing new");
    drop(rival_sleeps);
    let last = append_one(&log, &rival, "s").await.position;
    let woken = tokio::time::timeout(Duration::from_secs(60), rivals.wait_after(from)).await;
    assert!(woken.expect("it is woken") && rivals.newest() == last);
    let mut names = log.tenants();
    names.sort();
    assert_eq!(names, [acme, beta, rival]);
}

pub async fn new_tenant_is_announced(log: Log) {
    let mut announced = log.tail().tenants();
    announced.mark_unchanged();
    append_one(&log, &tenant("acme"), "a").await;
    tokio::time::timeout(Duration::from_secs(60), announced.changed()).await.expect("announced").unwrap();
    assert_eq!(log.tenants(), [tenant("acme")]);
}

/// Many writers at once: every event once, in one order, and positions without holes.
pub async fn concurrent_appends_get_positions_without_holes(log: Log) {
    let acme = tenant("acme");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let (log, acme) = (Arc::clone(&log), acme.clone());
        writers.spawn(async move {
            for n in 0..25 {
                // Every id is sent by two writers.
                append_one(&log, &acme, &format!("{}-{n}", writer / 2)).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer finishes");
    }
    let page = log.read(&acme, Position::START, ALL).await.unwrap();
    let positions: Vec<u64> = page.events.iter().map(|e| e.position.0).collect();
    assert_eq!(positions, (1..=200).collect::<Vec<u64>>());
    let mut ids: Vec<&str> = page.events.iter().map(|e| e.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
}

/// Runs this whole suite for a backend.
#[macro_export]
macro_rules! event_log_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, event_log, $setup;
            append_then_read, c01_a_thousand_events_have_increasing_positions_and_ids_of_their_own,
            c02_every_field_and_every_byte_comes_back, c13_a_cap_keeps_what_it_says_and_tells_of_what_is_gone,
            c23_an_append_wakes_those_who_follow_its_tenants_and_nobody_else, empty_batch_appends_nothing, tenants_do_not_see_each_other,
            known_id_keeps_position, other_content_under_a_known_id_is_refused, refused_batch_leaves_nothing,
            repeat_inside_a_batch_is_recognised, batch_beyond_its_bound_is_refused, page_keeps_its_limits,
            reader_of_a_quiet_tenant_moves_on, trimmed_position_is_lost, trimmed_id_is_new_again,
            trimming_everything_keeps_the_count, old_events_go_by_age, position_beyond_the_newest_is_ahead,
            tail_has_what_was_acknowledged, follower_wakes, new_tenant_is_announced,
            concurrent_appends_get_positions_without_holes);
    };
}
