//! What every event log must do with change streams and with streams that have a name of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::clock::SystemClock;
use millrace::error::Classify as _;
use millrace::event::{Event, EventBatch, Position, TenantId};
use millrace::limits::NAMED_STREAMS_MAX;
use millrace::streams::scopes::FieldValues;
use millrace::streams::{
    AggregateScopes, ChangeMode, ChangeRequest, ChangeStream, Delivery, EventLog, Hub, PageLimit, Retention,
    Scope, ScopeError, StreamError, StreamName, StreamPage,
};
use millrace::tasks::Tasks;
use tokio::task::JoinSet;

use super::effects::tenant;
use super::event_log::{ALL, append_one, batch, ids};

type Log = Arc<dyn EventLog>;

/// Scopes of assets: by id, all of the tenant's, and by the member `site_id` under the name `site`.
pub fn asset_scopes() -> Vec<AggregateScopes> {
    let site = Scope::Field { name: "site".to_owned(), member: "site_id".to_owned() };
    vec![AggregateScopes { aggregate: "asset".to_owned(), scopes: vec![Scope::Id, Scope::Tenant, site] }]
}

/// One event of an aggregate: its id, its type, its payload.
pub fn change(aggregate: &str, agg_id: &str, version: u64, verb: &str, payload: &str) -> EventBatch {
    change_of("acme", aggregate, agg_id, version, verb, payload)
}

pub fn change_of(
    of: &str,
    aggregate: &str,
    agg_id: &str,
    version: u64,
    verb: &str,
    payload: &str,
) -> EventBatch {
    let mut batch = EventBatch::new(tenant(of));
    let event_type = format!("{aggregate}.{verb}");
    let event = Event {
        aggregate,
        agg_id,
        version,
        event_type: &event_type,
        payload: payload.as_bytes(),
        ..Event::default()
    };
    batch.push(&event).expect("the test's event is valid");
    batch
}

pub fn stream(aggregate: &str, scope: &str, id: &str) -> StreamName {
    StreamName::Changes(ChangeStream::new(aggregate, scope, id))
}

pub fn named(name: &str) -> StreamName {
    name.parse().expect("the test's stream has a name")
}

async fn declared(log: &Log) {
    log.declare_scopes("assets", &asset_scopes()).await.expect("the scopes are declared");
}

async fn page(log: &Log, of: &TenantId, stream: &StreamName, after: u64) -> StreamPage {
    log.read_stream(of, stream, Position(after), ALL).await.expect("the stream is read")
}

