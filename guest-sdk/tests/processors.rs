//! Claims about batches, effects and keyed state, and about the driver that looks after them.

use std::collections::BTreeMap;

use millrace_guest::log::Level;
use millrace_guest::native::{NativeInstance, NoHost};
use millrace_guest::testing::{Batch, Driver, Setup, TestEvent};
use millrace_guest::wire::EffectRecord;
use millrace_guest::{
    ChannelEntry, Column, Context, Effects, EntryType, Event, Failure, FailureKind, FlushReason, Manifest,
    NewEntry, NewEvent, Processor, Saved, Table, Timestamp, config, log,
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
                out.emit(&NewEvent { at: Some(Timestamp(5)), ..event }, &json!({"greeting": self.greeting}))?;
            }
            "append" => {
                let answer = NewEntry::text("hello").replying_to(3);
                out.append(key, "answers", &answer)?;
                out.append(key, "answers", &NewEntry { payload: None, ..answer })?;
                out.append(key, "answers", &NewEntry::data(b""))?;
                out.append(key, "chat", &NewEntry::error("it broke"))?;
                out.append(key, "answers", &NewEntry::end())?;
            }
            "append-and-fail" => {
                out.append(key, "answers", &NewEntry::text("never seen"))?;
                return Err(Failure::reject("as asked"));
            }
            "append-nameless" => out.append("", "answers", &NewEntry::end())?,
            "append-long-name" => out.append(key, &"c".repeat(65), &NewEntry::end())?,
            "append-error-text" => {
                out.append(key, "answers", &NewEntry { error: Some("x"), ..NewEntry::text("y") })?;
            }
            "append-long-error" => out.append(key, "answers", &NewEntry::error(&"e".repeat(4_097)))?,
            "append-large" => out.append(key, "answers", &NewEntry::data(&vec![0; (10 << 20) + 1]))?,
            "forge" => {
                let event =
                    NewEvent { aggregate: "a", agg_id: key, event_type: "channel.end", ..Default::default() };
                out.emit(&event, &1)?;
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
    let outcome = instance.handle(&batch.arena, &batch.records);
    assert_eq!(outcome.handled, 2);
    assert_eq!(outcome.failure.map(|failure| failure.index), Some(2));
    let effects: Vec<_> =
        EffectRecord::read_all(&outcome.effects.records).map(|e| (e.event, e.table, e.version)).collect();
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
        ("append-nameless", FailureKind::Reject, "the name of the process has 0 bytes"),
        ("append-long-name", FailureKind::Reject, "the name of the channel has 65 bytes"),
        ("append-error-text", FailureKind::Fatal, "goes with an entry of the type `error` only"),
        ("append-long-error", FailureKind::Reject, "channel_error_bytes_max is 4096"),
        ("append-large", FailureKind::Reject, "channel_payload_bytes_max is 10485760"),
        ("forge", FailureKind::Fatal, "`channel.end` is what the host says"),
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

/// Emits without a time, in `flush`, too.
struct Undated;

impl Undated {
    fn emit(out: &mut Effects) -> Result<(), Failure> {
        let event = NewEvent { aggregate: "a", agg_id: "b", event_type: "c", ..Default::default() };
        out.emit(&event, &())
    }
}

impl Processor for Undated {
    fn manifest() -> Manifest {
        Manifest::new("undated", "1.0.0")
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, _: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        Self::emit(out)
    }

    fn flush(&mut self, _: FlushReason, out: &mut Effects) -> Result<(), Failure> {
        Self::emit(out)
    }
}

#[test]
fn an_emitted_event_without_a_time_has_that_of_its_cause() {
    let mut driver = Driver::<Undated>::new();
    let early = driver.flush(FlushReason::Tick).unwrap_err();
    assert_eq!(early.kind, FailureKind::Retry);
    assert!(early.message.contains("there is no time to emit at"), "{early}");
    let at = |version, at: &str| event("any", "x", version).at(at);
    driver.send(&[at(1, "2013-01-01T00:00:07Z"), at(2, "2013-01-01T00:00:05Z")]).unwrap();
    driver.flush(FlushReason::Tick).unwrap();
    let times: Vec<_> = driver.emitted().iter().map(|emitted| emitted.at.to_string()).collect();
    assert_eq!(times, ["2013-01-01T00:00:07Z", "2013-01-01T00:00:05Z", "2013-01-01T00:00:07Z"]);
}

#[test]
fn entries_are_appended_in_order_and_as_they_are() {
    let mut driver = Driver::<Obedient>::new();
    driver.send(&[event("append", "p-1", 1)]).unwrap();
    driver.send(&[event("append-and-fail", "p-2", 1)]).unwrap_err();
    let appended: Vec<_> = driver.appended().iter().map(|a| (a.channel.as_str(), a.entry_type)).collect();
    let (data, end) = (EntryType::Data, EntryType::End);
    let expected = [
        ("answers", data),
        ("answers", data),
        ("answers", data),
        ("chat", EntryType::Error),
        ("answers", end),
    ];
    assert_eq!(appended, expected);
    assert!(driver.appended().iter().all(|entry| entry.process == "p-1"));
    let [first, none, empty, failed, _] = driver.appended() else { panic!("there are five") };
    assert_eq!((first.text(), first.in_reply_to, &first.error), ("hello", Some(3), &None));
    assert_eq!((&none.payload, none.in_reply_to), (&None, Some(3)));
    assert_eq!((&empty.payload, empty.in_reply_to), (&Some(vec![]), None));
    assert_eq!((failed.error.as_deref(), &failed.payload), (Some("it broke"), &None));
}

#[test]
fn an_entry_of_a_channel_is_read_from_its_event() {
    let event = TestEvent::entry("p-1", "requests", 4, "ada", "hé\n\"".as_bytes()).executed_by("plugin:a");
    assert_eq!((event.aggregate.as_str(), event.agg_id.as_str()), ("channel", "p-1_requests"));
    assert_eq!((event.event_type.as_str(), event.version), ("channel.data", 4));
    let entry: ChannelEntry<'_> = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!((&*entry.process, &*entry.channel, &*entry.sender), ("p-1", "requests", "ada"));
    assert_eq!((entry.position, entry.entry_type, entry.in_reply_to), (4, EntryType::Data, None));
    assert_eq!((entry.text.as_deref(), entry.executor.as_deref()), (Some("hé\n\""), Some("plugin:a")));
    assert_eq!(entry.bytes().unwrap(), "hé\n\"".as_bytes());
    let event = TestEvent::entry("p-1", "requests", 5, "ada", &[0xff, 0, 1]);
    let entry: ChannelEntry<'_> = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!((entry.text.as_deref(), entry.bytes()), (None, Some(vec![0xff, 0, 1])));
    let event = TestEvent::entry_error("p-1", "requests", 6, "ada", "no more");
    let entry: ChannelEntry<'_> = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!((entry.entry_type, entry.error.as_deref()), (EntryType::Error, Some("no more")));
    assert_eq!((entry.bytes(), entry.executor), (None, None));
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
