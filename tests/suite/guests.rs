//! Claims about guests.
