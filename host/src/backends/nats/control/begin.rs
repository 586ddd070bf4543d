//! Where the stream begins, and begins again above what it has: one sink at a time moves it.
//!
//! A purge moves a stream, and takes along what others have published between the look at the stream and the purge: the
//! server itself looks first and removes then. So a sink claims the move before, under a key of the bucket at which the
//! server takes one of several claims. The others wait until the stream has moved. A claim that nothing comes of is
//! another's after a while.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::NatsControl;
use crate::backends::nats::api::{StreamInfo, WRONG_LAST_SEQUENCE};
use crate::backends::nats::link::{Linked, remote};
use crate::control::Result;
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    NATS_BEGIN_LOOKS_MAX, NATS_CLAIM_LOOKS_MAX, NATS_LIFE_STEP, NATS_MAKING_LOOKS_MAX, NATS_RETRY_WAIT_MIN,
};

const DOING: &str = "beginning the stream";

/// Which move of the stream is claimed: away from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    created: String,
    last_seq: u64,
}

/// The claim that lies in the bucket, read before a look at the stream.
#[derive(Debug, Default)]
struct Standing {
    /// 0 when there is none.
    revision: u64,
    /// None that can be read is nobody's.
    claim: Option<Claim>,
    /// In how many looks it was the same.
    looks: usize,
}

impl Standing {
    fn is_free(&self, wanted: &Claim) -> bool {
        self.claim.as_ref() != Some(wanted) || self.looks >= NATS_CLAIM_LOOKS_MAX
    }
}

impl StreamInfo {
    /// Where the next event has to come, when that is not where it would.
    fn begins(&self, known: u64) -> Option<u64> {
        match self.state.last_seq {
            0 => Some(self.created_micros().max(known) + 1),
            last if last < known => Some(known + NATS_LIFE_STEP),
            _ => None,
        }
    }
}

impl NatsControl {
    /// Sees to it that there is a stream and that what comes next is above everything that is known; answers what is.
    pub(super) async fn begin(&self, linked: &Linked) -> Result<u64> {
        let stream = &self.names.stream;
        // Where a claim stands, one that takes none for granted is refused: only then it is read. The bucket is whole then;
        // a server (2.9.10) that is asked for a message of a stream that it is making crashes.
        let mut standing = Standing::default();
        for _ in 0..NATS_BEGIN_LOOKS_MAX {
            // Before the look: what is published and read meanwhile is not missing from the stream.
            let known = self.known.load(Ordering::SeqCst);
            let info = match linked.stream(stream).await? {
                Some(info) => info,
                None => self.make(linked).await?,
            };
            self.check_is_ours(&info)?;
            if info.is_being_made() {
                tokio::time::sleep(NATS_RETRY_WAIT_MIN).await;
                continue;
            }
            let Some(begin) = info.begins(known) else {
                self.refresh(linked, &info).await?;
                return Ok(known);
            };
            let wanted = Claim { created: info.created.clone(), last_seq: info.state.last_seq };
            if !standing.is_free(&wanted) {
                tokio::time::sleep(NATS_RETRY_WAIT_MIN).await;
            } else if self.claim(linked, standing.revision, &wanted).await? {
                self.move_on(linked, begin).await?;
                self.refresh(linked, &info).await?;
                return Ok(known);
            }
            standing = self.standing(linked, &standing).await?;
        }
        Err(remote(RemoteFault::Loading, format_args!("{DOING}: others are at it")).into())
    }

    /// Whether the move is this sink's: nobody has claimed one since the claim that stood was read.
    async fn claim(&self, linked: &Linked, revision: u64, wanted: &Claim) -> Result<bool> {
        let value = serde_json::to_vec(wanted)
            .map_err(|error| BackendError::Failed { detail: format!("{DOING}: {error}") })?;
        let subject = self.names.begin_subject();
        match self.put(linked, &subject, Some(revision), Bytes::from(value)).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.err_code == WRONG_LAST_SEQUENCE => Ok(false),
            Err(refusal) => Err(refusal.into_error(DOING).into()),
        }
    }

    async fn standing(&self, linked: &Linked, before: &Standing) -> Result<Standing> {
        let which = json!({ "last_by_subj": self.names.begin_subject() });
        let Some((revision, bytes)) = linked.message(&self.names.bucket_stream(), which).await? else {
            return Ok(Standing::default());
        };
        let looks = if revision == before.revision { before.looks + 1 } else { 1 };
        Ok(Standing { revision, claim: serde_json::from_slice(&bytes).ok(), looks })
    }

    /// Only whoever has claimed it.
    async fn move_on(&self, linked: &Linked, begin: u64) -> Result<()> {
        let mut turn = 1;
        loop {
            match linked.purge(&self.names.stream, begin).await? {
                Ok(_) => return Ok(()),
                // The server shows a stream before it has files.
                Err(_) if turn < NATS_MAKING_LOOKS_MAX => tokio::time::sleep(NATS_RETRY_WAIT_MIN).await,
                Err(refusal) => return Err(refusal.into_error(DOING).into()),
            }
            turn += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_another_s_only_for_the_same_move_and_not_for_ever() {
        let claim = |last_seq| Claim { created: "2026-01-01T00:00:00.5Z".into(), last_seq };
        assert!(Standing::default().is_free(&claim(0)));
        let standing = |looks| Standing { revision: 1, claim: Some(claim(0)), looks };
        assert!(!standing(1).is_free(&claim(0)) && standing(1).is_free(&claim(7)));
        assert!(!standing(NATS_CLAIM_LOOKS_MAX - 1).is_free(&claim(0)));
        assert!(standing(NATS_CLAIM_LOOKS_MAX).is_free(&claim(0)));
    }
}
