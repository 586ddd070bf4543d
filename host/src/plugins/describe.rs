//! What a component says of itself, taken into the host's own words once its size is bounded.

use super::PluginError;
use super::bindings::wire;
use crate::limits::GUEST_MANIFEST_BYTES_MAX;
use crate::processors::{InvalidManifest, Manifest, OrderingKey, Subscription};
use crate::streams::{AggregateScopes, Scope};
use crate::tables::{Column, ColumnType, TableSchema};

/// The manifest, if it is small and sound enough to be kept, listed and made tables of.
pub(super) fn accept(manifest: wire::Manifest) -> Result<Manifest, PluginError> {
    let bytes = bytes(&manifest);
    if bytes > GUEST_MANIFEST_BYTES_MAX {
        return Err(PluginError::Describe {
            detail: format!(
                "the manifest has {bytes} bytes; guest_manifest_bytes_max is {GUEST_MANIFEST_BYTES_MAX}"
            ),
        });
    }
    let manifest = convert(manifest)?;
    manifest.validate()?;
    Ok(manifest)
}

/// All text, and the records themselves, so that a million empty names count, too.
fn bytes(m: &wire::Manifest) -> usize {
    let texts = |list: &[String]| list.iter().map(|text| text.len() + size_of::<String>()).sum::<usize>();
    let columns = |table: &wire::Table| {
        table.columns.iter().map(|column| column.name.len() + size_of::<wire::Column>()).sum::<usize>()
    };
    let tables = m.tables.iter().map(|table| table.name.len() + size_of::<wire::Table>() + columns(table));
    let key = match &m.ordering_key {
        wire::OrderingKey::PayloadField(field) => field.len(),
        wire::OrderingKey::Aggregate | wire::OrderingKey::Single => 0,
    };
    let scope = |scope: &wire::ChangeScope| {
        let text = match scope {
            wire::ChangeScope::Field(field) => field.name.len() + field.member.len(),
            wire::ChangeScope::Id | wire::ChangeScope::Tenant => 0,
        };
        text + size_of::<wire::ChangeScope>()
    };
    let changes = m.changes.iter().map(|declared| {
        let scopes = declared.scopes.iter().map(scope).sum::<usize>();
        declared.aggregate.len() + size_of::<wire::ChangeScopes>() + scopes
    });
    m.name.len()
        + m.version.len()
        + m.summary.len()
        + m.state_content_type.as_ref().map_or(0, String::len)
        + key
        + texts(&m.subscription.types)
        + texts(&m.subscription.aggregates)
        + texts(&m.grants)
        + tables.sum::<usize>()
        + changes.sum::<usize>()
}

fn convert(m: wire::Manifest) -> Result<Manifest, InvalidManifest> {
    let column = |c: wire::Column| Column {
        name: c.name,
        column_type: match c.type_ {
            wire::ColumnType::Bool => ColumnType::Bool,
            wire::ColumnType::Int => ColumnType::Int,
            wire::ColumnType::Float => ColumnType::Float,
            wire::ColumnType::Text => ColumnType::Text,
            wire::ColumnType::Bytes => ColumnType::Bytes,
            wire::ColumnType::Json => ColumnType::Json,
            wire::ColumnType::Timestamp => ColumnType::Timestamp,
        },
        nullable: c.nullable,
        filterable: c.filterable,
        sortable: c.sortable,
    };
    let table = |t: wire::Table| TableSchema {
        name: t.name,
        columns: t.columns.into_iter().map(column).collect(),
        versioned: t.versioned,
        window_rows_max: t.window_rows_max,
    };
    let version = m.version.parse().map_err(|_| InvalidManifest::Version { version: m.version.clone() })?;
    Ok(Manifest {
        name: m.name,
        version,
        summary: m.summary,
        state_content_type: m.state_content_type,
        ordering_key: match m.ordering_key {
            wire::OrderingKey::Aggregate => OrderingKey::Aggregate,
            wire::OrderingKey::PayloadField(field) => OrderingKey::PayloadField(field),
            wire::OrderingKey::Single => OrderingKey::Single,
        },
        subscription: Subscription { types: m.subscription.types, aggregates: m.subscription.aggregates },
        tables: m.tables.into_iter().map(table).collect(),
        grants: m.grants,
        flush_interval_ms: m.flush_interval_ms,
        changes: m.changes.into_iter().map(scopes_of).collect(),
    })
}

