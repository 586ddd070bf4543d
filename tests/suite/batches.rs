//! Claims about batches: of events, and of cells.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use millrace::event::{Event, EventBatch, InvalidEvent, Micros, Position, TenantId, derived_id};
use millrace::limits::{EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX};
use millrace::tables::{Cell, CellError, Cells, CellsBuilder, Column, ColumnType, TableSchema};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct OwnedEvent {
    texts: [String; 8],
    numbers: (u64, i64, u32, u32),
    payload: Vec<u8>,
}

impl OwnedEvent {
    fn borrow(&self) -> Event<'_> {
        let [id, aggregate, agg_id, event_type, scope, kind, cursor, traceparent] =
            self.texts.each_ref().map(String::as_str);
        let (version, at, schema_version, depth) = self.numbers;
        Event {
            position: Position(0),
            id,
            aggregate,
            agg_id,
            version,
            event_type,
            at: Micros(at),
            schema_version,
            depth,
            scope,
            kind,
            cursor,
            traceparent,
            payload: &self.payload,
        }
    }
}

fn owned_event() -> impl Strategy<Value = OwnedEvent> {
    let needed = || "[^\\p{Cc}]{1,12}";
    let optional = || "[^\\p{Cc}]{0,12}";
    let texts = ((needed(), needed(), needed(), needed()), (optional(), optional(), optional(), optional()));
    let version = 1..=u64::try_from(i64::MAX).unwrap();
    let numbers = (version, any::<i64>(), 1..=u32::MAX, any::<u32>());
    (texts, numbers, prop::collection::vec(any::<u8>(), 0..200)).prop_map(
        |(((a, b, c, d), (e, f, g, h)), numbers, payload)| OwnedEvent {
            texts: [a, b, c, d, e, f, g, h],
            numbers,
            payload,
        },
    )
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn batch_of(events: &[OwnedEvent]) -> EventBatch {
    let mut batch = EventBatch::new(acme());
    for event in events {
        batch.push(&event.borrow()).unwrap();
    }
    batch
}

#[derive(Clone, Debug)]
enum OwnedCell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Json(i32),
    Timestamp(i64),
}

fn owned_cell() -> impl Strategy<Value = OwnedCell> {
    prop_oneof![
        Just(OwnedCell::Null),
        any::<bool>().prop_map(OwnedCell::Bool),
        any::<i64>().prop_map(OwnedCell::Int),
        prop::num::f64::NORMAL.prop_map(OwnedCell::Float),
        ".{0,20}".prop_map(OwnedCell::Text),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(OwnedCell::Bytes),
        any::<i32>().prop_map(OwnedCell::Json),
        any::<i64>().prop_map(OwnedCell::Timestamp),
    ]
}

