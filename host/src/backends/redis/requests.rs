//! Appends on their way: what one asks for, and what became of it.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::codec::{EncodedEvent, encode, own_key};
use crate::cluster::Fence;
use crate::event::{Epoch, EventBatch, Position};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::streams::{Appended, StreamError};

pub(super) type Reply = oneshot::Sender<Result<Vec<Appended>, StreamError>>;

/// One append.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) batch: EventBatch,
    /// Empty for `events`.
    pub(super) stream: Box<str>,
    /// What gives the right to append it; none where nothing is needed.
    pub(super) fence: Option<Fence>,
    /// The events that the script is asked for: an id that the batch repeats is in it once.
    pub(super) events: Vec<EncodedEvent>,
    /// For each of `events`, where it stands in the batch.
    pub(super) places: Vec<usize>,
    /// For each event of the batch, which of `events` it is, and whether it repeats an earlier one.
    pub(super) asked: Vec<(usize, bool)>,
    pub(super) reply: Reply,
    pub(super) deadline: Instant,
    /// Which of `events` the log has already, as far as it was found out.
    pub(super) known: Vec<bool>,
    /// How often it was sent again because of what the log has.
    pub(super) turns: usize,
    /// Where the log was when it may have been appended for the first time.
    pub(super) tried: Option<(Epoch, Position)>,
    /// It is sent once more: the log may have its events already.
    pub(super) again: bool,
}

impl Request {
    /// Checks a batch and encodes it. `newest` is where the log is about now.
    pub(super) fn new(
        (stream, fence): (&str, Option<Fence>),
        batch: EventBatch,
        newest: Position,
        deadline: Instant,
        reply: Reply,
    ) -> Result<Self, StreamError> {
        if batch.len() > BATCH_EVENTS_MAX {
            return Err(StreamError::TooManyEvents { events: batch.len(), max: BATCH_EVENTS_MAX });
        }
        if batch.bytes() > BATCH_BYTES_MAX {
            return Err(StreamError::TooManyBytes { bytes: batch.bytes(), max: BATCH_BYTES_MAX });
        }
        let mut events = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        let mut asked = Vec::with_capacity(batch.len());
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(batch.len());
        for (index, event) in batch.iter().enumerate() {
            if let Some(&known) = first.get(event.id) {
                if !batch.get(places[known]).same_content(&event) {
                    // The place that the earlier one would have got.
                    let position = Position(newest.0 + 1 + known as u64);
                    return Err(StreamError::IdTaken { index, id: event.id.to_owned(), position });
                }
                asked.push((known, true));
                continue;
            }
            first.insert(event.id, events.len());
            asked.push((events.len(), false));
            events.push(encode(batch.tenant.as_str(), stream, &event));
            places.push(index);
        }
        drop(first);
        let known = vec![false; events.len()];
        Ok(Self {
            batch,
            stream: stream.into(),
            fence,
            events,
            places,
            asked,
            reply,
            deadline,
            known,
            turns: 0,
            tried: None,
            again: false,
        })
    }

    /// Events that the host has made itself, on their way with something else: `of` is a name that tells them from all
    /// others that it makes.
    pub(super) fn own(batch: EventBatch, of: &str) -> Self {
        let tenant = batch.tenant.as_str();
        let events: Vec<EncodedEvent> = batch
            .iter()
            .map(|event| EncodedEvent { key: own_key(tenant, of, event.id), ..encode(tenant, "", &event) })
            .collect();
        let (reply, _) = oneshot::channel();
        Self {
            stream: "".into(),
            fence: None,
            places: (0..events.len()).collect(),
            asked: (0..events.len()).map(|index| (index, false)).collect(),
            known: vec![false; events.len()],
            events,
            batch,
            reply,
            deadline: Instant::now(),
            turns: 0,
            tried: None,
            again: false,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.body.len()).sum()
    }

    /// The answer to the whole batch, from the places of its distinct events.
    pub(super) fn answer(&self, placed: &[Appended]) -> Vec<Appended> {
        let answer = |&(index, repeats): &(usize, bool)| {
            let found = placed[index];
            Appended { position: found.position, repeated: found.repeated || repeats }
        };
        self.asked.iter().map(answer).collect()
    }

    pub(super) fn finish(self, result: Result<Vec<Appended>, StreamError>) {
        // Nobody may be waiting any more.
        let _ = self.reply.send(result);
    }
}
