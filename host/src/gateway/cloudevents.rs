//! CloudEvents 1.0 as events: structured, batch and binary mode.
//!
//! The mapping stands at `publish`, where clients read it. Payloads are JSON:
//! `data` of any JSON value, `data_base64` if its bytes are JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::body::unsupported;
use super::native::{json_problem, parse_time};
use super::problem::Problem;
use crate::event::{Event, EventBatch, Micros};

/// Whether the headers carry the event and the body only its data.
pub(super) fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion") || headers.contains_key("ce-id")
}

/// Structured mode: the whole event is one JSON object.
pub(super) fn push(batch: &mut EventBatch, json: &[u8], now: Micros) -> Result<(), Problem> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(json).map_err(|e| json_problem(&e))?;
    let mut attributes = Attributes::default();
    let mut data: Option<Cow<'_, [u8]>> = None;
    for (name, value) in &members {
        match name.as_ref() {
            "data" => data = Some(Cow::Borrowed(value.get().as_bytes())),
            "data_base64" => {
                let text: String = serde_json::from_str(value.get()).map_err(|e| json_problem(&e))?;
                let bytes = STANDARD
                    .decode(text)
                    .map_err(|_| Problem::new("event_invalid", "`data_base64` is not base64"))?;
                check_json(&bytes)?;
                data = Some(Cow::Owned(bytes));
            }
            _ => attributes.insert(name, attribute_text(name, value)?),
        }
    }
    attributes.push(batch, data.as_deref().unwrap_or(b"null"), now)
}

/// Binary mode: attributes are `ce-` headers, the body is the data.
pub(super) fn push_binary(
    batch: &mut EventBatch,
    headers: &HeaderMap,
    content_type: &str,
    body: &[u8],
    now: Micros,
) -> Result<(), Problem> {
    let json = content_type == "application/json" || content_type.ends_with("+json");
    if !json && !body.is_empty() {
        return Err(unsupported(content_type, &["application/json", "application/*+json"]));
    }
    let mut attributes = Attributes::default();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else { continue };
        let text = value.to_str().ok().and_then(percent_decoded);
        let text = text.ok_or_else(|| {
            Problem::new("event_invalid", format!("header `ce-{name}` is not percent-encoded UTF-8"))
        })?;
        attributes.insert(name, text);
    }
    let body = if body.is_empty() { b"null" } else { body };
    check_json(body)?;
    attributes.push(batch, body, now)
}

#[derive(Debug, Default)]
struct Attributes(BTreeMap<String, String>);

impl Attributes {
    fn insert(&mut self, name: &str, text: String) {
        self.0.insert(name.to_owned(), text);
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str, Problem> {
        match self.get(name) {
            "" => Err(Problem::new("event_invalid", format!("the CloudEvent has no `{name}`"))),
            text => Ok(text),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Problem> {
        match self.get(name) {
            "" => Ok(default),
            text => text.parse().map_err(|_| {
                let found: String = text.chars().take(80).collect();
                Problem::new("event_invalid", format!("`{name}` is `{found}`, not a whole number"))
            }),
        }
    }

    fn push(&self, batch: &mut EventBatch, payload: &[u8], now: Micros) -> Result<(), Problem> {
        if self.0.contains_key("tenant") {
            return Err(Problem::new("tenant_in_body", "the CloudEvent has an extension `tenant`"));
        }
        if self.required("specversion")? != "1.0" {
            let found: String = self.get("specversion").chars().take(80).collect();
            return Err(Problem::new("event_invalid", format!("specversion is `{found}`; 1.0 is taken")));
        }
        let event_type = self.required("type")?;
        let source = self.required("source")?;
        let aggregate = match self.get("aggregate") {
            "" => event_type.rsplit_once('.').map_or(event_type, |(aggregate, _)| aggregate),
            aggregate => aggregate,
        };
        let at = match self.get("time") {
            "" => now,
            text => parse_time(text)?,
        };
        let subject = self.get("subject");
        batch.push(&Event {
            id: self.required("id")?,
            aggregate,
            agg_id: if subject.is_empty() { source } else { subject },
            version: self.number("aggregateversion", 1)?,
            event_type,
            at,
            schema_version: self.number("schemaversion", 1)?,
            scope: self.get("scope"),
            kind: self.get("kind"),
            cursor: self.get("cursor"),
            traceparent: self.get("traceparent"),
            payload,
            ..Event::default()
        })?;
        Ok(())
    }
}

fn attribute_text(name: &str, value: &RawValue) -> Result<String, Problem> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw).map_err(|e| json_problem(&e)),
        Some(b'n') => Ok(String::new()),
        Some(b'{' | b'[') => {
            let name: String = name.chars().take(80).collect();
            Err(Problem::new(
                "event_invalid",
                format!("attribute `{name}` is not a string, number or boolean"),
            ))
        }
        _ => Ok(raw.to_owned()),
    }
}

fn check_json(bytes: &[u8]) -> Result<(), Problem> {
    serde_json::from_slice::<IgnoredAny>(bytes).map(|_| ()).map_err(|e| json_problem(&e))?;
    std::str::from_utf8(bytes)
        .map(|_| ())
        .map_err(|_| Problem::new("json_malformed", "the data is not UTF-8"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
