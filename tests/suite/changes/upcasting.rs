//! Upcasting: consumers see the newest schema version, the log keeps what was published.

use std::sync::Arc;

use millrace::event::{Event, EventBatch, Position};
use millrace::limits::EVENT_PAYLOAD_BYTES_MAX;
use millrace::streams::upcast::{DeclaredUpcast, InvalidUpcast, UpcastLog, Upcasters};
use millrace::streams::{EventLog, StreamName};
use millrace_tests::conformance::change_streams::{asset_scopes, change, named, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::ALL;

/// `asset.updated`: 1 renames `site` to `site_id`, 2 adds a unit.
fn upcasters() -> Upcasters {
    let mut upcasters = Upcasters::default();
    upcasters.register("asset.updated", 1, |payload| replaced(payload, "\"site\"", "\"site_id\"")).unwrap();
    upcasters.register("asset.updated", 2, |payload| replaced(payload, "}", ",\"unit\":\"m\"}")).unwrap();
    upcasters
}

fn replaced(payload: &[u8], from: &str, to: &str) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    if !text.contains(from) {
        return Err(format!("it has no {from}"));
    }
    Ok(text.replacen(from, to, 1).into_bytes())
}

fn updated(schema_version: u32, payload: &str) -> Event<'_> {
    Event {
        aggregate: "asset",
        agg_id: "A1",
        event_type: "asset.updated",
        schema_version,
        payload: payload.as_bytes(),
        ..Event::default()
    }
}

#[test]
fn c05_steps_are_applied_in_order_up_to_the_newest_version() {
    let seen = |version, payload| {
        let done = upcasters().apply(&updated(version, payload)).unwrap();
        done.map(|(payload, version)| (String::from_utf8(payload).unwrap(), version))
    };
    let newest = r#"{"site_id":"S1","unit":"m"}"#;
    assert_eq!(seen(1, r#"{"site":"S1"}"#), Some((newest.to_owned(), 3)), "the old member is gone");
    assert_eq!(seen(2, r#"{"site_id":"S1"}"#), Some((newest.to_owned(), 3)));
}

#[test]
fn c06_what_has_no_step_passes_as_it_is() {
    assert_eq!(upcasters().apply(&updated(3, "{}")), Ok(None));
    let other = Event { event_type: "asset.created", ..updated(1, "{}") };
    assert_eq!(upcasters().apply(&other), Ok(None));
    let batch = change("asset", "A1", 1, "created", "{}");
    assert!(upcasters().batch(&batch).is_none(), "and costs no copy");
    assert!(Upcasters::default().is_empty());
}

/// That a step is missing cannot be said: a step is a function.
#[test]
fn c07_a_second_step_from_a_version_and_one_of_no_type_or_version_are_refused() {
    let mut upcasters = upcasters();
    let mut add = |event_type, from| upcasters.register(event_type, from, |payload| Ok(payload.to_vec()));
    assert!(matches!(add("asset.updated", 2), Err(InvalidUpcast::Twice { from: 2, .. })));
    assert_eq!(add("", 1), Err(InvalidUpcast::Type));
    assert!(matches!(add("a", 0), Err(InvalidUpcast::Version { .. })));
    assert!(matches!(add("a", u32::MAX), Err(InvalidUpcast::Last { .. })), "it would be applied for ever");
    assert_eq!(add("asset.updated", 3), Ok(()));
    assert_eq!(add("a", u32::MAX - 1), Ok(()));
    let upcast = DeclaredUpcast { event_type: "b".to_owned(), from: u32::MAX, steps: Vec::new() };
    assert!(matches!(upcasters.declare(&[upcast]), Err(InvalidUpcast::Last { .. })));
    let event = Event { event_type: "a", ..updated(u32::MAX - 1, "{}") };
    assert_eq!(upcasters.apply(&event), Ok(Some((b"{}".to_vec(), u32::MAX))));
}

#[test]
fn a_step_that_fails_or_grows_beyond_the_bound_leaves_the_event_as_it_was_published() {
    let mut large = Upcasters::default();
    large.register("asset.updated", 1, |_| Ok(vec![b' '; EVENT_PAYLOAD_BYTES_MAX + 1])).unwrap();
    let mut falling = Upcasters::default();
    falling.register("asset.updated", 1, |_| panic!("a test's step falls")).unwrap();
    for (upcasters, why) in [
        (falling, "panicked"),
        (upcasters(), "from schema version 1: it has no"),
        (large, "event_payload_bytes_max"),
    ] {
        let event = updated(1, "{}");
        assert!(upcasters.apply(&event).unwrap_err().contains(why));
        let mut batch = EventBatch::new(tenant("acme"));
        batch.push(&event).unwrap();
        let seen = upcasters.batch(&batch).unwrap();
        assert_eq!((seen.get(0).payload, seen.get(0).schema_version), (&b"{}"[..], 1));
    }
}

pub(super) async fn c05_c06_every_way_to_read_shows_upcast_events_and_the_log_keeps_what_was_published(
    inner: Arc<dyn EventLog>,
) {
    let log = UpcastLog::new(Arc::clone(&inner), Arc::new(upcasters()));
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let sent = change("asset", "A1", 1, "updated", r#"{"site":"S1"}"#);
    log.append(sent.clone()).await.unwrap();
    log.append_to(&named("orders"), sent.clone()).await.unwrap();
    let acme = tenant("acme");
    let newest = br#"{"site_id":"S1","unit":"m"}"#;
    let mut seen = vec![log.read(&acme, Position::START, ALL).await.unwrap().events];
    for stream in [StreamName::Events, named("orders"), stream("asset", "id", "A1")] {
        seen.push(log.read_stream(&acme, &stream, Position::START, ALL).await.unwrap().events);
    }
    seen.extend(log.tail().read(&acme, Position::START, 10).unwrap());
    assert_eq!(seen.len(), 5);
    for events in &seen {
        assert_eq!((events.get(0).payload, events.get(0).schema_version), (&newest[..], 3));
    }
    assert_eq!(seen[4].marks().len(), 2, "the tail still knows the change streams");
    let kept = inner.read(&acme, Position::START, ALL).await.unwrap().events;
    assert_eq!(kept.get(0).schema_version, 1);
    assert!(log.append(sent).await.unwrap()[0].repeated, "a repeat is compared with what was published");
    // What has no step comes as it is, behind what has some.
    log.append(change("asset", "A1", 2, "created", "{}")).await.unwrap();
    let read = log.read(&acme, Position::START, ALL).await.unwrap().events;
    let tail = log.tail().read(&acme, Position::START, 10).unwrap();
    let told = tail.iter().flat_map(|chunk| chunk.iter());
    for (how, events) in [("read", read.iter().collect::<Vec<_>>()), ("tail", told.collect())] {
        let seen: Vec<_> = events.iter().map(|event| (event.payload, event.schema_version)).collect();
        assert_eq!(seen, [(&newest[..], 3), (&b"{}"[..], 1)], "{how}");
    }
}
