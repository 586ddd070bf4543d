//! What the committer tells everybody else: bounds, tenants, tables, the tail.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use metrics::gauge;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::watch;

use super::changes::load_scopes;
use super::channel_unsettled::Unsettled;
use super::database::{meta, newest};
use super::options::{LogPlace, SqliteOptions};
use super::outbox::OutboxCounts;
use super::watches::Watches;
use crate::channels::{ChannelLimits, Tails};
use crate::error::BackendError;
use crate::event::{Epoch, Position, Revision, TenantId};
use crate::plugins::is_shadow_name;
use crate::streams::{Bounds, ChangeScopes, Tail};
use crate::tables::{LastChanged, TableError, TableSchema};
use crate::telemetry::metrics::OUTBOX_EVENTS;

/// A tenant's number in the database, and whether it has ever appended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant {
    pub(super) number: i64,
    pub(super) appended: bool,
}

pub(super) type Tenants = HashMap<TenantId, Tenant>;

/// A declared table. Its owner is none after its plugin was removed.
#[derive(Clone, Debug)]
pub(super) struct TableEntry {
    pub(super) owner: Option<String>,
    pub(super) schema: TableSchema,
    /// What it was called when its indexes were made. It is another one once other rows have come under its name.
    pub(super) indexes: String,
}

pub(super) type Catalog = BTreeMap<String, TableEntry>;

/// The committed state of the store. The committer writes, everybody else reads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoch: Epoch,
    pub(super) tail: Tail,
    pub(super) watches: Watches,
    pub(super) last_changed: LastChanged,
    pub(super) channel_tails: Tails,
    pub(super) channel_limits: ChannelLimits,
    pub(super) unsettled: Unsettled,
    newest: AtomicU64,
    trimmed: AtomicU64,
    tenants: RwLock<Tenants>,
    catalog: RwLock<Catalog>,
    /// Free bytes when they are too few; `u64::MAX` while there is room.
    free_bytes_low: AtomicU64,
    scopes: RwLock<Arc<ChangeScopes>>,
    /// Entries of the outbox, and how often some were added.
    outbox: RwLock<OutboxCounts>,
    pub(super) outbox_added: watch::Sender<u64>,
    disk_free_bytes_min: u64,
}

impl Shared {
    /// Reads what an earlier run has left.
    pub(super) fn load(conn: &Connection, options: &SqliteOptions) -> Result<Self, rusqlite::Error> {
        let epoch: String =
            conn.query_row("SELECT value FROM meta WHERE name = 'epoch'", [], |row| row.get(0))?;
        let trimmed = meta(conn, "trimmed")?;
        let newest = newest(conn, trimmed)?;
        let tenants = load_tenants(conn)?;
        let appended = tenants.iter().filter(|(_, t)| t.appended).map(|(name, _)| name.clone());
        let outbox = OutboxCounts::load(conn)?;
        gauge!(OUTBOX_EVENTS).set(outbox.total() as f64);
        Ok(Self {
            epoch: Epoch(epoch.into()),
            tail: Tail::with_bytes_max(Position(newest), appended, options.tail_bytes_max),
            watches: Watches::new(Revision(revision(conn)?)),
            last_changed: LastChanged::new(Revision(revision(conn)?)),
            channel_tails: Tails::default(),
            channel_limits: ChannelLimits {
                events: options.log == LogPlace::Own,
                ..options.channels.clone()
            },
            unsettled: Unsettled::load(conn, options.channel_unsettled_bytes_max)?,
            newest: AtomicU64::new(newest),
            trimmed: AtomicU64::new(trimmed),
            catalog: RwLock::new(load_catalog(conn)?),
            free_bytes_low: AtomicU64::new(u64::MAX),
            scopes: RwLock::new(Arc::new(load_scopes(conn)?)),
            outbox: RwLock::new(outbox),
            outbox_added: watch::Sender::new(0),
            disk_free_bytes_min: options.disk_free_bytes_min,
            tenants: RwLock::new(tenants),
        })
    }

    pub(super) fn bounds(&self) -> Bounds {
        // `trimmed` first: it never passes a `newest` that is read after it.
        let trimmed = Position(self.trimmed.load(Ordering::Acquire));
        Bounds { trimmed, newest: Position(self.newest.load(Ordering::Acquire)) }
    }

    pub(super) fn set_bounds(&self, newest: u64, trimmed: u64) {
        self.newest.store(newest, Ordering::Release);
        self.trimmed.store(trimmed, Ordering::Release);
    }

