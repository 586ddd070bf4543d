//! Requests to JetStream, and what it answers.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::link::{Linked, remote};
use crate::error::{BackendError, RemoteFault};

pub(super) const STREAM_NOT_FOUND: u64 = 10_059;
pub(super) const STREAM_NAME_IN_USE: u64 = 10_058;
/// Of another stream, or of the same one while it is being made.
pub(super) const STREAM_SUBJECTS_OVERLAP: u64 = 10_065;
pub(super) const STREAM_NOT_MATCH: u64 = 10_060;
pub(super) const CONSUMER_NOT_FOUND: u64 = 10_014;
pub(super) const MESSAGE_NOT_FOUND: u64 = 10_037;
pub(super) const WRONG_LAST_SEQUENCE: u64 = 10_071;

/// What the server says no with.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    description: String,
}

/// What the server answered, or what kept it from answering.
pub(super) type Answer<T> = Result<Result<T, Refusal>, BackendError>;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Value,
    pub(super) created: String,
    pub(super) state: StreamState,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    first_seq: u64,
    pub(super) last_seq: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    #[serde(default)]
    pub(super) name: String,
    pub(super) config: Value,
    pub(super) delivered: SequencePair,
    ack_floor: SequencePair,
    #[serde(default)]
    pub(super) num_pending: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct SequencePair {
    pub(super) stream_seq: u64,
}

/// What a publisher is told.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Published {
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) duplicate: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Purged {
    pub(super) purged: u64,
}

/// Where a message that a consumer hands out has its place, from the subject of its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) sequence: u64,
    /// Counts what this consumer has handed out, repeats too.
    pub(super) delivery: u64,
    /// Nanoseconds since 1970, by the server's clock.
    pub(super) published: i64,
    /// What the consumer has yet to hand out.
    pub(super) pending: u64,
}

impl Refusal {
    pub(super) fn into_error(self, doing: &str) -> BackendError {
        let detail = format!("{doing}: {} (code {}, {})", self.description, self.code, self.err_code);
        let said = self.description.to_lowercase();
        if ["insufficient", "exceeded", "no space"].iter().any(|word| said.contains(word)) {
            return remote(RemoteFault::Full, detail);
        }
        match self.code {
            503 => remote(RemoteFault::Loading, detail),
            400 | 404 => remote(RemoteFault::Unsupported, detail),
            _ => BackendError::Failed { detail: format!("nats, {detail}") },
        }
    }
}

impl StreamInfo {
    /// Microseconds since 1970: where sequences begin in a stream that a sink has made.
    pub(super) fn created_micros(&self) -> u64 {
        let created = self.created.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_microsecond);
        created.ok().and_then(|micros| u64::try_from(micros).ok()).unwrap_or(0)
    }

    /// The server shows a stream before it knows when that was made.
    pub(super) fn is_being_made(&self) -> bool {
        self.created_micros() == 0
    }

    /// The oldest message, or where the next one will be.
    pub(super) fn first(&self) -> u64 {
        if self.state.messages == 0 { self.state.last_seq + 1 } else { self.state.first_seq }
    }

    /// What was before the first event that this stream ever had.
    fn begun(&self) -> u64 {
        let created = self.created_micros();
        if self.first() > created { created } else { 0 }
    }

    /// Where the feed begins, when some of what was after a version is gone or the version is not of this stream.
    pub(super) fn is_behind(&self, after: u64) -> Option<u64> {
        let first = self.first();
        // Who has seen nothing misses nothing of a stream that has lost nothing.
        let whole = after == 0 && first == self.begun() + 1;
        (after > self.state.last_seq || (after + 1 < first && !whole)).then_some(first)
    }

    /// The newest event that it had; 0 when it never had one.
    pub(super) fn newest(&self) -> u64 {
        if self.state.messages == 0 && self.state.last_seq == self.begun() { 0 } else { self.state.last_seq }
    }

    pub(super) fn oldest(&self) -> u64 {
        if self.state.messages == 0 { 0 } else { self.state.first_seq }
    }
}

impl ConsumerInfo {
    /// Everything up to there was acknowledged, or was before it began.
    pub(super) fn floor(&self) -> u64 {
        let begun = self.config.get("opt_start_seq").and_then(Value::as_u64).unwrap_or(1);
        self.ack_floor.stream_seq.max(begun.saturating_sub(1))
    }
}

impl Place {
    /// From `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<delivery>.<time>.<pending>`; later servers have a domain
    /// and an account in front of the stream, and a token behind.
    pub(super) fn of(reply: &str) -> Option<Self> {
        let parts: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let skipped = match parts.len() {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let number = |place: usize| parts.get(skipped + place)?.parse::<u64>().ok();
        Some(Self {
            sequence: number(0)?,
            delivery: number(1)?,
            published: i64::try_from(number(2)?).ok()?,
            pending: number(3)?,
        })
    }
}

impl Linked {
    /// Asks JetStream's interface.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        doing: &str,
        subject: String,
        body: &Value,
    ) -> Answer<T> {
        let body = Bytes::from(body.to_string());
        match self.ask(doing, format!("$JS.API.{subject}"), None, body).await? {
            Some(message) => read(doing, &message),
            None => Err(remote(
                RemoteFault::Loading,
                format_args!(
                    "{doing}: JetStream does not answer; switch it on for this account (or it begins yet)"
                ),
            )),
        }
    }