/// The cells' bytes, and a table that they fit.
fn row_of(cells: &[OwnedCell]) -> (Vec<u8>, TableSchema) {
    let mut builder = CellsBuilder::default();
    let mut columns = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        let json;
        let (cell, column_type) = match cell {
            OwnedCell::Null => (Cell::Null, ColumnType::Int),
            OwnedCell::Bool(value) => (Cell::Bool(*value), ColumnType::Bool),
            OwnedCell::Int(value) => (Cell::Int(*value), ColumnType::Int),
            OwnedCell::Float(value) => (Cell::Float(*value), ColumnType::Float),
            OwnedCell::Text(text) => (Cell::Text(text), ColumnType::Text),
            OwnedCell::Bytes(bytes) => (Cell::Bytes(bytes), ColumnType::Bytes),
            OwnedCell::Json(number) => {
                json = number.to_string();
                (Cell::Json(&json), ColumnType::Json)
            }
            OwnedCell::Timestamp(value) => (Cell::Timestamp(*value), ColumnType::Timestamp),
        };
        builder.push(cell);
        columns.push(Column {
            name: format!("c{index}"),
            column_type,
            nullable: true,
            filterable: false,
            sortable: false,
        });
    }
    (builder.finish(), TableSchema { name: "rows".into(), columns, versioned: false, window_rows_max: 1 })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn event_comes_out_as_it_went_in(events in prop::collection::vec(owned_event(), 0..20)) {
        let batch = batch_of(&events);
        prop_assert_eq!(batch.len(), events.len());
        for (read, event) in batch.iter().zip(&events) {
            prop_assert_eq!(read, event.borrow());
        }
        let spans: usize = batch.records().iter().map(|r| r.span().len()).sum();
        prop_assert_eq!(spans, batch.bytes());
    }

    #[test]
    fn events_cross_to_a_guest_as_they_were(
        events in prop::collection::vec((owned_event(), any::<u64>()), 0..20),
    ) {
        let (events, positions): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let mut batch = batch_of(&events);
        let mut wire = Vec::new();
        for (index, position) in positions.iter().enumerate() {
            batch.set_position(index, Position(*position));
            batch.records()[index].write_wire(&mut wire);
        }
        let (records, rest) = wire.as_chunks::<{ millrace_guest::EVENT_BYTES }>();
        prop_assert_eq!((records.len(), rest.len()), (events.len(), 0));
        for ((record, event), position) in records.iter().zip(&events).zip(positions) {
            let read = millrace_guest::Event::new(batch.arena(), record);
            let optional = |text: Option<&str>| text.unwrap_or_default().to_owned();
            let parts = [
                read.id().to_owned(),
                read.aggregate().to_owned(),
                read.agg_id().to_owned(),
                read.event_type().to_owned(),
                optional(read.scope()),
                optional(read.kind()),
                optional(read.cursor()),
                optional(read.traceparent()),
            ];
            prop_assert_eq!(&parts, &event.texts);
            prop_assert_eq!(read.payload(), event.payload.as_slice());
            let numbers = (read.version(), read.at().0, read.schema_version(), read.depth());
            prop_assert_eq!(numbers, event.numbers);
            prop_assert_eq!(read.position(), position);
        }
    }

    #[test]
    fn copied_events_are_the_same(
        events in prop::collection::vec(owned_event(), 1..10),
        more in prop::collection::vec(owned_event(), 0..10),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let (one, two) = (batch_of(&events), batch_of(&more));
        let mut joined = one.clone();
        joined.extend_from(&two);
        let mut expected: Vec<&OwnedEvent> = events.iter().chain(&more).collect();
        for pick in picks {
            let index = pick.index(one.len());
            joined.push_from(&one, index);
            expected.push(&events[index]);
        }
        let last = joined.len() - 1;
        joined.set_position(last, Position(77));
        prop_assert_eq!(joined.last_position(), Position(77));
        for (index, event) in expected.iter().enumerate() {
            let position = Position(if index == last { 77 } else { 0 });
            prop_assert_eq!(joined.get(index), Event { position, ..event.borrow() });
        }
    }

    #[test]
    fn cells_come_out_as_they_went_in(cells in prop::collection::vec(owned_cell(), 1..20)) {
        let (bytes, table) = row_of(&cells);
        prop_assert_eq!(Cells::validate(&bytes, &table), Ok(()));
        let mut again = CellsBuilder::default();
        for cell in Cells::new(&bytes) {
            again.push(cell.unwrap());
        }
        prop_assert_eq!(again.finish(), bytes);
    }

    #[test]
    fn damaged_cells_are_refused_and_never_panic(
        cells in prop::collection::vec(owned_cell(), 1..8),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (bytes, table) = row_of(&cells);
        prop_assert!(Cells::validate(&bytes[..cut.index(bytes.len())], &table).is_err());
        let longer: Vec<u8> = bytes.iter().chain(&[0]).copied().collect();
        let refused = Cells::validate(&longer, &table);
        prop_assert!(matches!(refused, Err(CellError::Count { .. })), "{:?}", refused);
        // Anything may come from a guest; all that counts here is that an answer comes back.
        let _ = Cells::validate(&noise, &table);
        prop_assert!(Cells::new(&noise).count() <= noise.len());
    }
}

#[test]
fn event_without_an_id_derives_one() {
    let event = Event { aggregate: "flight", agg_id: "LX8", version: 3, event_type: "t", ..Event::default() };
    let mut batch = EventBatch::new(acme());
    batch.push(&event).unwrap();
    assert_eq!(batch.get(0).id, derived_id("acme", "flight", "LX8", 3));
    assert_eq!(batch.get(0).id.len(), 32);
    assert_ne!(derived_id("acme", "flightL", "X8", 3), batch.get(0).id, "parts do not run into each other");
}

#[test]
fn c03_bad_event_is_refused_and_leaves_nothing() {
    let good = Event { aggregate: "a", agg_id: "1", event_type: "t", ..Event::default() };
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let large = vec![b' '; EVENT_PAYLOAD_BYTES_MAX + 1];
    let mut batch = EventBatch::new(acme());
    for (event, refused) in [
        (Event { aggregate: "", ..good }, InvalidEvent::Missing { field: "aggregate" }),
        (Event { agg_id: "a\nb", ..good }, InvalidEvent::ControlCharacter { field: "agg_id" }),
        (Event { scope: &long, ..good }, InvalidEvent::NameTooLong { field: "scope", bytes: long.len() }),
        (Event { version: 0, ..good }, InvalidEvent::Version { version: 0 }),
        (Event { version: u64::MAX, ..good }, InvalidEvent::Version { version: u64::MAX }),
        (Event { schema_version: 0, ..good }, InvalidEvent::SchemaVersion),
        (Event { payload: &large, ..good }, InvalidEvent::PayloadTooLarge { bytes: large.len() }),
    ] {
        assert_eq!(batch.push(&event), Err(refused));
    }
    assert!(batch.is_empty() && batch.bytes() == 0);
}
