//! Which tables a credential reads, and which rows of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Caller, Right};
use crate::gateway::filters::Filters;
use crate::gateway::params::cut;
use crate::gateway::problem::Problem;
use crate::tables::{Filter, TableError, TableSchema};

/// The only tables that a credential reads.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tables(Arc<BTreeMap<String, Option<Condition>>>);

/// What a table's rows must meet, as it was written.
#[derive(Clone, Debug, PartialEq)]
enum Condition {
    /// `column:op:value`, or JSON as text.
    Text(String),
    Json(Value),
}

impl Tables {
    pub(super) fn configured(tables: &BTreeMap<String, Option<String>>) -> Self {
        let condition = |text: &Option<String>| text.clone().map(Condition::Text);
        Self(Arc::new(tables.iter().map(|(name, text)| (name.clone(), condition(text))).collect()))
    }

    /// What the claim `tables` says: names, or an object of names with an optional `where`. What cannot be read
    /// is an error: it must not open what it was meant to close.
    pub(super) fn claimed(claim: Option<&Value>) -> Result<Option<Self>, String> {
        let mut tables = BTreeMap::new();
        match claim {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(names)) => {
                for name in names {
                    let name = name.as_str().ok_or("the claim `tables` has a name that is not text")?;
                    tables.insert(name.to_owned(), None);
                }
            }
            Some(Value::Object(all)) => {
                for (name, rule) in all {
                    tables.insert(name.clone(), condition(name, rule)?);
                }
            }
            Some(_) => return Err("the claim `tables` is neither a list of names nor an object".into()),
        }
        Ok(Some(Self(Arc::new(tables))))
    }
}

fn condition(table: &str, rule: &Value) -> Result<Option<Condition>, String> {
    let unreadable = || format!("the claim `tables` has something else than `where` for `{}`", cut(table));
    let rule = match rule {
        Value::Null => return Ok(None),
        Value::Object(rule) => rule,
        _ => return Err(unreadable()),
    };
    if rule.keys().any(|name| name != "where") {
        return Err(unreadable());
    }
    match rule.get("where") {
        // A condition that is missing by mistake must not be one that always holds.
        Some(Value::String(text)) => Ok(Some(Condition::Text(text.clone()))),
        Some(json @ (Value::Object(_) | Value::Array(_))) => Ok(Some(Condition::Json(json.clone()))),
        Some(_) => Err(unreadable()),
        None => Ok(None),
    }
}

impl Caller {
    /// What limits this caller in a table: the scope of its queries. None where all rows are the caller's to
    /// see; an error where none are.
    pub(in crate::gateway) fn table_filter(&self, schema: &TableSchema) -> Result<Option<Filter>, Problem> {
        let Some(Tables(tables)) = &self.tables else { return Ok(None) };
        let Some(condition) = tables.get(&schema.name) else {
            let detail = format!("the credential `{}` does not read table `{}`", self.name, schema.name);
            return Err(Problem::new("table_forbidden", detail));
        };
        let mut filters = Filters::new(schema);
        let filter = match condition {
            None => return Ok(None),
            Some(Condition::Text(text)) => filters.text(text),
            Some(Condition::Json(json)) => filters.json(json),
        };
        let checked = filter.and_then(|filter| {
            filter.validate_scope(schema).map_err(TableError::from)?;
            Ok(filter)
        });
        checked.map(Some).map_err(|problem| {
            let why = problem.to_json()["detail"].as_str().unwrap_or_default().to_owned();
            let detail = format!(
                "the condition of the credential `{}` does not fit table `{}`: {why}",
                self.name, schema.name
            );
            Problem::new("table_forbidden", detail)
        })
    }

    /// Whether this caller may see everything that its tenant has.
    pub(in crate::gateway) fn reads_everything(&self) -> bool {
        self.may(Right::Read) && !self.is_confined()
    }

    /// Whether the table is among those that this caller reads.
    pub(in crate::gateway) fn reads_table(&self, name: &str) -> bool {
        self.tables.as_ref().is_none_or(|Tables(tables)| tables.contains_key(name))
    }

    /// Whether this caller reads some tables only, and so nothing that shows the events behind the rows.
    pub(in crate::gateway) fn is_confined(&self) -> bool {
        self.tables.is_some()
    }
}
