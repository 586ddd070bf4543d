//! Claims about the control feed.

mod feeds;
mod file_crashes;
mod file_feed;
mod local_feeds;
mod registry;
