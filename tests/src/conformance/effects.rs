//! Effects, tables and commits for tests.

use std::sync::Arc;

use millrace::checkpoints::{
    ChannelGrant, Commit, EffectBatch, EffectKind, EffectRecord, Generation, ParkedWrites, SavedState, TaskId,
};
use millrace::event::{Micros, Position, TenantId};
use millrace::tables::{Cell, CellsBuilder, Column, ColumnType, TableSchema};

/// Collects effects and has them checked like a guest's.
#[derive(Debug, Default)]
pub struct Effects {
    arena: Vec<u8>,
    records: Vec<EffectRecord>,
}

impl Effects {
    fn push(&mut self, kind: EffectKind, parts: [&[u8]; 5]) -> &mut EffectRecord {
        let bytes = |part: &[u8]| u32::try_from(part.len()).expect("test effects are small");
        let record = EffectRecord {
            kind,
            table: 0,
            event: 0,
            version: 0,
            at: 0,
            schema_version: 1,
            start: bytes(&self.arena),
            key_bytes: bytes(parts[0]),
            aggregate_bytes: bytes(parts[1]),
            type_bytes: bytes(parts[2]),
            id_bytes: bytes(parts[3]),
            body_bytes: bytes(parts[4]),
            depth: 0,
        };
        for part in parts {
            self.arena.extend_from_slice(part);
        }
        self.records.push(record);
        self.records.last_mut().expect("a record was just pushed")
    }

    /// Puts a row into the first table.
    pub fn put(&mut self, key: &str, version: u64, cells: &[Cell<'_>]) -> &mut Self {
        self.put_in(0, key, version, cells)
    }

    pub fn put_in(&mut self, table: u32, key: &str, version: u64, cells: &[Cell<'_>]) -> &mut Self {
        let mut body = CellsBuilder::default();
        for cell in cells {
            body.push(*cell);
        }
        let record = self.push(EffectKind::Put, [key.as_bytes(), b"", b"", b"", &body.finish()]);
        record.version = version;
        record.table = table;
        self
    }

    /// Deletes a row of the first table.
    pub fn delete(&mut self, key: &str, version: u64) -> &mut Self {
        self.push(EffectKind::Delete, [key.as_bytes(), b"", b"", b"", b""]).version = version;
        self
    }

    pub fn state_put(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.push(EffectKind::StatePut, [key, b"", b"", b"", value]);
        self
    }

    pub fn state_put_until(&mut self, key: &[u8], value: &[u8], expires_at: i64) -> &mut Self {
        self.push(EffectKind::StatePut, [key, b"", b"", b"", value]).at = expires_at;
        self
    }

    pub fn state_delete(&mut self, key: &[u8]) -> &mut Self {
        self.push(EffectKind::StateDelete, [key, b"", b"", b"", b""]);
        self
    }

    /// Emits an event of aggregate `leg` whose id is derived.
    pub fn emit(&mut self, agg_id: &str, version: u64, payload: &str) -> &mut Self {
        let parts = [agg_id.as_bytes(), b"leg", b"leg.changed", b"", payload.as_bytes()];
        self.push(EffectKind::Emit, parts).version = version;
        self
    }

    /// Appends data to a channel.
    pub fn append(&mut self, process: &str, channel: &str, payload: &str) -> &mut Self {
        self.append_of_type("data", process, channel, payload)
    }

    pub fn append_of_type(
        &mut self,
        entry_type: &str,
        process: &str,
        channel: &str,
        payload: &str,
    ) -> &mut Self {
        let texts = [process, channel, entry_type, "", payload].map(str::as_bytes);
        self.push(EffectKind::Append, texts);
        self
    }

    /// The last effect is an entry that answers this number.
    pub fn replying_to(&mut self, sequence: u64) -> &mut Self {
        self.records.last_mut().expect("there is one").version = sequence;
        self
    }

    pub fn check(&mut self, tables: &[TableSchema]) -> Arc<EffectBatch> {
        self.check_at_depth(tables, 0)
    }

    /// As effects of an event to which so many processors have led.
    pub fn check_at_depth(&mut self, tables: &[TableSchema], depth: u32) -> Arc<EffectBatch> {
        let (arena, records) = (std::mem::take(&mut self.arena), std::mem::take(&mut self.records));
        let all = ChannelGrant::all();
        let checked = EffectBatch::check_granted(arena, records, tables, &[depth], &all);
        Arc::new(checked.expect("the test's effects are valid"))
    }
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("the test's tenant is valid")
}

pub fn task(processor: &str, tenant_name: &str, lane: u32) -> TaskId {
    TaskId { processor: processor.into(), tenant: tenant(tenant_name), lane }
}

pub fn column(name: &str, column_type: ColumnType) -> Column {
    let sortable = !matches!(column_type, ColumnType::Bytes | ColumnType::Json);
    Column { name: name.into(), column_type, nullable: true, filterable: true, sortable }
}

/// A table with an integer `n` and a text `label`.
pub fn table(name: &str, versioned: bool) -> TableSchema {
    TableSchema {
        name: name.into(),
        columns: vec![column("n", ColumnType::Int), column("label", ColumnType::Text)],
        versioned,
        window_rows_max: 100,
    }
}

/// A commit of these effects on these tables, without anything else.
pub fn commit(
    task: &TaskId,
    generation: Generation,
    position: u64,
    tables: &[TableSchema],
    effects: &mut Effects,
) -> Commit {
    Commit {
        task: task.clone(),
        generation,
        position: Position(position),
        passed_at: None,
        saved: None,
        effects: vec![effects.check(tables)],
        tables: tables.into(),
        dead: vec![],
        resolved: vec![],
        parked: ParkedWrites::default(),
        at: Micros(1_000),
    }
}

pub fn saved(state: &[u8]) -> Option<Arc<SavedState>> {
    Some(Arc::new(SavedState { content_type: "application/x-test".into(), state: state.to_vec() }))
}
