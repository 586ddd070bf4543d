//! Claims about streams.
