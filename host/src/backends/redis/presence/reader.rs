//! The one reader of a host: it reads the feeds of all rooms that somebody follows here, on one connection.

use std::sync::Arc;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;
use tracing::warn;

use super::feeds::entries;
use super::{Shared, odd};
use crate::backends::redis::faults::backend;
use crate::backends::redis::scripts::number;
use crate::error::{BackendError, Classify as _};
use crate::limits::{REDIS_CHECK_EVERY, REDIS_READ_ENTRIES_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN};
use crate::presence::GapCause;
use crate::tasks::TaskError;

pub(super) struct Reader {
    shared: Arc<Shared>,
    /// A connection broke: what came since is not known.
    lost: bool,
    /// The code of what was written to the host's log last: a server that is away is away once.
    told: Option<&'static str>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, lost: false, told: None }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) -> Result<(), TaskError> {
        let mut wait = REDIS_RETRY_WAIT_MIN;
        loop {
            while self.shared.feeds.reached().is_empty() {
                self.shared.feeds.wake.notified().await;
            }
            let begun = Instant::now();
            if let Err(error) = self.session().await {
                self.lost = true;
                if self.told != Some(error.code()) {
                    self.told = Some(error.code());
                    warn!(error.kind = error.code(), error.blame = "host", %error, "rooms on Redis are not read");
                }
                if begun.elapsed() > REDIS_RETRY_WAIT_MAX {
                    wait = REDIS_RETRY_WAIT_MIN;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
            }
        }
    }

    /// Reads on one connection until nobody follows anything, or until it breaks.
    async fn session(&mut self) -> Result<(), BackendError> {
        let mut connection = self.shared.link.own().await?;
        if std::mem::take(&mut self.lost) {
            // Another server may have taken over, and given the same numbers to other changes.
            for feed in self.shared.feeds.reached() {
                self.lose(feed, GapCause::Reconnected).await.inspect_err(|_| self.lost = true)?;
            }
        }
        self.told = None;
        loop {
            let feeds = self.shared.feeds.reached();
            if feeds.is_empty() {
                return Ok(());
            }
            self.read(&mut connection, &feeds).await?;
        }
    }

    /// Waits for what comes next in some feeds. What the server said beforehand of how far they are shows what is
    /// missing: it was emptied, it lost the end of a feed, or this host was too slow.
    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        feeds: &[(u64, u64)],
    ) -> Result<(), BackendError> {
        let mut commands = redis::pipe();
        let before = commands.cmd("HMGET").arg(self.shared.link.key("presence:meta"));
        for (number, _) in feeds {
            before.arg(*number);
        }
        let read = commands.cmd("XREAD").arg("COUNT").arg(REDIS_READ_ENTRIES_MAX);
        // A feed that somebody begins to follow meanwhile is read from where it was then.
        read.arg("BLOCK").arg(REDIS_CHECK_EVERY.as_millis().to_string()).arg("STREAMS");
        for (number, _) in feeds {
            read.arg(self.shared.link.key(&format!("presence:feed:{number}")));
        }
        for (_, reached) in feeds {
            read.arg(format!("{reached}-0"));
        }
        let (before, answer): (Vec<Value>, Value) = commands
            .query_async(connection)
            .await
            .map_err(|error| backend("reading what happens in rooms", &error))?;
        let read = entries(answer).ok_or_else(odd)?;
        for ((feed, reached), before) in feeds.iter().zip(&before) {
            let there: Option<u64> = number(before);
            let found = read.iter().any(|(number, _)| number == feed);
            if there.is_none_or(|there| there < *reached || (there > *reached && !found)) {
                self.lose((*feed, *reached), GapCause::FeedLost).await?;
            }
        }
        for (feed, entries) in read {
            self.shared.feeds.deliver(feed, entries);
        }
        Ok(())
    }

    /// Goes on where a feed is now.
    async fn lose(&self, feed: (u64, u64), cause: GapCause) -> Result<(), BackendError> {
        let reached = self.shared.reached(&feed.0.to_string()).await?;
        self.shared.feeds.lose(feed, reached, cause);
        Ok(())
    }
}
