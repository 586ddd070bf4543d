//! Stands where the engine will.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::{LiveError, LiveQueries, Subscribe, Subscription};

/// Answers nobody.
#[derive(Clone, Copy, Debug)]
pub struct NotYet;

impl LiveQueries for NotYet {
    fn subscribe(&self, _subscribe: Subscribe) -> BoxFuture<'_, Result<Subscription, LiveError>> {
        ready(Err(LiveError::Closing)).boxed()
    }
}
