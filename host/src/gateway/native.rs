//! The native JSON form of an event, read without copying what need not be copied.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::event::{Event, EventBatch, Micros};

/// An event as clients write it. Payloads stay the bytes they were, so that
/// every integer keeps all its digits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NativeEvent<'a> {
    #[serde(borrow)]
    aggregate: Text<'a>,
    #[serde(borrow)]
    agg_id: Text<'a>,
    version: u64,
    #[serde(borrow, rename = "type")]
    event_type: Text<'a>,
    #[serde(borrow, default)]
    at: Text<'a>,
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    scope: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    cursor: Text<'a>,
    #[serde(borrow, default)]
    traceparent: Text<'a>,
    /// Not a field: here only to be refused in words that help.
    #[serde(default)]
    tenant: Option<IgnoredAny>,
}

/// Text that is borrowed where the JSON has no escapes; empty for null.
#[derive(Debug, Default)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

/// Reads one event and appends it to the batch, or leaves the batch as it was.
/// An event without `at` happened `now`.
pub(super) fn push(batch: &mut EventBatch, json: &[u8], now: Micros) -> Result<(), Problem> {
    let text = std::str::from_utf8(json)
        .map_err(|e| Problem::new("json_malformed", format!("byte {} is not UTF-8", e.valid_up_to())))?;
    let event: NativeEvent<'_> = serde_json::from_str(text).map_err(|e| json_problem(&e))?;
    if event.tenant.is_some() {
        return Err(Problem::new("tenant_in_body", "the event has a field `tenant`"));
    }
    let at = match &*event.at.0 {
        "" => now,
        text => parse_time(text)?,
    };
    batch.push(&Event {
        position: Default::default(),
        id: &event.id.0,
        aggregate: &event.aggregate.0,
        agg_id: &event.agg_id.0,
        version: event.version,
        event_type: &event.event_type.0,
        at,
        schema_version: event.schema_version.unwrap_or(1),
        depth: 0,
        scope: &event.scope.0,
        kind: &event.kind.0,
        cursor: &event.cursor.0,
        traceparent: &event.traceparent.0,
        payload: event.payload.map_or(b"null", |raw| raw.get().as_bytes()),
    })?;
    Ok(())
}

/// Reads one event of a file, for whoever is no client. The error says what is wrong.
pub fn read_event(batch: &mut EventBatch, json: &[u8], now: Micros) -> Result<(), String> {
    push(batch, json, now).map_err(|problem| problem.detail().to_owned())
}

/// What serde says, under the right code: no JSON at all, or JSON that is no event.
pub(super) fn json_problem(error: &serde_json::Error) -> Problem {
    let said = error.to_string();
    let what = said.split(" at line ").next().unwrap_or_default();
    let detail = format!("{} (line {}, column {})", cut(what), error.line(), error.column());
    match error.classify() {
        serde_json::error::Category::Data => Problem::new("event_invalid", detail),
        _ => Problem::new("json_malformed", detail),
    }
}

/// Serde repeats what the client sent, which may be long.
fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

/// RFC 3339; the usual UTC form without the general parser.
pub(super) fn parse_time(text: &str) -> Result<Micros, Problem> {
    match parse_utc(text.as_bytes()) {
        Some(micros) => Ok(micros),
        None => Ok(Micros::parse(text)?),
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.f…]Z` with every part in its range; none for anything else.
fn parse_utc(text: &[u8]) -> Option<Micros> {
    let (body, rest) = text.split_at_checked(19)?;
    let number = |from: usize, to: usize| -> Option<i64> {
        body[from..to]
            .iter()
            .try_fold(0i64, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
    };
    let signs =
        body[4] == b'-' && body[7] == b'-' && body[10] == b'T' && body[13] == b':' && body[16] == b':';
    if !signs {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    // The general parser's range begins inside of year -9999 and ends inside of year 9999: it decides there.
    if year == 0 || year == 9999 || day == 0 || day > days || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let fraction = match rest {
        b"Z" => 0,
        [b'.', digits @ .., b'Z'] if (1..=9).contains(&digits.len()) => {
            let mut micros = 0;
            for place in 0..6 {
                let digit =
                    digits.get(place).map_or(Some(0), |b| b.is_ascii_digit().then(|| i64::from(b - b'0')))?;
                micros = micros * 10 + digit;
            }
            // What is finer than a microsecond is cut off, but must be digits.
            digits.iter().all(u8::is_ascii_digit).then_some(micros)?
        }
        _ => return None,
    };
    // Days since 1970 of the proleptic Gregorian calendar, with the year beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_era = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let seconds = (day_of_era - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(Micros(seconds * 1_000_000 + fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_times_equal_the_general_parser() {
        let cases = [
            "1970-01-01T00:00:00Z",
            "2013-01-01T08:15:00Z",
            "2000-02-29T23:59:59.999999Z",
            "1900-02-28T00:00:00.5Z",
            "2024-12-31T12:00:00.123456789Z",
            "0001-01-01T00:00:00Z",
            "9998-12-31T23:59:59Z",
            "1969-12-31T23:59:59.000001Z",
        ];
        for text in cases {
            let quick = parse_utc(text.as_bytes());
            assert_eq!(quick, Micros::parse(text).ok(), "{text}");
            assert!(quick.is_some(), "{text} takes the quick way");
        }
    }

    #[test]
    fn impossible_times_are_refused() {
        for text in [
            "2013-02-29T00:00:00Z",
            "2013-13-01T00:00:00Z",
            "2013-01-01T24:00:01Z",
            "2013-01-01T00:60:00Z",
            "2013-01-01 x",
            "2013-01-01T00:00:00",
            "2013-01-01T00:00:00.Z",
            "20-1-01T00:00:00Z",
            "9999-12-31T00:00:00Z",
            "yesterday",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_time("2013-01-01T10:15:00+02:00").map_err(|p| p.code()),
            parse_time("2013-01-01T08:15:00Z").map_err(|p| p.code())
        );
    }
}
