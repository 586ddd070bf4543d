//! Which rows a query is about: conditions put together with and, or and not.
//!
//! A condition on a null is false, whatever its operator, save `isnull`; `not` turns true into false and false
//! into true. So `not (a = 1)` holds where `a` is null, and `a <> 1` does not. Every backend and every live
//! predicate means this and nothing else; the conformance suite of tables compares them.

use std::cmp::Ordering;

use super::like::{matches_ilike, matches_like};
use super::query::{Condition, InvalidQuery, Operator, Value, column_of};
use super::schema::{ColumnType, TableSchema};
use crate::limits::{QUERY_CONDITIONS_MAX, QUERY_NESTING_MAX};

/// Conditions put together.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// All of them hold. Of none at all this is true: every row.
    All(Vec<Filter>),
    /// At least one of them holds. Of none at all this is false.
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Is(Condition),
}

impl Default for Filter {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl From<Vec<Condition>> for Filter {
    fn from(conditions: Vec<Condition>) -> Self {
        Self::All(conditions.into_iter().map(Self::Is).collect())
    }
}

impl Filter {
    /// Checks every condition against its table, and how many there are, and how deep.
    pub fn validate(&self, table: &TableSchema) -> Result<(), InvalidQuery> {
        // First the depth: what comes after goes all the way down.
        self.validate_scope(table)?;
        self.conditions().into_iter().try_for_each(|condition| {
            if column_of(table, &condition.column)?.filterable {
                return Ok(());
            }
            Err(InvalidQuery::NotFilterable { table: table.name.clone(), column: condition.column.clone() })
        })
    }

    /// The same for what limits the asker: columns need not be filterable.
    pub fn validate_scope(&self, table: &TableSchema) -> Result<(), InvalidQuery> {
        let mut conditions = 0;
        self.check(table, &mut conditions, 0)
    }

    fn check(&self, table: &TableSchema, conditions: &mut usize, depth: usize) -> Result<(), InvalidQuery> {
        if depth > QUERY_NESTING_MAX {
            return Err(InvalidQuery::TooDeep);
        }
        // A group counts, too: empty ones cost as much to look at as a condition.
        *conditions += 1;
        if *conditions > QUERY_CONDITIONS_MAX + 1 {
            return Err(InvalidQuery::TooManyConditions { conditions: *conditions });
        }
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().try_for_each(|part| part.check(table, conditions, depth + 1))
            }
            Self::Not(part) => part.check(table, conditions, depth + 1),
            Self::Is(condition) => condition.validate(column_of(table, &condition.column)?.column_type),
        }
    }

    /// Whether it holds for a row whose values this gives by column name.
    pub fn holds<'a>(&self, value: &impl Fn(&str) -> &'a Value) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(value)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(value)),
            Self::Not(part) => !part.holds(value),
            Self::Is(condition) => condition.holds(value(&condition.column)),
        }
    }

    /// Its conditions, in the order in which they stand.
    pub fn conditions(&self) -> Vec<&Condition> {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().flat_map(Self::conditions).collect(),
            Self::Not(part) => part.conditions(),
            Self::Is(condition) => vec![condition],
        }
    }
}

impl Condition {
    /// Whether it holds for a value of its column.
    pub fn holds(&self, value: &Value) -> bool {
        if *value == Value::Null {
            return self.operator == Operator::IsNull;
        }
        let ordering = || self.values.first().and_then(|wanted| compare(value, wanted));
        let text = |matches: fn(&str, &str) -> bool| match (self.values.first(), value) {
            (Some(Value::Text(pattern)), Value::Text(text)) => matches(pattern, text),
            _ => false,
        };
        let is_among = || self.values.iter().any(|wanted| compare(value, wanted) == Some(Ordering::Equal));
        match self.operator {
            Operator::IsNull => false,
            Operator::IsNotNull => true,
            Operator::Eq => ordering().is_some_and(Ordering::is_eq),
            Operator::Ne => ordering().is_some_and(Ordering::is_ne),
            Operator::Gt => ordering().is_some_and(Ordering::is_gt),
            Operator::Gte => ordering().is_some_and(Ordering::is_ge),
            Operator::Lt => ordering().is_some_and(Ordering::is_lt),
            Operator::Lte => ordering().is_some_and(Ordering::is_le),
            Operator::In => is_among(),
            Operator::NotIn => !is_among(),
            Operator::Like => text(matches_like),
            Operator::ILike => text(matches_ilike),
        }
    }
}

/// How two values of one type stand to each other: as a sort key orders them. None for two types, and for null.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) | (Value::Json(a), Value::Json(b)) => Some(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.0.cmp(&b.0)),
        _ => None,
    }
}

impl Condition {
    pub(super) fn validate(&self, expected: ColumnType) -> Result<(), InvalidQuery> {
        let wanted = match self.operator {
            Operator::IsNull | Operator::IsNotNull => (self.values.is_empty(), "no value"),
            Operator::In | Operator::NotIn => (!self.values.is_empty(), "one value or more"),
            _ => (self.values.len() == 1, "one value"),
        };
        if !wanted.0 {
            return Err(InvalidQuery::Values {
                column: self.column.clone(),
                operator: self.operator,
                wanted: wanted.1,
            });
        }
        let textual = matches!(self.operator, Operator::Like | Operator::ILike);
        if textual && expected != ColumnType::Text {
            return Err(InvalidQuery::Values {
                column: self.column.clone(),
                operator: self.operator,
                wanted: "a text column",
            });
        }
        for value in &self.values {
            if !value.is(expected) {
                return Err(InvalidQuery::Type {
                    column: self.column.clone(),
                    expected,
                    value: format!("{value:?}"),
                });
            }
        }
        Ok(())
    }
}
