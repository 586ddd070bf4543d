//! What is counted of channels, wherever a request comes from.

use metrics::{Counter, counter, gauge};

use super::AppendedAtOnce;
use super::entry::Appended;
use super::error::ChannelError;
use crate::error::Classify as _;
use crate::telemetry::metrics as names;

/// What came of an append whose entries have these sizes.
pub(super) fn answered(sizes: &[usize], answer: &Result<Vec<Appended>, ChannelError>) {
    match answer {
        Ok(appended) => {
            let new = || appended.iter().zip(sizes).filter(|(answer, _)| !answer.repeated);
            let entries = new().count() as u64;
            count_written(entries, new().map(|(_, bytes)| *bytes as u64).sum());
            counter!(names::CHANNEL_REPEATS).increment(appended.len() as u64 - entries);
        }
        Err(error) => count_refused(error),
    }
}

/// The same of appends that need no waiting, for who makes many of them.
#[derive(Debug)]
pub(crate) struct Written {
    entries: Counter,
    bytes: Counter,
    repeats: Counter,
}

impl Written {
    pub(crate) fn new() -> Self {
        Self {
            entries: counter!(names::CHANNEL_ENTRIES),
            bytes: counter!(names::CHANNEL_BYTES),
            repeats: counter!(names::CHANNEL_REPEATS),
        }
    }

    pub(crate) fn count(&self, answer: &Result<AppendedAtOnce, ChannelError>) {
        match answer {
            Ok(done) => {
                let repeats = done.places.iter().filter(|place| place.repeated).count() as u64;
                self.entries.increment(done.places.len() as u64 - repeats);
                self.bytes.increment(done.bytes);
                self.repeats.increment(repeats);
            }
            Err(error) => count_refused(error),
        }
    }
}

/// Entries that are in their channels now, whoever appended them.
pub(crate) fn count_written(entries: u64, bytes: u64) {
    counter!(names::CHANNEL_ENTRIES).increment(entries);
    counter!(names::CHANNEL_BYTES).increment(bytes);
}

/// An append that was refused.
pub(crate) fn count_refused(error: &ChannelError) {
    counter!(names::CHANNEL_REFUSED, "code" => error.code()).increment(1);
    if matches!(error, ChannelError::RateLimited { .. }) {
        counter!(names::CHANNEL_DENIED).increment(1);
    }
}

/// An append waits for a forerunner.
pub(super) fn held() {
    counter!(names::CHANNEL_HELD).increment(1);
}

pub(super) fn follower_came() {
    gauge!(names::CHANNEL_FOLLOWERS).increment(1);
}

pub(super) fn follower_left() {
    gauge!(names::CHANNEL_FOLLOWERS).decrement(1);
}

/// A follower was told that it is behind, and how many entries were gone.
pub(super) fn lagged(missed: u64) {
    counter!(names::CHANNEL_LAGGED).increment(1);
    counter!(names::CHANNEL_MISSED).increment(missed);
}
