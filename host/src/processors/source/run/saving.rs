//! What a run saves, and when.

use tracing::warn;

use super::Feed;
use crate::error::Classify as _;
use crate::processors::source::client::SourceError;
use crate::processors::source::coalesce::Saved;
use crate::processors::source::keeper::Kept;
use crate::telemetry::metrics as names;

impl Feed {
    /// Flush, snapshot, put: always in this order.
    pub(super) async fn save_what_is_due(&mut self) -> Result<(), SourceError> {
        self.keeper.ticked();
        match self.save().await {
            Ok(()) => {
                self.goes_on();
                Ok(())
            }
            Err(error) => {
                let Some(asked) = error.wait() else { return Err(error) };
                self.run.waits(&error);
                self.keeper.delay(asked);
                Ok(())
            }
        }
    }

    async fn save(&mut self) -> Result<(), SourceError> {
        self.run.reducer.flush().await?;
        if !self.keeper.is_free() {
            return Ok(());
        }
        let state = self.run.reducer.snapshot()?;
        let saved = Saved {
            state,
            cursor: self.cursor.clone(),
            recent: self.recent.newest_ones(self.run.config.overlap_events),
            at_mark: self.recent.is_at_mark(),
            stamp: None,
        };
        self.keeper.hand_over(&saved)
    }

    pub(super) fn kept(&self, kept: Kept) {
        match kept {
            Kept::Done => {
                self.run.progress.note(|status| status.puts += 1);
                metrics::counter!(names::SOURCE_PUTS, "result" => "ok").increment(1);
            }
            Kept::Failed(error) => {
                metrics::counter!(names::SOURCE_PUTS, "result" => error.code()).increment(1);
                self.run.progress.note(|status| status.last_error = Some((error.code(), error.to_string())));
                warn!(
                    error.kind = error.code(),
                    error.blame = error.blame().as_str(),
                    %error,
                    "a checkpoint of a source was not taken; it is put again"
                );
            }
        }
    }

    /// What is handled is flushed and saved, however the run ends.
    pub(super) async fn last_save(&mut self) -> Result<(), SourceError> {
        if self.keeper.is_under_way() {
            let kept = self.keeper.turn().await?;
            self.kept(kept);
        }
        self.keeper.hurry();
        self.save().await?;
        while self.keeper.is_under_way() {
            match self.keeper.turn().await? {
                Kept::Failed(error) => return Err(error),
                done @ Kept::Done => self.kept(done),
            }
        }
        Ok(())
    }
}
