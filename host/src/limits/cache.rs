//! Bounds of the cache.

use std::time::Duration;

/// Entries of the cache's first level, those that were only missed included. Beyond, the least recently used go.
pub const CACHE_ENTRIES_MAX: usize = 10_000;
/// About the bytes of the same.
pub const CACHE_BYTES_MAX: usize = 32 << 20;
/// How long a value is kept, and how long at most whatever is set: what an invalidation did not reach ends by then.
pub const CACHE_TTL: Duration = Duration::from_secs(300);
pub const CACHE_TTL_CEILING: Duration = Duration::from_secs(3_600);
/// A larger value is answered and not kept.
pub const CACHE_VALUE_BYTES_MAX: usize = 1 << 20;
/// What a load may take so that its value is kept.
pub const CACHE_LOAD_MAX: Duration = Duration::from_secs(30);
/// How long the second level is waited for. Beyond, the store is read.
pub const CACHE_WAIT_MAX: Duration = Duration::from_millis(100);
/// How long the second level is left alone after it failed.
pub const CACHE_PAUSE: Duration = Duration::from_secs(1);
/// Invalidations that wait for a second level that is away. With more it is left alone until what it holds has expired.
pub const CACHE_OWED_MAX: usize = 10_000;
/// Marks that a level in memory knows. Beyond, it forgets those that it was not just asked for, and what they held.
pub const CACHE_MARKS_MAX: usize = 100_000;
/// Rows and tables of which it is known when they changed last. Beyond, copies of rows from before are read again.
pub const LAST_CHANGED_ROWS_MAX: usize = 200_000;
pub const LAST_CHANGED_TABLES_MAX: usize = 4_096;
