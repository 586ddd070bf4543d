//! Claims about layering.
