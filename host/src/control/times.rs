//! Times as they stand in events and files: RFC 3339 in UTC, to the microsecond.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Microseconds since 1970, as a text on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Time(pub(super) i64);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            let text: String = text.chars().take(80).collect();
            format!("`{text}` is not a time in UTC such as 2026-01-31T12:00:00.000000Z")
        };
        if !shaped(text.as_bytes()) {
            return Err(wrong());
        }
        text.parse::<Timestamp>().map(|time| Self(time.as_microsecond())).map_err(|_| wrong())
    }
}

/// One spelling: neither other zones, nor what is finer and would be lost.
fn shaped(text: &[u8]) -> bool {
    const SECONDS: &[u8] = b"0000-00-00T00:00:00";
    let Some((seconds, rest)) = text.split_at_checked(SECONDS.len()) else { return false };
    let fits = |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
    let fraction = match rest {
        b"Z" => true,
        [b'.', digits @ .., b'Z'] => (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    fraction && seconds.iter().zip(SECONDS).all(fits)
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        match Timestamp::from_microsecond(time.0) {
            Ok(time) => format!("{time:.6}"),
            // It is no time on the way back either, so it is refused there.
            Err(_) => format!("{}us", time.0),
        }
    }
}

/// For a member that may be absent.
pub(super) mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Time;

    pub(in crate::control) fn serialize<S: Serializer>(time: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
        time.map(Time).serialize(to)
    }

    pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<i64>, D::Error> {
        Ok(Option::<Time>::deserialize(from)?.map(|time| time.0))
    }
}
