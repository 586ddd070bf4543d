//! Claims about plugins.
