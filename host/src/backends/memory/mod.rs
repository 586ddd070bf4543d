//! The log in memory: for tests and for embedders that keep nothing.
