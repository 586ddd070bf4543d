//! Rooms over HTTP.
