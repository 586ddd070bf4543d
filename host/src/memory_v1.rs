//! What goes over the wire, by hand: nine messages of `memory.v1`, and those of Google's that they and errors need.
//!
//! A checkpoint's value is kept as the bytes of its `google.protobuf.Value`: on the wire a message within a message is
//! bytes, and a server must give back what it was given. [`Value`] reads and writes them.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Oneof};

/// The methods that we call and serve.
pub mod paths {
    pub const SUBSCRIBE_EVENTS: &str = "/memory.v1.EventStreamService/SubscribeEvents";
    pub const GET_CHECKPOINT: &str = "/memory.v1.AdminCheckpointService/GetCheckpoint";
    pub const PUT_CHECKPOINT: &str = "/memory.v1.AdminCheckpointService/PutCheckpoint";
}

#[derive(Clone, PartialEq, Message)]
pub struct SubscribeEventsRequest {
    #[prost(string, repeated, tag = "1")]
    pub conversation_ids: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub kinds: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub after_cursor: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub detail: Option<String>,
    #[prost(enumeration = "EventScope", optional, tag = "5")]
    pub scope: Option<i32>,
    #[prost(string, optional, tag = "6")]
    pub justification: Option<String>,
    #[prost(string, repeated, tag = "7")]
    pub entry_channels: Vec<String>,
    #[prost(string, repeated, tag = "8")]
    pub entry_content_types: Vec<String>,
    #[prost(string, repeated, tag = "9")]
    pub entry_roles: Vec<String>,
}

/// Whose events are asked for. What is not said means those that the caller may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum EventScope {
    Unspecified = 0,
    Authorized = 1,
    Admin = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct EventNotification {
    #[prost(string, tag = "1")]
    pub event: String,
    #[prost(string, tag = "2")]
    pub kind: String,
    /// JSON in UTF-8.
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    pub cursor: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetCheckpointRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PutCheckpointRequest {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub content_type: String,
    /// The bytes of a [`Value`]; see the module's doc. None is not the same as JSON's null.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub value: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AdminCheckpoint {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub content_type: String,
    /// The bytes of a [`Value`].
    #[prost(bytes = "vec", optional, tag = "3")]
    pub value: Option<Vec<u8>>,
    #[prost(message, optional, tag = "4")]
    pub updated_at: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    pub fn from_micros(micros: i64) -> Self {
        let nanos = micros.rem_euclid(1_000_000) * 1_000;
        Self {
            seconds: micros.div_euclid(1_000_000),
            nanos: i32::try_from(nanos).expect("less than a second of nanoseconds fits"),
        }
    }

    /// What is finer than a microsecond is cut off; what lies beyond all time becomes its end.
    pub fn micros(self) -> i64 {
        self.seconds.saturating_mul(1_000_000).saturating_add(i64::from(self.nanos) / 1_000)
    }
}

/// `google.protobuf.Value`: any JSON, each number a double.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Kind {
    /// An enumeration of one member, which is 0.
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    String(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, Message)]
pub struct ListValue {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

impl Value {
    /// Numbers become doubles; who must not lose any looks at the text before.
    pub fn from_json(json: &serde_json::Value) -> Self {
        let kind = match json {
            serde_json::Value::Null => Kind::Null(0),
            serde_json::Value::Bool(value) => Kind::Bool(*value),
            serde_json::Value::Number(number) => Kind::Number(number.as_f64().unwrap_or(f64::NAN)),
            serde_json::Value::String(text) => Kind::String(text.clone()),
            serde_json::Value::Array(items) => {
                Kind::List(ListValue { values: items.iter().map(Self::from_json).collect() })
            }
            serde_json::Value::Object(members) => {
                let fields =
                    members.iter().map(|(name, value)| (name.clone(), Self::from_json(value))).collect();
                Kind::Struct(Struct { fields })
            }
        };
        Self { kind: Some(kind) }
    }

    /// Whole numbers are written as such, others as the shortest text of their double. What JSON has no word for, such as
    /// an endless number, becomes null.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.kind {
            None | Some(Kind::Null(_)) => serde_json::Value::Null,
            Some(Kind::Bool(value)) => (*value).into(),
            Some(Kind::Number(number)) => json_number(*number),
            Some(Kind::String(text)) => text.as_str().into(),
            Some(Kind::List(list)) => list.values.iter().map(Self::to_json).collect(),
            Some(Kind::Struct(object)) => {
                let members = object.fields.iter().map(|(name, value)| (name.clone(), value.to_json()));
                serde_json::Value::Object(members.collect())
            }
        }
    }
}

