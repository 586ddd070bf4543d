//! What a checkpoint's value is made of, and when two are the same.
//!
//! The value is an object. Its member `lastEventCursor` is what other runtimes of the protocol read and write; `millrace`
//! is ours: format, cursor, generation, owner, the newest cursors and whether the last of them is no event's, and a checksum
//! of the state. A state that is an object lies beside them, so that another runtime can take it up; any other state, and
//! one with a number that a double cannot hold, goes as base64 in `millrace.state`: the protocol's values have doubles for
//! numbers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::client::{JsonText, SourceError, SourceFault};
use crate::limits::{SOURCE_PUT_BYTES_MAX, SOURCE_VALUE_DEPTH_MAX};

const OURS: &str = "millrace";
const CURSOR: &str = "lastEventCursor";
const FORMAT: u32 = 1;

/// Everything that a run saves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// As the processor gave it, or as somebody else's runtime has left it.
    pub(super) state: Vec<u8>,
    pub(super) cursor: Option<String>,
    pub(super) recent: Vec<String>,
    /// The last of these is a place that a server has named, and no event's.
    pub(super) at_mark: bool,
    /// None where another runtime wrote it.
    pub(super) stamp: Option<Stamp>,
}

/// Who wrote a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Counts the runs.
    pub(super) generation: u64,
    pub(super) owner: String,
}

#[derive(Serialize, Deserialize)]
struct Ours {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    #[serde(flatten)]
    stamp: Stamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    recent: Vec<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    at_mark: bool,
    checksum: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Whether the state has a member of the same name as the one that we write.
    #[serde(default, skip_serializing_if = "is_false")]
    cursor_in_state: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The value to put.
pub(super) fn write(saved: &Saved, stamp: &Stamp) -> Result<JsonText, SourceError> {
    let object = as_object(&saved.state);
    let mut ours = Ours {
        format: FORMAT,
        cursor: saved.cursor.clone(),
        stamp: stamp.clone(),
        recent: saved.recent.clone(),
        at_mark: saved.at_mark,
        checksum: String::new(),
        state: None,
        cursor_in_state: false,
    };
    let mut value = object.unwrap_or_else(|| {
        ours.state = Some(STANDARD.encode(&saved.state));
        Map::new()
    });
    ours.cursor_in_state = value.remove(CURSOR).is_some();
    ours.checksum = match ours.state {
        None => checksum(canonical(&Value::Object(value.clone())).as_bytes()),
        Some(_) => checksum(&saved.state),
    };
    if let Some(cursor) = &saved.cursor {
        value.insert(CURSOR.into(), cursor.as_str().into());
    }
    let ours = serde_json::to_value(&ours).expect("an object of texts and numbers is JSON");
    value.insert(OURS.into(), ours);
    let text = canonical(&Value::Object(value));
    if text.len() > SOURCE_PUT_BYTES_MAX {
        let message = format!(
            "the checkpoint has {} bytes; source_put_bytes_max is {SOURCE_PUT_BYTES_MAX}: keep less in the state",
            text.len()
        );
        return Err(SourceError::stop(SourceFault::TooLarge, message));
    }
    JsonText::parse(text.as_bytes())
        .map_err(|error| SourceError::stop(SourceFault::Load, format!("a checkpoint is no JSON: {error}")))
}

/// What a value says. Anything that is not ours is the state of another runtime, with its cursor where there is one.
pub(super) fn read(value: &JsonText) -> Result<Saved, SourceError> {
    let parsed = value.value();
    let cursor = parsed.get(CURSOR).and_then(Value::as_str).filter(|cursor| !cursor.is_empty());
    let foreign = |state: &str| Saved {
        state: state.as_bytes().to_vec(),
        cursor: cursor.map(str::to_owned),
        recent: Vec::new(),
        at_mark: false,
        stamp: None,
    };
    let ours = parsed.get(OURS).and_then(|ours| Ours::deserialize(ours).ok());
    let (Some(ours), Value::Object(mut object)) = (ours, parsed.clone()) else {
        return Ok(foreign(value.as_str()));
    };
    if ours.format != FORMAT {
        let message = format!("the checkpoint has format {}; this host reads {FORMAT}", ours.format);
        return Err(SourceError::stop(SourceFault::Load, message));
    }
    let state = match &ours.state {
        Some(text) => {
            let state = STANDARD.decode(text).unwrap_or_default();
            if checksum(&state) != ours.checksum {
                let message = "the checkpoint is damaged: its state does not have its checksum";
                return Err(SourceError::stop(SourceFault::Load, message));
            }
            state
        }
        None => {
            object.remove(OURS);
            object.remove(CURSOR);
            if checksum(canonical(&Value::Object(object.clone())).as_bytes()) != ours.checksum {
                // Another runtime has gone on from it.
                if let Some(cursor) = cursor {
                    object.insert(CURSOR.into(), cursor.into());
                }
                return Ok(foreign(&Value::Object(object).to_string()));
            }
            if let (true, Some(cursor)) = (ours.cursor_in_state, &ours.cursor) {
                object.insert(CURSOR.into(), cursor.as_str().into());
            }
            canonical(&Value::Object(object)).into_bytes()
        }
    };
    // Who moves the cursor by hand moves the member that all runtimes read.
    let recent = if ours.cursor.as_deref() == cursor { ours.recent } else { Vec::new() };
    let cursor = cursor.map(str::to_owned).or(ours.cursor);
    Ok(Saved { state, cursor, recent, at_mark: ours.at_mark, stamp: Some(ours.stamp) })
}

/// Who wrote a value; none for another runtime.
pub(super) fn stamp_of(value: &JsonText) -> Option<Stamp> {
    let ours = value.value().get(OURS).cloned()?;
    Ours::deserialize(ours).ok().map(|ours| ours.stamp)
}

/// A state in the form in which it is compared: two that say the same are the same.
pub(super) fn compared(state: &[u8]) -> Vec<u8> {
    match as_object(state) {
        Some(mut object) => {
            object.remove(CURSOR);
            canonical(&Value::Object(object)).into_bytes()
        }
        None => state.to_vec(),
    }
}

/// The state as members of the value, where it can be: an object without our member, not too deep, with numbers that a
/// double holds.
fn as_object(state: &[u8]) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(state).ok()?;
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    let deepest = 1 + object.values().map(levels).max().unwrap_or(0);
    let plain = !object.contains_key(OURS) && deepest <= SOURCE_VALUE_DEPTH_MAX;
    (plain && fits_doubles(text) && !has_repeated_names(text, &object)).then_some(object)
}