/// A stream of acme's from its beginning, once it has at most so many entries: a cap may be applied some time after the
/// append.
pub async fn cut_to(most: usize, log: &Log, stream: &StreamName) -> StreamPage {
    let begin = Instant::now();
    loop {
        let page = page(log, &tenant("acme"), stream, 0).await;
        if page.events.len() <= most {
            return page;
        }
        assert!(begin.elapsed().as_secs() < 60, "{stream} still has {}", page.events.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The positions of a stream of acme's.
async fn positions(log: &Log, stream: &StreamName) -> Vec<u64> {
    page(log, &tenant("acme"), stream, 0).await.events.records().iter().map(|r| r.position).collect()
}

pub async fn c12_publish_writes_the_main_stream_and_every_change_stream(log: Log) {
    declared(&log).await;
    let sent = change("asset", "A1", 3, "created", r#"{"site_id":"S1"}"#);
    let appended = log.append(sent).await.unwrap();
    assert_eq!(appended[0].position, Position(1));
    let acme = tenant("acme");
    assert_eq!(ids(&log, &acme, Position::START).await.len(), 1);
    for stream in [stream("asset", "id", "A1"), stream("asset", "tenant", ""), stream("asset", "site", "S1")]
    {
        let page = page(&log, &acme, &stream, 0).await;
        assert_eq!(page.events.len(), 1, "{stream}");
        let event = page.events.get(0);
        assert_eq!((event.agg_id, event.version, event.position), ("A1", 3, Position(1)), "{stream}");
        assert_eq!((page.next, page.oldest, page.newest), (Position(1), Position(0), Position(1)));
        assert!(!page.truncated, "{stream}");
    }
    for other in [stream("asset", "id", "A2"), stream("asset", "site", "S2"), stream("pump", "id", "A1")] {
        assert_eq!(page(&log, &acme, &other, 0).await.events.len(), 0, "{other}");
    }
}

pub async fn c14_what_is_published_is_readable_under_the_derived_name(log: Log) {
    declared(&log).await;
    let sent = change("asset", "a:1", 1, "created", r#"{"site_id":"S:%1"}"#);
    let scopes = log.scopes();
    let derived = scopes.of("asset").unwrap().derive(&sent.get(0), &FieldValues::new());
    log.append(sent).await.unwrap();
    assert_eq!(derived.streams.len(), 3);
    for stream in derived.streams {
        let name: StreamName = stream.to_string().parse().unwrap();
        assert_eq!(positions(&log, &name).await, [1], "{name}");
    }
}

/// That there is a tenant needs no check here: nothing is asked without one.
pub async fn c28_c29_a_request_is_resolved_by_what_is_declared_now(log: Log) {
    let undeclared = log.scopes().resolve("asset", "id", "A1");
    assert!(matches!(undeclared, Err(ScopeError::AggregateUnknown { .. })), "{undeclared:?}");
    declared(&log).await;
    log.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    let scopes = log.scopes();
    for (scope, id) in [("id", "A1"), ("site", "S1"), ("tenant", ""), ("tenant", "rival")] {
        let resolved = scopes.resolve("asset", scope, id).unwrap();
        assert_eq!(positions(&log, &StreamName::Changes(resolved)).await, [1], "{scope} {id}");
    }
    for (aggregate, scope, id, code) in [
        ("pump", "id", "P1", "aggregate_unknown"),
        ("asset", "site_id", "S1", "scope_unknown"),
        ("asset", "id", "", "scope_id_missing"),
        ("asset", "site", "", "scope_id_missing"),
    ] {
        assert_eq!(scopes.resolve(aggregate, scope, id).unwrap_err().code(), code);
    }
    log.declare_scopes("assets", &[]).await.unwrap();
    let withdrawn = log.scopes().resolve("asset", "id", "A1").unwrap_err();
    assert_eq!(withdrawn.code(), "aggregate_unknown");
}

pub async fn c30_c31_streams_have_the_order_of_declaration_and_a_field_without_text_has_none(log: Log) {
    declared(&log).await;
    let without = [
        "{}",
        "null",
        "[{\"site_id\":\"S1\"}]",
        "\"site_id\"",
        r#"{"site_id":null}"#,
        r#"{"site_id":0}"#,
        r#"{"site_id":""}"#,
        r#"{"site_id":["S1"]}"#,
        r#"{"in":{"site_id":"S1"}}"#,
    ];
    let last = without.len() as u64 + 1;
    for (version, payload) in (1..).zip(without.into_iter().chain([r#"{"site_id":"S1"}"#])) {
        log.append(change("asset", "A1", version, "updated", payload)).await.unwrap();
    }
    let all: Vec<u64> = (1..=last).collect();
    let mut expected = Vec::new();
    for (name, held) in [
        (stream("asset", "id", "A1"), &all[..]),
        (stream("asset", "tenant", ""), &all[..]),
        (stream("asset", "site", "S1"), &all[all.len() - 1..]),
    ] {
        assert_eq!(positions(&log, &name).await, held, "{name}");
        expected.push((name, held.to_owned()));
    }
    // The tail has them in this order.
    for chunk in log.tail().read(&tenant("acme"), Position::START, 100).unwrap() {
        for (index, event) in (0_u32..).zip(chunk.iter()) {
            let marked = chunk.marks().iter().filter(|mark| mark.index == index);
            let marked: Vec<String> = marked.map(|mark| mark.stream.to_string()).collect();
            let expected = expected.iter().filter(|(_, held)| held.contains(&event.position.0));
            let expected: Vec<String> = expected.map(|(name, _)| name.to_string()).collect();
            assert_eq!(marked, expected, "{}", event.position);
        }
    }
}

pub async fn c47_a_page_from_a_cursor_has_exactly_what_follows(log: Log) {
    declared(&log).await;
    let one = stream("asset", "id", "A1");
    for version in 1..=3 {
        log.append(change("asset", "A1", version, "updated", "{}")).await.unwrap();
        log.append(change("asset", "B", version, "updated", "{}")).await.unwrap();
    }
    assert_eq!(positions(&log, &one).await, [1, 3, 5]);
    let acme = tenant("acme");
    let limit = PageLimit { events: 1, ..ALL };
    let first = log.read_stream(&acme, &one, Position::START, limit).await.unwrap();
    assert_eq!((first.events.len(), first.next), (1, Position(1)));
    let second = log.read_stream(&acme, &one, first.next, limit).await.unwrap();
    assert_eq!((second.events.get(0).position, second.next), (Position(3), Position(3)));
    // A cursor of one scope is good for another, since all of a log's streams count alike.
    let rest = page(&log, &acme, &stream("asset", "tenant", ""), second.next.0).await;
    assert_eq!(rest.events.records().iter().map(|r| r.position).collect::<Vec<_>>(), [4, 5, 6]);
    let end = page(&log, &acme, &one, 5).await;
    assert_eq!((end.events.len(), end.next), (0, Position(6)));
    let ahead = log.read_stream(&acme, &one, Position(7), ALL).await.unwrap_err();
    assert!(matches!(ahead, StreamError::PositionAhead { newest: Position(6), .. }), "{ahead}");
}

pub async fn sn11_a_delete_and_a_move_reach_the_old_scope(log: Log) {
    declared(&log).await;
    let (s1, s2) = (stream("asset", "site", "S1"), stream("asset", "site", "S2"));
    log.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    log.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#)).await.unwrap();
    assert_eq!(positions(&log, &s1).await, [1, 2], "the old scope learns of the move");
    assert_eq!(positions(&log, &s2).await, [2]);
    // An event that says nothing of the site is of the site where the asset is.
    log.append(change("asset", "A1", 3, "painted", r#"{"colour":"red"}"#)).await.unwrap();
    log.append(change("asset", "A1", 4, "deleted", "{}")).await.unwrap();
    assert_eq!(positions(&log, &s2).await, [2, 3, 4]);
    assert_eq!(positions(&log, &s1).await, [1, 2]);
    // A delete forgets; one that leaves its site has none.
    log.append(change("asset", "A1", 5, "created", "{}")).await.unwrap();
    log.append(change("asset", "A2", 1, "created", r#"{"site_id":"S2"}"#)).await.unwrap();
    log.append(change("asset", "A2", 2, "updated", r#"{"site_id":null}"#)).await.unwrap();
    log.append(change("asset", "A2", 3, "updated", "{}")).await.unwrap();
    assert_eq!(positions(&log, &s2).await, [2, 3, 4, 6, 7]);
}

/// Also when scopes came, went or changed places since: a deployment, or one that was refused and taken back.
pub async fn sn11_a_delete_and_a_move_reach_the_old_scope_after_other_scopes_were_declared(log: Log) {
    declared(&log).await;
    let (s1, s2) = (stream("asset", "site", "S1"), stream("asset", "site", "S2"));
    for asset in ["A1", "A2", "A3"] {
        log.append(change("asset", asset, 1, "created", r#"{"site_id":"S1","kind":"pump"}"#)).await.unwrap();
    }
    let mut more = asset_scopes();
    more[0].scopes.insert(0, Scope::Field { name: "kind".to_owned(), member: "kind".to_owned() });
    log.declare_scopes("assets", &more).await.unwrap();
    log.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S2","kind":"valve"}"#)).await.unwrap();
    log.append(change("asset", "A2", 2, "deleted", "{}")).await.unwrap();
    more[0].scopes.reverse();
    log.declare_scopes("assets", &more).await.unwrap();
    log.append(change("asset", "A3", 2, "deleted", "{}")).await.unwrap();
    assert_eq!(positions(&log, &s1).await, [1, 2, 3, 4, 5, 6]);
    declared(&log).await;
    log.append(change("asset", "A1", 3, "deleted", "{}")).await.unwrap();
    assert_eq!(positions(&log, &s2).await, [4, 7]);
    for (site, after) in [(&s1, 0), (&s2, 3)] {
        assert!(!page(&log, &tenant("acme"), site, after).await.truncated, "{site} has had everything");
    }
}

/// What happened while a field was not declared is not guessed from what was known before.
pub async fn sn11_a_field_that_comes_back_knows_nothing_of_what_changed_meanwhile(log: Log) {
    let mut kinds = asset_scopes();
    kinds[0].scopes.push(Scope::Field { name: "kind".to_owned(), member: "kind".to_owned() });
    log.declare_scopes("assets", &kinds).await.unwrap();
    for asset in ["A1", "A2"] {
        log.append(change("asset", asset, 1, "created", r#"{"site_id":"S1","kind":"pump"}"#)).await.unwrap();
    }
    let mut without = kinds.clone();
    without[0].scopes.retain(|scope| scope.name() != "site");
    log.declare_scopes("assets", &without).await.unwrap();
    log.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#)).await.unwrap();
    log.declare_scopes("assets", &kinds).await.unwrap();
    for asset in ["A1", "A2"] {
        log.append(change("asset", asset, 3, "painted", "{}")).await.unwrap();
    }
    let s1 = stream("asset", "site", "S1");
    assert_eq!(positions(&log, &s1).await, [1, 2, 5], "A1 has gone, and A2 is where it was");
    assert!(page(&log, &tenant("acme"), &s1, 2).await.truncated, "the hole is told of");
    assert_eq!(positions(&log, &stream("asset", "kind", "pump")).await, [1, 2, 3, 4, 5]);
}

/// The last known values are those of the batch's earlier events, too.
pub async fn a_move_inside_one_batch_reaches_the_old_scope(log: Log) {
    declared(&log).await;
    let mut both = change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#);
    both.extend_from(&change("asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#));
    log.append(both).await.unwrap();
    assert_eq!(positions(&log, &stream("asset", "site", "S1")).await, [1, 2]);
}

pub async fn sn26_one_aggregates_streams_never_have_anothers_events(log: Log) {
    let mut scopes = asset_scopes();
    let pumps = AggregateScopes { aggregate: "pump".to_owned(), ..scopes[0].clone() };
    scopes.push(pumps);
    log.declare_scopes("assets", &scopes).await.unwrap();
    log.append(change("asset", "X", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    log.append(change("pump", "X", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    for (scope, id) in [("id", "X"), ("tenant", ""), ("site", "S1")] {
        assert_eq!(positions(&log, &stream("asset", scope, id)).await, [1], "{scope}");
        assert_eq!(positions(&log, &stream("pump", scope, id)).await, [2], "{scope}");
    }
}

pub async fn tenants_have_change_streams_of_their_own(log: Log) {
    declared(&log).await;
    for (of, id) in [("acme", "A1"), ("rival", "A1")] {
        log.append(change_of(of, "asset", id, 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    }
    // The rival's asset moves; acme's site must not learn of it.
    log.append(change_of("rival", "asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#)).await.unwrap();
    for stream in [stream("asset", "id", "A1"), stream("asset", "tenant", ""), stream("asset", "site", "S1")]
    {
        assert_eq!(positions(&log, &stream).await, [1], "{stream}");
        assert_eq!(page(&log, &tenant("rival"), &stream, 0).await.events.len(), 2, "{stream}");
        assert_eq!(page(&log, &tenant("nobody"), &stream, 0).await.events.len(), 0, "{stream}");
    }
}

pub async fn sn12_a_repeated_publish_adds_no_entry(log: Log) {
    declared(&log).await;
    let sent = change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#);
    log.append(sent.clone()).await.unwrap();
    let mut again = change("asset", "A2", 1, "created", r#"{"site_id":"S1"}"#);
    again.extend_from(&sent);
    let appended = log.append(again).await.unwrap();
    assert_eq!(appended.iter().map(|a| a.repeated).collect::<Vec<_>>(), [false, true]);
    assert_eq!(positions(&log, &stream("asset", "site", "S1")).await, [1, 2]);
    // A batch that is refused leaves no entry and no value behind.
    let mut refused = change("asset", "A1", 2, "updated", r#"{"site_id":"S9"}"#);
    refused.extend_from(&change("asset", "A2", 1, "created", r#"{"site_id":"other"}"#));
    log.append(refused).await.unwrap_err();
    assert_eq!(positions(&log, &stream("asset", "site", "S9")).await, [0_u64; 0]);
    log.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S3"}"#)).await.unwrap();
    assert_eq!(positions(&log, &stream("asset", "site", "S1")).await, [1, 2, 3]);
    assert_eq!(positions(&log, &stream("asset", "site", "S9")).await, [0_u64; 0]);
}

pub async fn a_scope_begins_where_it_is_declared(log: Log) {
    let acme = tenant("acme");
    log.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    declared(&log).await;
    log.append(change("asset", "A1", 2, "updated", "{}")).await.unwrap();
    let one = stream("asset", "id", "A1");
    let from_start = page(&log, &acme, &one, 0).await;
    assert!(from_start.truncated, "what came before is not in it, and that is said");
    assert_eq!((from_start.oldest, from_start.events.len()), (Position(1), 1));
    assert!(!page(&log, &acme, &one, 1).await.truncated);
    // Declaring the same again, and more beside it, changes nothing for what was there.
    let mut more = asset_scopes();
    more[0].scopes.push(Scope::Field { name: "kind".to_owned(), member: "kind".to_owned() });
    log.declare_scopes("assets", &more).await.unwrap();
    assert!(!page(&log, &acme, &one, 1).await.truncated);
    assert!(page(&log, &acme, &stream("asset", "kind", "pump"), 1).await.truncated);
    // Withdrawn, it takes nothing in.
    log.declare_scopes("assets", &[]).await.unwrap();
    log.append(change("asset", "A1", 3, "updated", "{}")).await.unwrap();
    assert!(log.scopes().is_empty());
    assert!(page(&log, &acme, &one, 1).await.truncated);
    declared(&log).await;
    assert!(page(&log, &acme, &one, 2).await.truncated, "the hole is told of");
    assert!(!page(&log, &acme, &one, 3).await.truncated);
}

pub async fn other_scopes_of_another_owner_are_refused(log: Log) {
    declared(&log).await;
    declared(&log).await;
    log.declare_scopes("twin", &asset_scopes()).await.unwrap();
    let mut other = asset_scopes();
    other[0].scopes.pop();
    for owner in ["third", "assets"] {
        let refused = log.declare_scopes(owner, &other).await.unwrap_err();
        assert!(matches!(refused, StreamError::Scopes(ScopeError::Taken { .. })), "{refused}");
    }
    log.declare_scopes("assets", &[]).await.unwrap();
    assert_eq!(log.scopes().of("asset"), asset_scopes().first(), "the twin still declares them");
    log.declare_scopes("twin", &other).await.unwrap();
    assert_eq!(log.scopes().of("asset"), other.first());
}

pub async fn trimmed_entries_are_told_of(log: Log) {
    declared(&log).await;
    for version in 1..=4 {
        log.append(change("asset", "A1", version, "updated", r#"{"site_id":"S1"}"#)).await.unwrap();
    }
    log.append_to(&named("orders"), batch(&tenant("acme"), &[("o", "{}")])).await.unwrap();
    log.trim(Retention { events: Some(2), age: None }).await.unwrap();
    let acme = tenant("acme");
    for (stream, held) in [(stream("asset", "id", "A1"), 1), (named("orders"), 1)] {
        let lost = page(&log, &acme, &stream, 0).await;
        assert_eq!((lost.truncated, lost.oldest, lost.events.len()), (true, Position(3), held), "{stream}");
        assert!(!page(&log, &acme, &stream, 3).await.truncated, "{stream}");
    }
    log.trim(Retention { events: Some(0), age: None }).await.unwrap();
    for stream in [stream("asset", "site", "S1"), named("orders")] {
        let empty = page(&log, &acme, &stream, 3).await;
        assert_eq!((empty.truncated, empty.oldest, empty.events.len()), (true, Position(5), 0), "{stream}");
    }
    log.append(change("asset", "A1", 5, "updated", "{}")).await.unwrap();
    assert_eq!(positions(&log, &stream("asset", "site", "S1")).await, [6], "its last site is still known");
}

/// Whatever retention has left, from wherever and however much at once: whoever reads is told whether something between is
/// gone, and has all that follows.
pub async fn sn7_what_is_gone_before_a_page_is_told_whatever_its_size(log: Log) {
    const EVENTS: u64 = 10;
    declared(&log).await;
    for version in 1..=EVENTS {
        log.append(change("asset", "A1", version, "updated", "{}")).await.unwrap();
    }
    let (acme, one) = (tenant("acme"), stream("asset", "id", "A1"));
    for kept in (0..=EVENTS).rev() {
        log.trim(Retention { events: Some(kept), age: None }).await.unwrap();
        let gone = EVENTS - kept;
        for after in 0..=EVENTS {
            for events in [1, 3, 10, 4_096] {
                let limit = PageLimit { events, ..ALL };
                let page = log.read_stream(&acme, &one, Position(after), limit).await.unwrap();
                let held: Vec<u64> = page.events.records().iter().map(|record| record.position).collect();
                let expected: Vec<u64> = (after.max(gone) + 1..=EVENTS).take(events).collect();
                let how = format!("{kept} kept, {events} after {after}");
                assert_eq!((held, page.truncated), (expected, after < gone), "{how}");
                assert!(page.oldest.0 >= gone, "{how}: {}", page.oldest);
                let read = log.read(&acme, Position(after), limit).await;
                match read {
                    Err(StreamError::PositionLost { trimmed, .. }) => {
                        assert!(after < gone && trimmed.0 == gone, "{how}: {trimmed}");
                    }
                    Ok(_) => assert!(after >= gone, "{how}"),
                    Err(error) => panic!("{how}: {error}"),
                }
            }
        }
    }
}

pub async fn a_named_stream_is_apart_from_the_main_one(log: Log) {
    declared(&log).await;
    let (acme, orders) = (tenant("acme"), named("orders"));
    append_one(&log, &acme, "a").await;
    let first = log.append_to(&orders, batch(&acme, &[("a", "{}"), ("b", "{}")])).await.unwrap();
    assert_eq!(first.iter().map(|a| a.position.0).collect::<Vec<_>>(), [2, 3], "one counter for the log");
    assert!(first.iter().all(|a| !a.repeated), "ids are told apart by stream");
    let again = log.append_to(&orders, batch(&acme, &[("b", "{}")])).await.unwrap();
    assert_eq!((again[0].position, again[0].repeated), (Position(3), true));
    let taken = log.append_to(&orders, batch(&acme, &[("b", "[]")])).await.unwrap_err();
    assert!(matches!(taken, StreamError::IdTaken { .. }), "{taken}");
    assert_eq!(positions(&log, &orders).await, [2, 3]);
    assert_eq!(positions(&log, &StreamName::Events).await, [1]);
    assert_eq!(ids(&log, &acme, Position::START).await, ["a"]);
    assert_eq!(page(&log, &tenant("rival"), &orders, 0).await.events.len(), 0);
    // No change stream either, whatever its events are about.
    log.append_to(&orders, change("asset", "A1", 1, "created", "{}")).await.unwrap();
    assert_eq!(positions(&log, &stream("asset", "id", "A1")).await, [0_u64; 0]);
    let chunks = log.tail().read(&acme, Position::START, 10).unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), 1, "the tail has the main stream only");
    assert_eq!(*log.tail().newest().borrow(), Position(4), "and knows how far the log is");
    assert_eq!(log.append_to(&StreamName::Events, batch(&acme, &[("c", "{}")])).await.unwrap().len(), 1);
    assert_eq!(ids(&log, &acme, Position::START).await, ["a", "c"]);
}

pub async fn streams_that_take_no_appends_say_so(log: Log) {
    declared(&log).await;
    let acme = tenant("acme");
    let changes = stream("asset", "id", "A1");
    let refused = log.append_to(&changes, batch(&acme, &[("a", "{}")])).await.unwrap_err();
    assert!(matches!(refused, StreamError::NotAppendable { .. }), "{refused}");
    for n in 0..NAMED_STREAMS_MAX {
        log.append_to(&named(&format!("s{n}")), batch(&acme, &[("a", "{}")])).await.unwrap();
    }
    let one_more = log.append_to(&named("more"), batch(&acme, &[("a", "{}")])).await.unwrap_err();
    assert!(matches!(one_more, StreamError::TooManyStreams { .. }), "{one_more}");
    log.append_to(&named("s0"), batch(&acme, &[("b", "{}")])).await.unwrap();
    log.append_to(&named("more"), batch(&tenant("rival"), &[("a", "{}")])).await.unwrap();
}

pub async fn a_follower_of_a_named_stream_wakes(log: Log) {
    let acme = tenant("acme");
    let mut follower = log.tail().follow_named(&acme, "orders");
    let mut other = log.tail().follow_named(&acme, "other");
    append_one(&log, &acme, "a").await;
    log.append_to(&named("orders"), batch(&acme, &[("a", "{}")])).await.unwrap();
    let woken = tokio::time::timeout(Duration::from_secs(60), follower.wait_after(Position(1))).await;
    assert!(woken.expect("it wakes"));
    assert_eq!((follower.newest(), other.newest()), (Position(2), Position::START));
    assert!(futures_util::FutureExt::now_or_never(other.wait_after(Position::START)).is_none());
}

/// The tail says which change streams each event is in: what follows them needs no read.
pub async fn the_tail_marks_changes(log: Log) {
    declared(&log).await;
    log.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    append_one(&log, &tenant("acme"), "a").await;
    log.append(change("asset", "A1", 2, "updated", r#"{"site_id":"S2"}"#)).await.unwrap();
    let mut marks = Vec::new();
    for chunk in log.tail().read(&tenant("acme"), Position::START, 10).unwrap() {
        for mark in chunk.marks() {
            marks.push((chunk.get(mark.index as usize).position.0, mark.stream.to_string()));
        }
    }
    let expected = [
        (1, "changes:asset:id:A1"),
        (1, "changes:asset:tenant"),
        (1, "changes:asset:site:S1"),
        (3, "changes:asset:id:A1"),
        (3, "changes:asset:tenant"),
        (3, "changes:asset:site:S2"),
        (3, "changes:asset:site:S1"),
    ];
    assert_eq!(marks, expected.map(|(position, name)| (position, name.to_owned())));
}

pub async fn sn06_nothing_is_lost_from_the_instant_a_subscribe_returns(log: Log) {
    declared(&log).await;
    everything_after_a_subscribe_arrives(&log, &log).await;
}

/// Subscribed while somebody publishes as fast as it goes, be it at another host of the log: everything after the
/// position that was answered arrives, once and in order. Assets have change scopes, and nobody else publishes.
pub async fn everything_after_a_subscribe_arrives(written: &Log, followed: &Log) {
    const EVENTS: u64 = 15;
    let hub = Hub::new(Arc::clone(followed), Tasks::new(), Arc::new(SystemClock));
    let all = ChangeRequest { aggregate: "asset", scope: "tenant", id: "" };
    for round in 0..45 {
        let before = followed.bounds().newest.0;
        let (log, asset) = (Arc::clone(written), format!("A{round}"));
        let mut writing = JoinSet::new();
        writing.spawn(async move {
            let mut last = Position::START;
            for version in 1..=EVENTS {
                let appended = log.append(change("asset", &asset, version, "updated", "{}")).await.unwrap();
                last = appended[0].position;
                tokio::task::yield_now().await;
            }
            last
        });
        // In the first instant, in the midst of it, and when it is about to end.
        let mut newest = followed.tail().newest();
        newest.wait_for(|newest| newest.0 >= before + round % EVENTS).await.expect("the log lives");
        let mut follower = hub.subscribe(&tenant("acme"), &all, ChangeMode::Raw).unwrap();
        let last = writing.join_next().await.unwrap().unwrap();
        let mut seen = follower.position();
        while seen < last {
            let told = tokio::time::timeout(Duration::from_secs(60), follower.next()).await;
            let Ok(Some(Delivery::Events(events))) = told else {
                panic!("round {round}: {told:?} after {seen}, before {last}");
            };
            for record in events.records() {
                assert_eq!(record.position, seen.0 + 1, "round {round}: every event, once, in order");
                seen = Position(record.position);
            }
        }
    }
}

/// Runs this whole suite for a backend.
#[macro_export]
macro_rules! change_streams_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, change_streams, $setup;
            c12_publish_writes_the_main_stream_and_every_change_stream,
            c14_what_is_published_is_readable_under_the_derived_name,
            c28_c29_a_request_is_resolved_by_what_is_declared_now,
            c30_c31_streams_have_the_order_of_declaration_and_a_field_without_text_has_none,
            c47_a_page_from_a_cursor_has_exactly_what_follows,
            sn11_a_delete_and_a_move_reach_the_old_scope,
            sn11_a_delete_and_a_move_reach_the_old_scope_after_other_scopes_were_declared,
            sn11_a_field_that_comes_back_knows_nothing_of_what_changed_meanwhile,
            a_move_inside_one_batch_reaches_the_old_scope,
            sn26_one_aggregates_streams_never_have_anothers_events,
            tenants_have_change_streams_of_their_own,
            sn12_a_repeated_publish_adds_no_entry,
            a_scope_begins_where_it_is_declared,
            other_scopes_of_another_owner_are_refused,
            trimmed_entries_are_told_of,
            sn7_what_is_gone_before_a_page_is_told_whatever_its_size,
            a_named_stream_is_apart_from_the_main_one,
            streams_that_take_no_appends_say_so,
            a_follower_of_a_named_stream_wakes,
            sn06_nothing_is_lost_from_the_instant_a_subscribe_returns,
            the_tail_marks_changes);
    };
}