fn scopes_of(declared: wire::ChangeScopes) -> AggregateScopes {
    let scope = |scope| match scope {
        wire::ChangeScope::Id => Scope::Id,
        wire::ChangeScope::Tenant => Scope::Tenant,
        wire::ChangeScope::Field(wire::ChangeField { name, member }) => Scope::Field { name, member },
    };
    AggregateScopes {
        aggregate: declared.aggregate,
        scopes: declared.scopes.into_iter().map(scope).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TABLES_MAX;

    fn manifest() -> wire::Manifest {
        wire::Manifest {
            name: "good".into(),
            version: "1.0.0".into(),
            summary: String::new(),
            state_content_type: None,
            ordering_key: wire::OrderingKey::Aggregate,
            subscription: wire::Subscription { types: vec![], aggregates: vec![] },
            tables: vec![],
            grants: vec![],
            flush_interval_ms: None,
            changes: vec![],
        }
    }

    fn table(name: &str, columns: usize) -> wire::Table {
        let column = |index: usize| wire::Column {
            name: format!("c{index}"),
            type_: wire::ColumnType::Int,
            nullable: false,
            filterable: false,
            sortable: false,
        };
        wire::Table {
            name: name.into(),
            columns: (0..columns).map(column).collect(),
            versioned: false,
            window_rows_max: 10,
        }
    }

    fn changes(aggregate: &str, scopes: usize) -> wire::ChangeScopes {
        wire::ChangeScopes { aggregate: aggregate.into(), scopes: vec![wire::ChangeScope::Id; scopes] }
    }

    #[test]
    fn every_text_and_every_record_counts_towards_the_limit() {
        let long = || "x".repeat(GUEST_MANIFEST_BYTES_MAX + 1);
        let many = || vec![String::new(); 100_000];
        let none = || wire::Subscription { types: vec![], aggregates: vec![] };
        let cases = [
            wire::Manifest { name: long(), ..manifest() },
            wire::Manifest { version: long(), ..manifest() },
            wire::Manifest { summary: long(), ..manifest() },
            wire::Manifest { state_content_type: Some(long()), ..manifest() },
            wire::Manifest { ordering_key: wire::OrderingKey::PayloadField(long()), ..manifest() },
            wire::Manifest { subscription: wire::Subscription { types: many(), ..none() }, ..manifest() },
            wire::Manifest {
                subscription: wire::Subscription { aggregates: vec![long()], ..none() },
                ..manifest()
            },
            wire::Manifest { tables: vec![table(&long(), 1)], ..manifest() },
            wire::Manifest { tables: vec![table("t", 100_000)], ..manifest() },
            wire::Manifest { grants: many(), ..manifest() },
            wire::Manifest { changes: vec![changes(&long(), 1)], ..manifest() },
            wire::Manifest { changes: vec![changes("a", 100_000)], ..manifest() },
        ];
        for (index, manifest) in cases.into_iter().enumerate() {
            let error = accept(manifest).expect_err("it is too large");
            assert!(error.to_string().contains("guest_manifest_bytes_max is 1048576"), "{index}: {error}");
        }
        accept(manifest()).expect("a small one is fine");
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_rule() {
        let names = ["", "Upper", "1st", "ü", "a b", "-a", "a/../b", &"a".repeat(63)];
        for name in names {
            let error = accept(wire::Manifest { name: name.into(), ..manifest() }).expect_err("a bad name");
            assert!(matches!(error, PluginError::Manifest(InvalidManifest::Name { .. })), "{name}: {error}");
        }
        for version in ["", "1", "1.0", "one", "1.0.0.0"] {
            let error = accept(wire::Manifest { version: version.into(), ..manifest() });
            let error = error.expect_err("a bad version");
            assert!(matches!(error, PluginError::Manifest(InvalidManifest::Version { .. })), "{error}");
        }
        let refused = |manifest| {
            let error = accept(manifest).expect_err("it breaks a rule");
            assert!(matches!(error, PluginError::Manifest(_)), "{error}");
            error.to_string()
        };
        let many = (0..=TABLES_MAX).map(|index| table(&format!("t{index}"), 1)).collect();
        let twice = vec![table("t", 1), table("t", 1)];
        let sql = vec![table("t; DROP TABLE events", 1)];
        for (tables, says) in [
            (many, format!("{} tables; tables_max is {TABLES_MAX}", TABLES_MAX + 1)),
            (twice, "table `t` is declared twice".to_owned()),
            (
                sql,
                "`t; DROP TABLE events` is not a name of 1 to 62 of a-z, 0-9 and `_`, beginning with a letter"
                    .to_owned(),
            ),
        ] {
            assert_eq!(refused(wire::Manifest { tables, ..manifest() }), says);
        }
        for interval_ms in [0, 9] {
            let says = format!("flush_interval_ms is {interval_ms}; the shortest is 10");
            assert_eq!(refused(wire::Manifest { flush_interval_ms: Some(interval_ms), ..manifest() }), says);
        }
        for (changes, says) in [
            (vec![changes("", 1)], "`` is not an aggregate's name"),
            (vec![changes("a", 0)], "aggregate `a` has no scopes"),
            (vec![changes("a", 2)], "aggregate `a` has the scope `id` twice"),
            (vec![changes("a", 1), changes("a", 1)], "aggregate `a` is declared twice"),
        ] {
            assert_eq!(refused(wire::Manifest { changes, ..manifest() }), format!("change scopes: {says}"));
        }
        let key = wire::OrderingKey::PayloadField(String::new());
        let says = "the ordering key names no payload field";
        assert_eq!(refused(wire::Manifest { ordering_key: key, ..manifest() }), says);
        // Right at the edge of what is refused.
        let tables = (0..TABLES_MAX).map(|index| table(&format!("t{index}"), 1)).collect();
        accept(wire::Manifest { tables, flush_interval_ms: Some(10), ..manifest() }).expect("a good one");
        accept(wire::Manifest { changes: vec![changes("a", 1)], ..manifest() }).expect("a good one");
    }
}