/// JSON lets a name stand twice in an object; a value of the protocol does not, and one of the two would be lost.
fn has_repeated_names(text: &str, object: &Map<String, Value>) -> bool {
    fn names(value: &Value) -> usize {
        match value {
            Value::Object(members) => members.len() + members.values().map(names).sum::<usize>(),
            Value::Array(items) => items.iter().map(names).sum(),
            _ => 0,
        }
    }
    // A colon outside of a text follows a name, and nothing else.
    outside_of_texts(text).filter(|(_, byte)| *byte == b':').count()
        != object.len() + object.values().map(names).sum::<usize>()
}

fn levels(value: &Value) -> usize {
    match value {
        Value::Object(members) => 1 + members.values().map(levels).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}

/// The bytes of a JSON text that are not within a text of its own, with their places.
fn outside_of_texts(text: &str) -> impl Iterator<Item = (usize, u8)> {
    let (mut within, mut escaped) = (false, false);
    text.bytes().enumerate().filter(move |(_, byte)| {
        if within {
            match *byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => within = false,
                _ => {}
            }
            return false;
        }
        within = *byte == b'"';
        !within
    })
}

/// Whether every number of a JSON text comes back from a double as it was: it is, as a decimal, what its double is written
/// as, and where it is written as an integer it is small enough to be written as one again.
pub(super) fn fits_doubles(json: &str) -> bool {
    let in_number = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
    let mut number: Option<(usize, usize)> = None;
    let mut spans = Vec::new();
    for (at, byte) in outside_of_texts(json) {
        let starts = byte.is_ascii_digit() || byte == b'-';
        match number {
            Some((from, end)) if end == at && in_number(byte) => number = Some((from, at + 1)),
            _ => {
                spans.extend(number.take());
                if starts {
                    number = Some((at, at + 1));
                }
            }
        }
    }
    spans.extend(number);
    spans.into_iter().all(|(from, to)| json.get(from..to).is_some_and(number_fits))
}

fn number_fits(text: &str) -> bool {
    let is_integer = !text.contains(['.', 'e', 'E']);
    match text.parse::<f64>() {
        Ok(number) if is_integer && number.abs() >= WHOLE_NUMBERS_END => false,
        Ok(number) if number.is_finite() => decimal(text) == decimal(&format!("{number:e}")),
        _ => false,
    }
}

/// Sign, digits without zeros at their ends, and the power of ten of the last digit.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{part}");
    let trimmed = digits.trim_end_matches('0');
    let zeros = i64::try_from(digits.len() - trimmed.len()).ok()?;
    let power = exponent.parse::<i64>().ok()? - i64::try_from(part.len()).ok()? + zeros;
    let digits = trimmed.trim_start_matches('0');
    if digits.is_empty() {
        return Some((negative, String::new(), 0));
    }
    Some((negative, digits.to_owned(), power))
}

