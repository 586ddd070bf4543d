//! An event as those see it who only carry it.

use serde_json::Value;

use super::{ControlEvent, ControlFeedError, ControlVersion, EventId, Result, wire};

/// What a feed has to know of an event, also of one that a later host wrote and this one does not understand: whoever
/// happens to carry it does not decide on it.
#[derive(Clone, Debug)]
pub struct Carried {
    id: EventId,
    digest: String,
    json: Value,
}

impl Carried {
    /// Reads an event as [`ControlEvent::parse_at`] does, except that it need not be understood.
    pub fn parse_at(text: &str) -> Result<(Self, Option<ControlVersion>)> {
        match ControlEvent::parse_at(text) {
            Ok((event, version)) => Ok((Self::from(&event), version)),
            Err(ControlFeedError::NotUnderstood { .. }) => {
                let (json, version) = wire::split(text)?;
                let (id, digest) = (wire::id(&json)?, wire::digest_text(&wire::signed_bytes(&json)));
                Ok((Self { id, digest, json }, version))
            }
            Err(error) => Err(error),
        }
    }

    pub fn id(&self) -> &EventId {
        &self.id
    }

    /// Of the signed bytes: two events of one id are the same when these are.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn to_json_at(&self, version: ControlVersion) -> String {
        wire::pretty_at(&self.json, version)
    }
}

impl From<&ControlEvent> for Carried {
    fn from(event: &ControlEvent) -> Self {
        Self { id: event.id().clone(), digest: event.digest(), json: event.json().clone() }
    }
}
