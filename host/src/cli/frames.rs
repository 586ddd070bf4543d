//! An answer that does not end: its frames, as they come.

use std::collections::VecDeque;

use reqwest::Response;

use super::client::Client;
use super::{CliError, Exit, SseFrame, SseParser};
use crate::limits::SSE_HEARTBEAT;

#[derive(Debug)]
pub(super) struct Frames {
    response: Response,
    parser: SseParser,
    ready: VecDeque<SseFrame>,
}

impl Frames {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: SseParser::default(), ready: VecDeque::new() }
    }

    /// The next one that is there. None: ask for [`Self::more`].
    pub(super) fn next(&mut self) -> Option<SseFrame> {
        self.ready.pop_front()
    }

    /// Waits until the host has sent something, if only a heartbeat.
    pub(super) async fn more(&mut self, client: &Client) -> Result<(), CliError> {
        let silent = 3 * SSE_HEARTBEAT;
        let part = match tokio::time::timeout(silent, self.response.chunk()).await {
            Ok(part) => part.map_err(|e| client.unreachable(&e))?,
            Err(_) => {
                let sentence = format!("the host was silent for {} s", silent.as_secs());
                return Err(CliError::new(Exit::Unreachable, sentence, "look whether the host runs"));
            }
        };
        let Some(part) = part else {
            let sentence = "the host ended the stream";
            return Err(CliError::new(Exit::Unreachable, sentence, "look whether the host runs"));
        };
        self.ready.extend(self.parser.feed(&part).map_err(|detail| client.unexpected(&detail))?);
        Ok(())
    }
}