/// JSON with its names in order and each number as its double is written, so that it is the same after it went through a
/// value of the protocol.
fn canonical(value: &Value) -> String {
    fn plain(value: &Value) -> Value {
        match value {
            Value::Number(number) => match number.as_f64() {
                Some(double) => plain_number(double).unwrap_or_else(|| value.clone()),
                None => value.clone(),
            },
            Value::Array(items) => items.iter().map(plain).collect(),
            Value::Object(members) => {
                Value::Object(members.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
            }
            other => other.clone(),
        }
    }
    plain(value).to_string()
}

/// All whole numbers below this are doubles.
const WHOLE_NUMBERS_END: f64 = 9_007_199_254_740_992.0;

fn plain_number(double: f64) -> Option<Value> {
    if double.fract() == 0.0
        && double.abs() < WHOLE_NUMBERS_END
        && !(double == 0.0 && double.is_sign_negative())
    {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and smaller than 2^53")]
        let whole = double as i64;
        return Some(whole.into());
    }
    serde_json::Number::from_f64(double).map(Value::Number)
}

fn checksum(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(state: &str) -> Saved {
        Saved {
            state: state.into(),
            cursor: Some("7".into()),
            recent: vec!["6".into(), "7".into()],
            at_mark: false,
            stamp: Some(stamp()),
        }
    }

    fn stamp() -> Stamp {
        Stamp { generation: 3, owner: "a".into() }
    }

    #[test]
    fn an_object_lies_beside_the_cursor_and_comes_back() {
        let before = saved(r#"{"open":{"a":1.5},"version":1}"#);
        let value = write(&before, &stamp()).unwrap();
        let shown = value.value();
        assert_eq!((&shown["version"], &shown[CURSOR]), (&1.into(), &"7".into()));
        assert_eq!(read(&value).unwrap(), before);
        let at_mark = Saved { at_mark: true, ..before };
        assert_eq!(read(&write(&at_mark, &stamp()).unwrap()).unwrap(), at_mark);
    }

    #[test]
    fn a_state_that_has_a_cursor_of_its_own_gets_that_of_the_run() {
        let value = write(&saved(r#"{"lastEventCursor":"3","version":1}"#), &stamp()).unwrap();
        assert_eq!(read(&value).unwrap(), saved(r#"{"lastEventCursor":"7","version":1}"#));
    }

    #[test]
    fn what_a_value_cannot_hold_goes_as_it_is() {
        let deep = format!("{}{}", "{\"a\":".repeat(60), "1".to_owned() + &"}".repeat(60));
        let strange = [
            r#"{"n":9007199254740993}"#,
            // A double holds these, and is written with a point.
            r#"{"n":9007199254740992}"#,
            r#"{"at":[-1700000000000000000]}"#,
            r#"{"n":18446744073709551615}"#,
            "[1,2]",
            "not json",
            "",
            r#"{"millrace":1}"#,
            &deep,
            r#"{"a":1,"a":2}"#,
        ];
        for state in strange {
            let value = write(&saved(state), &stamp()).unwrap();
            assert_eq!(value.value()[CURSOR], "7");
            assert_eq!(read(&value).unwrap(), saved(state));
        }
    }

    #[test]
    fn a_value_of_another_runtime_is_its_state_and_its_cursor() {
        let value = JsonText::parse(br#"{"version":1,"lastEventCursor":"41"}"#).unwrap();
        let read = read(&value).unwrap();
        assert_eq!(read.cursor.as_deref(), Some("41"));
        assert_eq!((read.state.as_slice(), read.stamp), (value.as_str().as_bytes(), None));
        for other in ["null", "[]", r#"{"lastEventCursor":7}"#, r#"{"cursor":"7"}"#] {
            assert_eq!(
                super::read(&JsonText::parse(other.as_bytes()).unwrap()).unwrap().cursor,
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn a_state_that_another_runtime_went_on_from_counts() {
        let mut value = write(&saved(r#"{"open":1}"#), &stamp()).unwrap().value();
        value["open"] = 2.into();
        value[CURSOR] = "9".into();
        let read = read(&JsonText::from(&value)).unwrap();
        assert_eq!((read.cursor.as_deref(), read.stamp), (Some("9"), None));
        assert_eq!(serde_json::from_slice::<Value>(&read.state).unwrap()["open"], 2);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let mut value = write(&saved("not json"), &stamp()).unwrap().value();
        value[OURS]["state"] = STANDARD.encode("no json").into();
        assert_eq!(read(&JsonText::from(&value)).unwrap_err().fault, SourceFault::Load);
    }

    #[test]
    fn a_checkpoint_that_no_server_takes_names_the_limit() {
        let large = format!("\"{}\"", "x".repeat(SOURCE_PUT_BYTES_MAX));
        let refused = write(&saved(&large), &stamp()).unwrap_err();
        assert!(refused.to_string().contains("source_put_bytes_max"), "{refused}");
    }

    #[test]
    fn numbers_that_a_double_holds_are_told_from_others() {
        for fits in [
            "0",
            "-1",
            "1.50",
            "1e3",
            "1E+2",
            "9007199254740991",
            "1e300",
            "0.1",
            "[1,2.5,\"9007199254740993\"]",
        ] {
            assert!(fits_doubles(fits), "{fits}");
        }
        for not in [
            "9007199254740992",
            "-9007199254740993",
            "0.10000000000000000001",
            "1e400",
            "[1,{\"a\":18014398509481985}]",
        ] {
            assert!(!fits_doubles(not), "{not}");
        }
        assert!(
            fits_doubles(r#"{"a\"1e400":"-9007199254740993\\","b":1}"#),
            "digits in texts are no numbers"
        );
    }

    #[test]
    fn states_that_say_the_same_are_the_same() {
        assert_eq!(compared(br#"{"b":1.0,"a":2}"#), compared(br#"{ "a":2, "b":1 }"#));
        assert_ne!(compared(br#"{"a":1}"#), compared(br#"{"a":2}"#));
    }
}