    pub(super) fn outbox(&self) -> OutboxCounts {
        self.outbox.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// More than before: somebody has to carry them over. Entries that come and go in one group were never there.
    pub(super) fn set_outbox(&self, before: &OutboxCounts, now: &OutboxCounts) {
        if now.is_same(before) {
            return;
        }
        *self.outbox.write().unwrap_or_else(PoisonError::into_inner) = now.clone();
        gauge!(OUTBOX_EVENTS).set(now.total() as f64);
        if now.total() > before.total() {
            self.outbox_added.send_modify(|times| *times += 1);
        }
    }

    /// Tenants that have ever appended, in order of their names.
    pub(super) fn tenants(&self) -> Vec<TenantId> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> =
            tenants.iter().filter(|(_, t)| t.appended).map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    pub(super) fn all_tenants(&self) -> Tenants {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_tenant(&self, name: TenantId, tenant: Tenant) {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner).insert(name, tenant);
    }

    /// A tenant's number, inside a read transaction. One that is not in memory
    /// may have been committed just before the transaction began, so the
    /// transaction itself is asked.
    pub(super) fn tenant_number(
        &self,
        conn: &Connection,
        tenant: &TenantId,
    ) -> rusqlite::Result<Option<i64>> {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(tenant).copied();
        match known {
            Some(tenant) => Ok(Some(tenant.number)),
            None => conn
                .prepare_cached("SELECT id FROM tenants WHERE name = ?1")?
                .query_row([tenant.as_str()], |row| row.get(0))
                .optional(),
        }
    }

    pub(super) fn catalog(&self) -> Catalog {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_catalog(&self, catalog: Catalog) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
    }

    pub(super) fn scopes(&self) -> Arc<ChangeScopes> {
        Arc::clone(&self.scopes.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_scopes(&self, scopes: &Arc<ChangeScopes>) {
        *self.scopes.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(scopes);
    }

    pub(super) fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        self.entry(table).map(|entry| entry.schema)
    }

    /// A table that may be read.
    pub(super) fn entry(&self, table: &str) -> Result<TableEntry, TableError> {
        self.with_catalog(|catalog| catalog.get(table).filter(|_| !is_shadow_name(table)).cloned())
            .ok_or_else(|| TableError::Unknown { table: table.chars().take(80).collect() })
    }

    /// Refuses while the disk is nearly full.
    pub(super) fn check_disk(&self) -> Result<(), BackendError> {
        match self.free_bytes_low.load(Ordering::Relaxed) {
            u64::MAX => Ok(()),
            free_bytes => Err(BackendError::DiskLow { free_bytes, min_bytes: self.disk_free_bytes_min }),
        }
    }

    /// Takes in how much is free. Answers whether that changes what is allowed.
    pub(super) fn set_free_bytes(&self, free_bytes: u64) -> bool {
        let low = if free_bytes < self.disk_free_bytes_min { free_bytes } else { u64::MAX };
        let before = self.free_bytes_low.swap(low, Ordering::Relaxed);
        (before == u64::MAX) != (low == u64::MAX)
    }
}

fn load_tenants(conn: &Connection) -> Result<Tenants, rusqlite::Error> {
    let mut statement = conn.prepare("SELECT id, name, appended FROM tenants")?;
    let mut rows = statement.query([])?;
    let mut tenants = Tenants::new();
    while let Some(row) = rows.next()? {
        let tenant = Tenant { number: row.get(0)?, appended: row.get(2)? };
        tenants.insert(stored_tenant(&row.get::<_, String>(1)?)?, tenant);
    }
    Ok(tenants)
}

fn load_catalog(conn: &Connection) -> Result<Catalog, rusqlite::Error> {
    let mut statement = conn.prepare("SELECT name, owner, schema, coalesce(indexes, name) FROM tables")?;
    let mut rows = statement.query([])?;
    let mut catalog = Catalog::new();
    while let Some(row) = rows.next()? {
        let schema: String = row.get(2)?;
        let entry = TableEntry { owner: row.get(1)?, schema: from_json(&schema)?, indexes: row.get(3)? };
        catalog.insert(row.get(0)?, entry);
    }
    Ok(catalog)
}

/// A tenant's name out of the database.
pub(super) fn stored_tenant(name: &str) -> Result<TenantId, rusqlite::Error> {
    TenantId::new(name).map_err(|e| damaged(Box::new(e)))
}

/// A value that was written as JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, rusqlite::Error> {
    serde_json::from_str(text).map_err(|e| damaged(Box::new(e)))
}

/// JSON for the database.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn damaged(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error)
}

/// The newest revision, inside a read transaction.
pub(super) fn revision(conn: &Connection) -> Result<u64, rusqlite::Error> {
    meta(conn, "revision")
}

/// Which positions are held, inside a read transaction.
pub(super) fn stored_bounds(conn: &Connection) -> Result<Bounds, rusqlite::Error> {
    let trimmed = meta(conn, "trimmed")?;
    Ok(Bounds { trimmed: Position(trimmed), newest: Position(newest(conn, trimmed)?) })
}
