//! What is under way for a socket. All of it is polled by the socket's own task: a subscription costs a place in a list.

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::channels::{Appended, Begun, ChannelError, Notice, Subscription};

pub(super) type Work = FuturesUnordered<BoxFuture<'static, Done>>;

/// What is over, with the number of the subscription or append.
pub(super) enum Done {
    Opened(u32, Result<Box<Subscription>, ChannelError>),
    /// Something has changed in its channel.
    Changed(u32),
    /// Its log was read; here it is back.
    Read(u32, Box<Subscription>, Result<Option<Notice>, ChannelError>),
    /// The store has the entries.
    Begun(u64, Result<Begun, ChannelError>),
    Appended(u64, Result<Vec<Appended>, ChannelError>),
}
