//! Claims about batches.