    /// Publishes into a stream; none where no stream takes the subject.
    pub(super) async fn publish(
        &self,
        doing: &str,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Option<Result<Published, Refusal>>, BackendError> {
        match self.ask(doing, subject, Some(headers), payload).await? {
            Some(message) => read(doing, &message).map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn stream(&self, name: &str) -> Result<Option<StreamInfo>, BackendError> {
        let doing = "looking at the stream";
        match self.api(doing, format!("STREAM.INFO.{name}"), &json!({})).await? {
            Ok(info) => Ok(Some(info)),
            Err(refusal) if refusal.err_code == STREAM_NOT_FOUND => Ok(None),
            Err(refusal) => Err(refusal.into_error(doing)),
        }
    }

    /// One message of a stream, by `seq` or `last_by_subj`: its sequence and its bytes.
    pub(super) async fn message(
        &self,
        stream: &str,
        which: Value,
    ) -> Result<Option<(u64, Vec<u8>)>, BackendError> {
        use base64::Engine as _;
        #[derive(Deserialize)]
        struct Found {
            message: Stored,
        }
        #[derive(Deserialize)]
        struct Stored {
            seq: u64,
            #[serde(default)]
            data: String,
        }
        let doing = "reading a message";
        match self.api::<Found>(doing, format!("STREAM.MSG.GET.{stream}"), &which).await? {
            Ok(Found { message }) => {
                let data = base64::engine::general_purpose::STANDARD.decode(&message.data);
                Ok(Some((message.seq, data.map_err(|_| odd(doing))?)))
            }
            Err(refusal) if [MESSAGE_NOT_FOUND, STREAM_NOT_FOUND].contains(&refusal.err_code) => Ok(None),
            Err(refusal) => Err(refusal.into_error(doing)),
        }
    }

    /// Removes everything before a sequence; in an empty stream the next message gets that one.
    pub(super) async fn purge(&self, stream: &str, before: u64) -> Answer<Purged> {
        self.api("removing messages", format!("STREAM.PURGE.{stream}"), &json!({ "seq": before })).await
    }
}

fn read<T: DeserializeOwned>(doing: &str, message: &Message) -> Answer<T> {
    let mut answer: Value = serde_json::from_slice(&message.payload).map_err(|_| odd(doing))?;
    if let Some(error) = answer.get_mut("error").map(Value::take) {
        return Ok(Err(serde_json::from_value(error).unwrap_or_default()));
    }
    serde_json::from_value(answer).map(Ok).map_err(|_| odd(doing))
}

fn odd(doing: &str) -> BackendError {
    remote(RemoteFault::Unsupported, format_args!("{doing}: the answer has another shape"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(messages: u64, first: u64, last: u64) -> StreamInfo {
        let state = StreamState { messages, first_seq: first, last_seq: last };
        StreamInfo { config: Value::Null, created: "1970-01-01T00:00:00.001000001Z".into(), state }
    }

    #[test]
    fn a_stream_that_has_lost_nothing_is_whole_for_who_begins() {
        // It was made at 1,000 µs, so events begin at 1,001.
        assert_eq!((info(0, 1_001, 1_000).is_behind(0), info(0, 1_001, 1_000).newest()), (None, 0));
        assert_eq!((info(2, 1_001, 1_002).is_behind(0), info(2, 1_001, 1_002).newest()), (None, 1_002));
        assert_eq!(info(2, 1_001, 1_002).is_behind(1_001), None);
        // One that somebody else has made begins at 1.
        assert_eq!((info(3, 1, 3).is_behind(0), info(0, 0, 0).is_behind(0)), (None, None));
    }

    #[test]
    fn a_place_of_which_the_stream_has_not_all_that_came_after_is_behind() {
        assert_eq!(info(1, 1_002, 1_002).is_behind(0), Some(1_002));
        assert_eq!(info(1, 1_005, 1_005).is_behind(1_003), Some(1_005));
        assert_eq!(info(1, 1_005, 1_005).is_behind(1_004), None);
        // Of a former stream, and ahead of this one.
        assert_eq!(info(2, 1_001, 1_002).is_behind(60), Some(1_001));
        assert_eq!(info(2, 1_001, 1_002).is_behind(1_003), Some(1_001));
        assert_eq!(info(0, 1_003, 1_002).is_behind(1_001), Some(1_003));
        assert_eq!((info(1, 2, 2).is_behind(0), info(0, 0, 0).is_behind(3)), (Some(2), Some(1)));
    }

    #[test]
    fn a_stream_without_a_time_is_being_made() {
        let made = info(0, 0, 0);
        let making = StreamInfo { created: "0001-01-01T00:00:00Z".into(), ..made.clone() };
        assert!(making.is_being_made() && !made.is_being_made());
    }

    #[test]
    fn the_place_of_a_message_is_read_from_either_form() {
        let place = Place { sequence: 100, delivery: 7, published: 1_790_230_470_084_404_000, pending: 42 };
        let short = "$JS.ACK.events.durable.3.100.7.1790230470084404000.42";
        let long = "$JS.ACK.hub.ACC.events.durable.3.100.7.1790230470084404000.42.tok";
        assert_eq!((Place::of(short), Place::of(long)), (Some(place), Some(place)));
        assert_eq!((Place::of("_INBOX.a.b"), Place::of("$JS.ACK.a.b.c")), (None, None));
    }
}
