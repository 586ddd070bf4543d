//! Claims about batches, effects and keyed state, and about the driver that looks after them.

use std::collections::BTreeMap;

use millrace_guest::log::Level;
use millrace_guest::native::{NativeInstance, NoHost};
use millrace_guest::testing::{Batch, Driver, Setup, TestEvent};
use millrace_guest::{
    Column, Context, Effects, Event, Failure, FailureKind, FlushReason, Manifest, NewEvent, Processor, Saved,
    Table, Timestamp, config, log,
};
use serde_json::json;

static ROWS: Table = Table::new("rows", &[Column::text("what").nullable()]).versioned();
static OTHER: Table = Table::new("other", &[Column::int("number")]);
static UNKNOWN: Table = Table::new("unknown", &[Column::int("number")]);

/// Does what an event's type says, to what its agg-id names.
struct Obedient {
    handled: u64,
    greeting: String,
}

impl Processor for Obedient {
    fn manifest() -> Manifest {
        Manifest::new("obedient", "1.0.0").state("application/json").tables(&[&OTHER, &ROWS])
    }

    fn load(context: Context, saved: Option<Saved>) -> Result<Self, String> {
        let handled = saved.map(|saved| saved.json("application/json")).transpose()?.unwrap_or(0);
        let greeting = match context.state_get(b"greeting") {
            Some(stored) => String::from_utf8_lossy(&stored.value).into_owned(),
            None => config::get_or("greeting", String::from("hello"))?,
        };
        Ok(Self { handled, greeting })
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let (key, version) = (event.agg_id(), event.version());
        match event.event_type() {
            "put" => out.put(&ROWS, key, version, &json!({"what": "put"}))?,
            "delete" => out.delete(&ROWS, key, version)?,
            "fail" => {
                out.put(&ROWS, key, version, &json!({"what": "never seen"}))?;
                out.state().put(b"never", b"seen")?;
                return Err(Failure::reject("as asked"));
            }
            "fail-late" => {
                self.handled += 1;
                return Err(Failure::retry("after a change"));
            }
            "unknown-table" => out.put(&UNKNOWN, key, 0, &json!({"number": 1}))?,
            "no-version" => out.put(&ROWS, key, 0, &json!({}))?,
            "long-key" => out.put(&OTHER, &"k".repeat(1_025), 0, &json!({"number": 1}))?,
            "long-row" => out.put(&ROWS, key, 1, &json!({"what": "x".repeat(1 << 20)}))?,
            "half-row" => {
                // A put that was refused, and coped with, leaves nothing behind.
                let refused = out.put(&OTHER, key, 0, &json!({"number": u64::MAX}));
                log::warn(refused.err().map(|failure| failure.to_string()).unwrap_or_default());
                out.put(&OTHER, key, 0, &json!({"number": 1}))?;
            }
            "emit" => {
                let event =
                    NewEvent { aggregate: "reply", agg_id: key, event_type: "replied", ..Default::default() };
                out.emit(&NewEvent { at: Timestamp(5), ..event }, &json!({"greeting": self.greeting}))?;
            }
            "emit-nameless" => out.emit(&NewEvent { aggregate: "reply", ..Default::default() }, &1)?,
            "payload" => out.put(&OTHER, key, 0, &json!({"number": event.payload_as::<i64>()?}))?,
            "state-empty-key" => out.state().put(b"", b"1")?,
            _ => {}
        }
        self.handled += 1;
        Ok(())
    }

    fn flush(&mut self, reason: FlushReason, out: &mut Effects) -> Result<(), Failure> {
        out.state().put(b"handled", self.handled.to_string().as_bytes())?;
        match reason {
            FlushReason::Tick => Ok(()),
            _ => Err(Failure::retry("only ticks")),
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.handled.to_string().into_bytes()
    }
}

fn event(event_type: &str, agg_id: &str, version: u64) -> TestEvent {
    TestEvent::new("thing", agg_id, version, event_type)
}

fn refused(event_type: &str) -> Failure {
    Driver::<Obedient>::new()
        .send(&[event(event_type, "a", 1)])
        .expect_err("it must not be let through")
        .failure
}

#[test]
fn a_failure_keeps_what_came_before_and_nothing_of_its_own() {
    let mut driver = Driver::<Obedient>::new();
    let failed =
        driver.send(&[event("put", "a", 1), event("fail", "b", 1), event("put", "c", 1)]).unwrap_err();
    assert_eq!((failed.index, failed.failure), (1, Failure::reject("as asked")));
    assert_eq!(driver.rows("rows").keys().collect::<Vec<_>>(), ["a"]);
    assert!(driver.state().is_empty());
    assert_eq!(driver.processor().handled, 1);
}

#[test]
fn the_outcome_names_the_failing_event() {
    let context = Context { tenant: "t".into(), lane: 0, lanes: 1 };
    let mut instance = NativeInstance::<Obedient>::load(std::sync::Arc::new(NoHost), context, None).unwrap();
    let batch = Batch::new(&[event("put", "a", 1), event("put", "b", 2), event("fail", "c", 1)], 7);
    let outcome = instance.handle(&batch.arena, &batch.words);
    assert_eq!(outcome.handled, 2);
    assert_eq!(outcome.failure.map(|failure| failure.index), Some(2));
    let effects: Vec<_> = outcome.effects.records.iter().map(|e| (e.event, e.table, e.version)).collect();
    assert_eq!(effects, [(0, 1, 1), (1, 1, 2)]);
    assert!(instance.handle(&[], &[]).effects.records.is_empty(), "effects are handed over once");
}

#[test]
#[should_panic(expected = "has changed the state")]
fn the_driver_notices_a_failing_event_that_changed_the_state() {
    let _ = Driver::<Obedient>::new().send(&[event("put", "a", 1), event("fail-late", "a", 2)]);
}

#[test]
fn versioned_rows_and_deletes_leave_older_ones_out() {
    let mut driver = Driver::<Obedient>::new();
    driver.send(&[event("put", "a", 2), event("put", "a", 1), event("delete", "a", 3)]).unwrap();
    assert!(driver.row("rows", "a").is_none());
    driver.send(&[event("put", "a", 2)]).unwrap();
    assert!(driver.row("rows", "a").is_none(), "the delete was newer");
    driver.send(&[event("put", "a", 4)]).unwrap();
    assert_eq!((driver.row("rows", "a").unwrap().version, driver.stale()), (4, 2));
}

#[test]
fn what_the_host_would_refuse_is_refused_where_it_is_asked_for() {
    for (event_type, kind, says) in [
        ("unknown-table", FailureKind::Fatal, "does not name table `unknown`"),
        ("no-version", FailureKind::Fatal, "version 0"),
        ("long-key", FailureKind::Reject, "row_key_bytes_max"),
        ("long-row", FailureKind::Reject, "row_bytes_max"),
        ("emit-nameless", FailureKind::Fatal, "`agg_id`"),
        ("payload", FailureKind::Reject, "the payload of `payload` a version 1 does not fit"),
        ("state-empty-key", FailureKind::Reject, "state_key_bytes_max"),
    ] {
        let failure = refused(event_type);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(says), "{failure}");
    }
}

