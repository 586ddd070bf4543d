//! Behaves: the guest of the conformance kit in Rust. What it does is told by the event's type; `tests/kit/README.md` has
//! the rules, which its counterparts in other languages follow to the byte.

use millrace_guest::{
    ChangeScope, Column, Context, Effects, EntryType, Event, Failure, FlushReason, Manifest, NewEntry,
    NewEvent, OrderingKey, Processor, Saved, Table, Timestamp, config, log,
};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::time::Duration;

static ROWS: Table = Table::new(
    "rows",
    &[
        Column::text("event_id").filterable(),
        Column::text("aggregate"),
        Column::int("number").sortable(),
        Column::timestamp("happened_at").filterable().sortable(),
        Column::int("place"),
        Column::int("schema"),
        Column::int("depth"),
        Column::text("scope").nullable(),
        Column::text("kind").nullable(),
        Column::text("cursor").nullable(),
        Column::text("trace").nullable(),
        Column::bytes("payload"),
        Column::json("doc"),
        Column::bool("odd"),
        Column::float("bits"),
        Column::text("nothing").nullable().filterable().sortable(),
    ],
)
.versioned()
.window_rows_max(77);

static READS: Table =
    Table::new("reads", &[Column::bytes("value").nullable(), Column::int("entries").nullable()]);

struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[derive(Serialize)]
struct Row<'a> {
    event_id: &'a str,
    aggregate: &'a str,
    number: u64,
    happened_at: Timestamp,
    place: u64,
    schema: u32,
    depth: u32,
    scope: Option<&'a str>,
    kind: Option<&'a str>,
    cursor: Option<&'a str>,
    trace: Option<&'a str>,
    payload: Bytes<'a>,
    doc: &'a RawValue,
    odd: bool,
    bits: f64,
    nothing: Option<&'a str>,
}

#[derive(Serialize)]
struct Read<'a> {
    value: Option<Bytes<'a>>,
    entries: Option<u64>,
}

const OWN: &str = "k/2";
const OLDER: &str = "k/1";
const REFUSAL: &str = "the kit reads k/1, and k/2 of 16 bytes";
const BASIS: u32 = 2_166_136_261;
const PRIME: u32 = 16_777_619;

fn hashed(hash: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME))
}

/// Counts what it handled, and hashes the payloads.
#[derive(Debug)]
pub struct Kit {
    count: u64,
    hash: u32,
}

impl Processor for Kit {
    fn manifest() -> Manifest {
        let scopes =
            [ChangeScope::Id, ChangeScope::Tenant, ChangeScope::Field { name: "of-owner", member: "owner" }];
        Manifest::new("kit", "1.2.3-kit.1")
            .summary("Does what the type of an event says: é")
            .state(OWN)
            .ordering_key(OrderingKey::PayloadField("key"))
            .types(&["*"])
            .aggregates(&["thing", "other*"])
            .tables(&[&ROWS, &READS])
            .flush_every(Duration::from_secs(1))
            .changes("thing", &scopes)
            .changes("kit", &[ChangeScope::Tenant])
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let mut kit = Self { count: 0, hash: BASIS };
        if let Some(Saved { content_type, state }) = saved {
            match (content_type.as_str(), state.as_chunks::<8>()) {
                (OLDER, _) => kit.count = state.len() as u64,
                (OWN, ([count, hash], [])) => {
                    kit.count = u64::from_le_bytes(*count);
                    kit.hash = u32::try_from(u64::from_le_bytes(*hash)).map_err(|_| REFUSAL)?;
                }
                _ => return Err(REFUSAL.into()),
            }
        }
        Ok(kit)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        act(&event, out)?;
        self.count += 1;
        self.hash = hashed(self.hash, event.payload());
        Ok(())
    }

    fn flush(&mut self, reason: FlushReason, out: &mut Effects) -> Result<(), Failure> {
        if let Some(message) = config::get("flush_fails") {
            return Err(Failure::retry(message));
        }
        if self.hash.is_multiple_of(2) {
            return Ok(());
        }
        let reason = match reason {
            FlushReason::Tick => "tick",
            FlushReason::Shutdown => "shutdown",
            FlushReason::Swap => "swap",
        };
        let at = i64::try_from(self.count).map_err(|error| Failure::fatal(error.to_string()))?;
        let event = NewEvent {
            aggregate: "kit",
            agg_id: "flush",
            event_type: "kit.flush",
            version: self.count + 1,
            at: Some(Timestamp(at)),
            ..NewEvent::default()
        };
        out.emit(&event, reason)
    }

    fn snapshot(&self) -> Vec<u8> {
        [self.count.to_le_bytes(), u64::from(self.hash).to_le_bytes()].concat()
    }
}

