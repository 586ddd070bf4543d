//! Claims about checkpoints.
