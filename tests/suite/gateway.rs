//! Claims about gateway.
