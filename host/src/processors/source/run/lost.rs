//! A server that no longer knows the cursor that it was asked for.

use tracing::{info, warn};

use super::{Feed, Flow, Next, OLDEST, Place, Recent, USUAL};
use crate::error::Blame;
use crate::processors::source::client::{SourceError, SourceFault};
use crate::processors::source::policy::CursorPolicy;
use crate::telemetry::metrics as names;

impl Feed {
    pub(super) async fn cursor_lost(&mut self, asked: Option<&str>) -> Result<Next, SourceError> {
        let newest = self.recent.newest();
        let by_the_way = matches!(self.place, Place::Overlap | Place::After(_));
        if by_the_way && asked.is_some() && newest.is_some() && asked != newest {
            // What is older than the newest may go first, and so may what a server named when it closed a stream.
            self.place = Place::Newest;
            return Ok(Next::Again);
        }
        let Some(asked) = asked.filter(|cursor| *cursor != OLDEST) else { return Ok(Next::Wait(USUAL)) };
        if std::mem::take(&mut self.closed_by_us) {
            // Until a moment ago the stream showed what there was: whatever the server still has is known, or new.
            info!(
                cursor = asked,
                client = self.run.config.client_id,
                "a server no longer knows the newest event of a source that is up to date; it goes on at the oldest"
            );
            self.place = Place::Oldest;
            return Ok(Next::Again);
        }
        let policy = self.run.config.on_cursor_lost;
        metrics::counter!(names::SOURCE_CURSORS_LOST).increment(1);
        warn!(
            error.kind = "cursor_lost",
            error.blame = Blame::Caller.as_str(),
            cursor = asked,
            policy = ?policy,
            "a server no longer knows the cursor of a source"
        );
        self.place = match policy {
            CursorPolicy::Fail => {
                let message = format!(
                    "the server no longer knows cursor `{asked}`; on_cursor_lost = \"oldest\", \"tail\" or \"rebuild\" goes on without it"
                );
                return Err(SourceError::stop(SourceFault::CursorLost, message));
            }
            CursorPolicy::Tail => Place::Now,
            CursorPolicy::Oldest => Place::Oldest,
            CursorPolicy::Rebuild => {
                if self.begin_anew().await? == Flow::Stop {
                    return Ok(Next::Stop);
                }
                Place::Oldest
            }
        };
        // Cursors of before mean nothing any more. The one that is saved stays until there is another: should the host
        // fall now, the same is decided again.
        self.recent = Recent::default();
        Ok(Next::Again)
    }

    /// Tries again what passes, as for events.
    async fn begin_anew(&mut self) -> Result<Flow, SourceError> {
        while let Err(failure) = self.run.reducer.begin_anew().await {
            let Some(asked) = failure.wait() else { return Err(failure) };
            self.run.waits(&failure);
            let wait = self.patience.wait(asked);
            if self.pause(wait).await? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        self.patience.reset();
        Ok(Flow::Go)
    }
}
