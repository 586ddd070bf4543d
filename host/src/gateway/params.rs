//! Query parameters: each is taken by name, and what is left over is refused.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use super::problem::Problem;
use crate::event::{Cursor, Epoch, Position};

/// Where a request to read a stream begins, how much it wants, and whether it stays.
#[derive(Debug)]
pub(super) struct Asked {
    /// `Accept: text/event-stream`: it follows what comes.
    pub(super) follow: bool,
    /// `after`, or `from` in its words.
    pub(super) after: Option<String>,
    /// `Last-Event-ID`. A client that has seen nothing yet sends an empty one, which counts as none.
    pub(super) last_seen: Option<String>,
    pub(super) limit: Option<usize>,
}

impl Asked {
    pub(super) fn take(headers: &HeaderMap, params: &mut Params) -> Result<Self, Problem> {
        let follow = headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|value| value.to_str().is_ok_and(|text| text.contains("text/event-stream")));
        let after = params.take("after")?;
        let after = match params.take("from")? {
            None => after,
            Some(from) if matches!(from.as_str(), "oldest" | "newest" | "tail") && after.is_none() => {
                Some(from)
            }
            Some(_) => return Err(invalid("from", "is `oldest` or `tail`, and stands without `after`")),
        };
        let last_seen = params.take("last_event_id")?;
        let last_seen = match headers.get("last-event-id") {
            Some(value) => {
                Some(value.to_str().map_err(|_| invalid("Last-Event-ID", "is not text"))?.to_owned())
            }
            None => last_seen,
        };
        let limit = params.number::<usize>("limit")?;
        Ok(Self { follow, after, last_seen: last_seen.filter(|id| !id.is_empty()), limit })
    }
}

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(all)| Self(all))
            .map_err(|_| Problem::new("parameter_invalid", "the query string cannot be read"))
    }
}

impl Params {
    /// A parameter that may stand once.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut all = self.take_all(name);
        if all.len() > 1 {
            return Err(invalid(name, format!("stands {} times", all.len())));
        }
        Ok(all.pop())
    }

    /// A parameter that may stand several times.
    pub(super) fn take_all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect()
    }

    /// A whole number.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| invalid(name, format!("is `{}`, not a whole number", cut(&text))))
    }

    /// Refuses what nobody took: a misspelled parameter must not be ignored.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) if name == "tenant" => {
                Err(Problem::new("tenant_in_body", "the query has a parameter `tenant`"))
            }
            Some((name, _)) => {
                Err(Problem::new("parameter_unknown", format!("there is no parameter `{}` here", cut(name))))
            }
        }
    }
}

pub(super) fn invalid(name: &str, what: impl AsRef<str>) -> Problem {
    Problem::new("parameter_invalid", format!("`{name}` {}", what.as_ref())).with("parameter", name.into())
}

/// What a client sent, short enough to repeat.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A cursor of this log; one of another log is told apart from a wrong one.
pub(super) fn cursor(text: &str, epoch: &Epoch) -> Result<Position, Problem> {
    let cursor: Cursor = text.parse()?;
    if cursor.epoch != *epoch {
        let detail = format!("cursor `{}` is of another log; this one is `{}`", cut(text), epoch.0);
        return Err(Problem::new("cursor_foreign", detail));
    }
    Ok(cursor.position)
}