fn act(event: &Event<'_>, out: &mut Effects) -> Result<(), Failure> {
    let (agg_id, version, payload) = (event.agg_id(), event.version(), event.payload());
    match event.event_type() {
        "put" => out.put(&ROWS, agg_id, version, &row(event)?),
        "del" => out.delete(&ROWS, agg_id, version),
        "emit" => emit(event, Some(event.at()), event.id(), out),
        "emit.derived" => emit(event, Some(event.at()), "", out),
        "emit.now" => emit(event, None, event.id(), out),
        "append.data" => append(event, EntryType::Data, out),
        "append.end" => append(event, EntryType::End, out),
        "append.error" => append(event, EntryType::Error, out),
        "many" => (1..=u64::from(event.schema_version())).try_for_each(|number| {
            out.put(&READS, agg_id, number, &Read { value: None, entries: Some(number) })
        }),
        "sput" => out.state().put(&key(event), payload),
        "sput.until" => {
            let end = Timestamp(event.at().0.saturating_add(1_000_000));
            out.state().put_until(&key(event), payload, end)
        }
        "sget" => {
            let value = out.state().get(&key(event));
            out.put(&READS, agg_id, version, &Read { value: value.as_deref().map(Bytes), entries: None })
        }
        "sdel" => out.state().delete(&key(event)),
        "sscan" => scan(event, out),
        "cfg" => {
            let value = config::get(agg_id);
            let value = value.as_ref().map(|value| Bytes(value.as_bytes()));
            out.put(&READS, agg_id, version, &Read { value, entries: None })
        }
        "log" => {
            log::info(String::from_utf8_lossy(payload));
            Ok(())
        }
        "retry" => Err(failing(event, out, Failure::retry)?),
        "reject" => Err(failing(event, out, Failure::reject)?),
        "fatal" => Err(failing(event, out, Failure::fatal)?),
        _ => Ok(()),
    }
}

/// The key that an event is about: with a schema version of 2, bytes that are no text.
fn key(event: &Event<'_>) -> Vec<u8> {
    let flip = if event.schema_version() == 2 { 0x80 } else { 0 };
    event.agg_id().bytes().map(|byte| byte ^ flip).collect()
}

fn document<'a>(event: &Event<'a>) -> Result<&'a RawValue, Failure> {
    serde_json::from_slice(event.payload()).map_err(|error| Failure::reject(error.to_string()))
}

fn row<'a>(event: &Event<'a>) -> Result<Row<'a>, Failure> {
    Ok(Row {
        event_id: event.id(),
        aggregate: event.aggregate(),
        number: event.version(),
        happened_at: event.at(),
        place: event.position(),
        schema: event.schema_version(),
        depth: event.depth(),
        scope: event.scope(),
        kind: event.kind(),
        cursor: event.cursor(),
        trace: event.traceparent(),
        payload: Bytes(event.payload()),
        doc: document(event)?,
        odd: event.version() % 2 == 1,
        bits: f64::from_bits(event.position()),
        nothing: None,
    })
}

fn emit(event: &Event<'_>, at: Option<Timestamp>, id: &str, out: &mut Effects) -> Result<(), Failure> {
    let copy = NewEvent {
        aggregate: "kit",
        agg_id: event.agg_id(),
        event_type: "kit.copy",
        version: event.version(),
        at,
        schema_version: event.schema_version(),
        id,
    };
    out.emit(&copy, document(event)?)
}

fn append(event: &Event<'_>, entry_type: EntryType, out: &mut Effects) -> Result<(), Failure> {
    let entry = NewEntry {
        entry_type,
        in_reply_to: Some(u64::from(event.depth())).filter(|number| *number > 0),
        error: event.cursor().filter(|_| entry_type == EntryType::Error),
        payload: (event.schema_version() != 2).then(|| event.payload()),
    };
    out.append(event.agg_id(), event.aggregate(), &entry)
}

fn scan(event: &Event<'_>, out: &mut Effects) -> Result<(), Failure> {
    let limit = if event.depth() == 0 { u64::MAX } else { u64::from(event.depth()) };
    let (mut hash, mut entries) = (BASIS, 0);
    for entry in out.state().scan(&key(event)).limit(limit) {
        hash = hashed(hashed(hash, &entry.key), &entry.value);
        entries += 1;
    }
    let found = Read { value: Some(Bytes(&hash.to_le_bytes())), entries: Some(entries) };
    out.put(&READS, event.id(), event.version(), &found)
}

/// Asks for a row and an entry, which must be dropped with the event that fails.
fn failing(event: &Event<'_>, out: &mut Effects, failure: fn(String) -> Failure) -> Result<Failure, Failure> {
    out.put(&READS, event.agg_id(), event.version(), &Read { value: None, entries: None })?;
    out.state().put(&key(event), event.payload())?;
    Ok(failure(String::from_utf8_lossy(event.payload()).into_owned()))
}

millrace_guest::export!(Kit);
