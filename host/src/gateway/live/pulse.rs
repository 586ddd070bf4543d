//! Whether the client of a WebSocket is there and takes what it is sent, and how it is left.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, timeout};

use super::shell::{Broken, End, Fault, Incoming, WsConn};

/// Pings without an answer after which nobody is there.
const UNANSWERED_MAX: u32 = 2;

/// Counts the pings that a client has not answered.
#[derive(Debug, Default)]
pub(in super::super) struct Pulse {
    unanswered: u32,
}

impl Pulse {
    /// Something has come: somebody is there.
    pub(in super::super) fn heard(&mut self) {
        self.unanswered = 0;
    }

    pub(in super::super) async fn ping(
        &mut self,
        conn: &mut dyn WsConn,
        within: Duration,
    ) -> Result<(), Broken> {
        if self.unanswered >= UNANSWERED_MAX {
            return Err(Broken::Silent);
        }
        self.unanswered += 1;
        in_time(within, conn.ping()).await
    }
}

/// A write to a client, which has to take it in time.
pub(in super::super) async fn in_time(
    within: Duration,
    write: impl Future<Output = io::Result<()>>,
) -> Result<(), Broken> {
    match timeout(within, write).await {
        Ok(written) => written.map_err(|error| Broken::io(&error)),
        Err(_) => Err(Broken::Stalled(within)),
    }
}

impl Incoming {
    /// Refuses what nothing can be read after. `limit` names the bound of a message.
    pub(in super::super) fn readable(self, limit: &str, max: usize) -> Result<Self, Fault> {
        let too_large = || Fault::new(limit, format!("a message has more than {limit} = {max} bytes"));
        match self {
            Self::TooLarge => Err(too_large()),
            Self::Text(text) if text.len() > max => Err(too_large()),
            Self::Malformed(what) => Err(Fault::new("websocket_malformed", what)),
            Self::NotUtf8 => Err(Fault::new("message_not_utf8", "a text message is not UTF-8")),
            other => Ok(other),
        }
    }
}

/// When a timer that may be there has run out.
pub(in super::super) async fn expired(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Closes the connection as its end asks for.
pub(in super::super) async fn leave(conn: &mut dyn WsConn, end: &Result<End, Broken>) {
    match end {
        Ok(End::Disconnected) | Err(Broken::Stalled(_) | Broken::Io(_) | Broken::Silent) => conn.cut(),
        Ok(End::Unsubscribed) => conn.close(1000, "").await,
        Ok(End::Ended) => conn.close(1001, "the subscription is over").await,
        Ok(End::Stopped(fault)) | Err(Broken::Fault(fault)) => {
            conn.close(fault.close_code(), fault.code).await;
        }
    }
}