#[test]
fn a_put_that_was_refused_leaves_nothing_behind() {
    let mut driver = Driver::<Obedient>::new();
    driver.send(&[event("half-row", "a", 1)]).unwrap();
    assert_eq!(driver.row("other", "a").unwrap()["number"], 1);
    assert_eq!(driver.messages().len(), 1);
    assert_eq!(driver.messages()[0].level, Level::Warn);
    assert!(driver.messages()[0].text.contains("more than a signed 64-bit number"));
}

#[test]
fn emitted_events_carry_payload_time_depth_and_the_scope_of_their_cause() {
    let setup = Setup { config: BTreeMap::from([("greeting".into(), "moin".into())]), ..Setup::default() };
    let mut driver = Driver::<Obedient>::start(setup).unwrap();
    let deep = TestEvent { depth: 4, scope: "north".into(), ..event("emit", "a", 1) };
    driver.send(&[event("put", "x", 1), deep]).unwrap();
    let emitted = &driver.emitted()[0];
    assert_eq!((emitted.aggregate.as_str(), emitted.agg_id.as_str(), emitted.depth), ("reply", "a", 5));
    assert_eq!((emitted.at, emitted.json()), (Timestamp(5), json!({"greeting": "moin"})));
    assert_eq!(emitted.scope, "north");
}

#[test]
fn load_sees_settings_and_keyed_state() {
    let setup = Setup {
        config: BTreeMap::from([("greeting".into(), "moin".into())]),
        state: BTreeMap::from([(b"greeting".to_vec(), b"servus".to_vec().into())]),
        ..Setup::default()
    };
    assert_eq!(Driver::<Obedient>::start(setup).unwrap().processor().greeting, "servus");
}

#[test]
fn a_flush_that_fails_writes_nothing() {
    let mut driver = Driver::<Obedient>::new();
    driver.send(&[event("put", "a", 1)]).unwrap();
    driver.flush(FlushReason::Shutdown).unwrap_err();
    assert!(driver.state().is_empty());
    driver.flush(FlushReason::Tick).unwrap();
    assert_eq!(driver.state()[&b"handled"[..]].value, b"1");
}

#[test]
fn every_part_of_an_event_arrives() {
    struct Looks;

    impl Processor for Looks {
        fn manifest() -> Manifest {
            Manifest::new("looks", "1.0.0")
        }

        fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
            Ok(Self)
        }

        fn handle(&mut self, event: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
            let texts = [event.id(), event.aggregate(), event.agg_id(), event.event_type()];
            let optional = [event.scope(), event.kind(), event.cursor(), event.traceparent()];
            log::info(format!("{texts:?} {optional:?} {:?}", event.payload_as::<&str>()));
            log::debug(format!(
                "{} {} {} {} {}",
                event.position(),
                event.version(),
                event.at(),
                event.schema_version(),
                event.depth()
            ));
            Ok(())
        }
    }

    let full = TestEvent {
        scope: "s".into(),
        kind: "kï".into(),
        cursor: "c".into(),
        traceparent: "00-1".into(),
        schema_version: 3,
        depth: 2,
        ..TestEvent::new("agg", "ïd", 9, "type").at("2013-01-01T00:00:00Z").payload("päyload")
    };
    let mut driver = Driver::<Looks>::new();
    driver.send(&[TestEvent::new("a", "b", 1, "c").payload("x"), full]).unwrap();
    let said: Vec<String> = driver.messages().into_iter().map(|message| message.text).collect();
    assert_eq!(
        said,
        [
            r#"["a/b/1", "a", "b", "c"] [None, None, None, None] Ok("x")"#,
            "1 1 1970-01-01T00:00:00Z 1 0",
            r#"["agg/ïd/9", "agg", "ïd", "type"] [Some("s"), Some("kï"), Some("c"), Some("00-1")] Ok("päyload")"#,
            "2 9 2013-01-01T00:00:00Z 3 2",
        ]
    );
}
