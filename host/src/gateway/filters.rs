//! Filters in their JSON form, and in the short form of a URL.
//!
//! JSON: `{"column", "op", "value"}`, groups `{"and": […]}` and `{"or": […]}`, `{"not": …}`, or a list, all of
//! which must hold. Names may also begin with a capital.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize as _;
use serde_json::{Map, Value as Json};

use super::native;
use super::params;
use super::problem::Problem;
use crate::limits::{QUERY_CONDITIONS_MAX, QUERY_NESTING_MAX};
use crate::tables::{
    ColumnType, Condition, Filter, InvalidQuery, Operator, TableError, TableSchema, Value, column_of,
};

/// Reads conditions of one table, and counts them.
#[derive(Debug)]
pub(super) struct Filters<'a> {
    schema: &'a TableSchema,
    count: usize,
}

impl<'a> Filters<'a> {
    pub(super) fn new(schema: &'a TableSchema) -> Self {
        Self { schema, count: 0 }
    }

    /// What a parameter `where` says: JSON, or `column:op:value`.
    pub(super) fn text(&mut self, text: &str) -> Result<Filter, Problem> {
        if text.starts_with(['{', '[']) {
            let json = serde_json::from_str(text).map_err(|e| invalid(format!("is not a condition: {e}")))?;
            return self.json(&json);
        }
        self.short(text)
    }

    pub(super) fn json(&mut self, json: &Json) -> Result<Filter, Problem> {
        self.part(json, 0)
    }

    fn part(&mut self, json: &Json, depth: usize) -> Result<Filter, Problem> {
        if depth > QUERY_NESTING_MAX {
            let problem = Problem::from(TableError::from(InvalidQuery::TooDeep));
            return Err(problem.limit("query_nesting_max", depth as u64, QUERY_NESTING_MAX as u64));
        }
        match json {
            Json::Array(parts) => self.parts(parts, depth).map(Filter::All),
            Json::Object(object) => self.object(object, depth),
            other => Err(invalid(format!("has `{}`; a condition is an object", cut(other)))),
        }
    }

    fn parts(&mut self, parts: &[Json], depth: usize) -> Result<Vec<Filter>, Problem> {
        parts.iter().map(|part| self.part(part, depth + 1)).collect()
    }

    fn object(&mut self, object: &Map<String, Json>, depth: usize) -> Result<Filter, Problem> {
        let mut filter = None;
        let (mut column, mut op, mut value) = (None, None, &Json::Null);
        for (name, json) in object {
            let group = match name.as_str() {
                "or" | "Or" => Filter::Any(self.group(name, json, depth)?),
                "and" | "And" => Filter::All(self.group(name, json, depth)?),
                "not" | "Not" => Filter::Not(Box::new(self.part(json, depth + 1)?)),
                "column" | "Column" => {
                    column = json.as_str();
                    continue;
                }
                "op" | "Op" => {
                    op = json.as_str();
                    continue;
                }
                "value" | "Value" => {
                    value = json;
                    continue;
                }
                other => {
                    let detail = format!(
                        "has `{}`; a condition has column, op and value, or and, or, not",
                        params::cut(other)
                    );
                    return Err(invalid(detail));
                }
            };
            // An empty group beside a condition is how an absent one is written.
            let absent =
                object.len() > 1 && matches!(&group, Filter::Any(p) | Filter::All(p) if p.is_empty());
            if !absent && filter.replace(group).is_some() {
                return Err(invalid("has a condition with two groups; nest them".into()));
            }
        }
        match (filter, column, op) {
            // A group wins over an empty leaf beside it.
            (Some(filter), None | Some(""), None | Some("")) => Ok(filter),
            (None, Some(column), Some(op)) => self.condition(column, op, value),
            (Some(_), ..) => Err(invalid("has a condition that is a group as well; nest them".into())),
            (None, ..) => Err(invalid("has a condition without `column` and `op`".into())),
        }
    }

    fn group(&mut self, name: &str, json: &Json, depth: usize) -> Result<Vec<Filter>, Problem> {
        match json {
            Json::Array(parts) => self.parts(parts, depth),
            Json::Null => Ok(Vec::new()),
            other => Err(invalid(format!("has `{}` in `{name}`, which takes a list", cut(other)))),
        }
    }