/// All whole numbers below this are doubles.
const WHOLE_NUMBERS_END: f64 = 9_007_199_254_740_992.0;

fn json_number(number: f64) -> serde_json::Value {
    let negative_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && number.abs() < WHOLE_NUMBERS_END && !negative_zero {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and smaller than 2^53")]
        let whole = number as i64;
        return whole.into();
    }
    serde_json::Number::from_f64(number).map_or(serde_json::Value::Null, serde_json::Value::Number)
}

/// `google.rpc.Status`, as it comes in the trailer `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.RetryInfo`: when to come back.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<Duration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Duration {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl RetryInfo {
    const TYPE_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";

    pub fn after(wait: std::time::Duration) -> Self {
        let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
        let nanos = i32::try_from(wait.subsec_nanos()).expect("less than a second of nanoseconds fits");
        Self { retry_delay: Some(Duration { seconds, nanos }) }
    }

    pub fn wait(self) -> Option<std::time::Duration> {
        let delay = self.retry_delay?;
        let seconds = u64::try_from(delay.seconds).ok()?;
        let nanos = u32::try_from(delay.nanos).ok()?;
        // `Duration::new` carries nanoseconds over and panics where that does not fit.
        Some(
            std::time::Duration::from_secs(seconds)
                .saturating_add(std::time::Duration::from_nanos(nanos.into())),
        )
    }

    /// The detail of a status, for its trailer.
    pub fn in_status(self, code: i32, message: &str) -> RpcStatus {
        let detail = Any { type_url: Self::TYPE_URL.into(), value: self.encode_to_vec() };
        RpcStatus { code, message: message.into(), details: vec![detail] }
    }

    /// What the trailer of a status says. Anything else in there is of no use to us.
    pub fn of(details: &[u8]) -> Option<Self> {
        let status = RpcStatus::decode(details).ok()?;
        let detail = status.details.iter().find(|detail| detail.type_url == Self::TYPE_URL)?;
        Self::decode(detail.value.as_slice()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(json: &serde_json::Value) -> serde_json::Value {
        let bytes = Value::from_json(json).encode_to_vec();
        Value::decode(bytes.as_slice()).unwrap().to_json()
    }

    #[test]
    fn json_goes_through_a_value() {
        let json = serde_json::json!({
            "a": [1, -2.5, true, null, "x", {}, []],
            "b": { "c": 9_007_199_254_740_991_i64 },
        });
        assert_eq!(round(&json), json);
    }

    #[test]
    fn numbers_beyond_a_double_are_not_what_they_were() {
        let json = serde_json::json!(9_007_199_254_740_993_i64);
        assert_eq!(round(&json).as_f64(), Some(9_007_199_254_740_992.0));
        assert_eq!(Value { kind: Some(Kind::Number(f64::INFINITY)) }.to_json(), serde_json::Value::Null);
    }

    #[test]
    fn null_is_a_value_on_the_wire_and_absence_is_none() {
        let null = PutCheckpointRequest {
            value: Some(Value::from_json(&serde_json::Value::Null).encode_to_vec()),
            ..PutCheckpointRequest::default()
        };
        let read = PutCheckpointRequest::decode(null.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read.value.as_deref(), Some([0x08, 0x00].as_slice()));
        let read = PutCheckpointRequest::decode([].as_slice()).unwrap();
        assert_eq!(read.value, None);
    }

    #[test]
    fn a_wait_goes_through_a_trailer() {
        let wait = std::time::Duration::from_millis(1_250);
        let trailer = RetryInfo::after(wait).in_status(8, "rate limit exceeded").encode_to_vec();
        assert_eq!(RetryInfo::of(&trailer).and_then(RetryInfo::wait), Some(wait));
        assert_eq!(RetryInfo::of(b"no message"), None);
    }

    #[test]
    fn times_before_the_epoch_keep_their_microseconds() {
        for micros in [-1, 0, 1, -1_000_001, 1_700_000_000_123_456] {
            assert_eq!(Timestamp::from_micros(micros).micros(), micros);
        }
    }
}
