//! Claims about processors.
