//! Stores of hosts whose log is on Redis, in a form that can be compared with an embedded one's.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use millrace::backends::redis::{RedisLog, RedisOptions};
use millrace::event::EventBatch;
use millrace::streams::{EventLog, PageLimit};
use rusqlite::{Connection, OptionalExtension, params};

/// Writes the events of a log on Redis into the store of a stopped host, as if the log had been there: then
/// [`dump`](crate::dump::dump) tells all of it. The host cannot be started on it any more.
pub async fn bring_home(address: &str, data: &Path) -> Result<()> {
    let log = RedisLog::open(RedisOptions::new(address.parse()?));
    log.ready(Duration::from_secs(60)).await?;
    let db = Connection::open(data.join("millrace.db"))?;
    db.execute_batch("BEGIN")?;
    for tenant in log.tenants() {
        let mut after = log.bounds().trimmed;
        while after < log.bounds().newest {
            let page = log.read(&tenant, after, PageLimit { events: 1_000, bytes: 4 << 20 }).await?;
            write(&db, &page.events)?;
            after = page.next;
        }
    }
    db.execute_batch("COMMIT")?;
    Ok(())
}

fn write(db: &Connection, events: &EventBatch) -> Result<()> {
    let name = events.tenant.as_str();
    let known = db.query_row("SELECT id FROM tenants WHERE name = ?1", [name], |row| row.get::<_, i64>(0));
    let tenant = match known.optional()? {
        Some(tenant) => tenant,
        None => {
            db.execute("INSERT INTO tenants(name) VALUES (?1)", [name])?;
            db.last_insert_rowid()
        }
    };
    let absent = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let number = |value: u64| i64::try_from(value);
    let mut insert = db.prepare_cached(
        "INSERT INTO events(position, tenant, id, aggregate, agg_id, version, type, at, schema_version, depth, scope,
           kind, cursor, traceparent, appended_at, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 0, ?15)",
    )?;
    for event in events.iter() {
        insert.execute(params![
            number(event.position.0)?,
            tenant,
            event.id,
            event.aggregate,
            event.agg_id,
            number(event.version)?,
            event.event_type,
            event.at.0,
            event.schema_version,
            event.depth,
            absent(event.scope),
            absent(event.kind),
            absent(event.cursor),
            absent(event.traceparent),
            std::str::from_utf8(event.payload)?,
        ])?;
    }
    Ok(())
}
