//! Claims about tables.