    fn condition(&mut self, column: &str, op: &str, value: &Json) -> Result<Filter, Problem> {
        self.one_more()?;
        let operator = parse_operator(op)?;
        let column_type = column_of(self.schema, column).map_err(TableError::from)?.column_type;
        let typed = |value: &Json| {
            read_json(value, column_type).ok_or_else(|| {
                TableError::from(InvalidQuery::Type {
                    column: column.to_owned(),
                    expected: column_type,
                    value: cut(value),
                })
            })
        };
        let values = match (operator, value) {
            (Operator::In | Operator::NotIn, Json::Array(list)) => {
                list.iter().map(typed).collect::<Result<_, _>>()?
            }
            (Operator::IsNull | Operator::IsNotNull, Json::Null) => Vec::new(),
            (_, value) => vec![typed(value)?],
        };
        Ok(Filter::Is(Condition { column: column.to_owned(), operator, values }))
    }

    fn short(&mut self, text: &str) -> Result<Filter, Problem> {
        self.one_more()?;
        let mut parts = text.splitn(3, ':');
        let (column, operator, value) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let Some(operator) = operator else {
            return Err(invalid(format!("is `{}`; write column:op:value", params::cut(text))));
        };
        let operator = parse_operator(operator)?;
        let column_type = column_of(self.schema, column).map_err(TableError::from)?.column_type;
        let typed = |text: &str| {
            read_text(text, column_type).ok_or_else(|| {
                TableError::from(InvalidQuery::Type {
                    column: column.to_owned(),
                    expected: column_type,
                    value: params::cut(text),
                })
            })
        };
        let values = match (operator, value) {
            (Operator::In | Operator::NotIn, Some(list)) => {
                list.split(',').map(typed).collect::<Result<_, _>>()?
            }
            (Operator::IsNull | Operator::IsNotNull, Some("")) | (_, None) => Vec::new(),
            (_, Some(one)) => vec![typed(one)?],
        };
        Ok(Filter::Is(Condition { column: column.to_owned(), operator, values }))
    }

    fn one_more(&mut self) -> Result<(), Problem> {
        self.count += 1;
        if self.count <= QUERY_CONDITIONS_MAX {
            return Ok(());
        }
        let error = InvalidQuery::TooManyConditions { conditions: self.count };
        let problem = Problem::from(TableError::from(error));
        Err(problem.limit("query_conditions_max", self.count as u64, QUERY_CONDITIONS_MAX as u64))
    }
}

fn invalid(detail: String) -> Problem {
    params::invalid("where", detail)
}

fn cut(value: &Json) -> String {
    params::cut(&value.to_string())
}

fn parse_operator(text: &str) -> Result<Operator, Problem> {
    Operator::deserialize(Json::from(text)).map_err(|_| {
        invalid(format!(
            "has the operator `{}`; there are eq, ne, gt, gte, lt, lte, in, notin, like, ilike, isnull, isnotnull",
            params::cut(text)
        ))
    })
}

/// A value as it stands in a short condition.
fn read_text(text: &str, column_type: ColumnType) -> Option<Value> {
    match column_type {
        ColumnType::Bool => text.parse().ok().map(Value::Bool),
        ColumnType::Int => text.parse().ok().map(Value::Int),
        ColumnType::Float => text.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float),
        ColumnType::Text => Some(Value::Text(text.to_owned())),
        ColumnType::Bytes => STANDARD.decode(text).ok().map(Value::Bytes),
        ColumnType::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).ok().map(|_| Value::Json(text.to_owned()))
        }
        ColumnType::Timestamp => native::parse_time(text).ok().map(Value::Timestamp),
    }
}

/// A value as it stands in JSON.
pub(super) fn read_json(value: &Json, column_type: ColumnType) -> Option<Value> {
    match column_type {
        ColumnType::Bool => value.as_bool().map(Value::Bool),
        // A float without a fraction is the same number.
        ColumnType::Int => value.as_i64().or_else(|| whole(value.as_f64()?)).map(Value::Int),
        ColumnType::Float => value.as_f64().map(Value::Float),
        ColumnType::Json => Some(Value::Json(value.to_string())),
        ColumnType::Text | ColumnType::Bytes | ColumnType::Timestamp => {
            read_text(value.as_str()?, column_type)
        }
    }
}

fn whole(float: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is small enough")]
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}
