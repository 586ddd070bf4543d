//! Gives the heap's free pages back to the kernel when many plugins have given their code back.
//!
//! What the engine knows of a component are some hundred small allocations. Freed, they leave whole pages free in
//! the midst of the heap, which the allocator keeps for what may come: with a thousand plugins, some hundred
//! mebibytes. Deliberately absent: trimming for a few, whose place the next load takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::limits::{HEAP_TRIM_CODES_MIN, HEAP_TRIM_WAIT};

/// Given back since the heap was trimmed last.
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

/// One more plugin's code was given back. Does not block: the heap is trimmed a moment later, on a thread of its
/// own, once for all that is given back until then.
pub(super) fn given_back() {
    if GIVEN_BACK.fetch_add(1, Ordering::Relaxed) + 1 != HEAP_TRIM_CODES_MIN {
        return;
    }
    let trimming = thread::Builder::new().name("heap-trim".into()).spawn(|| {
        thread::sleep(HEAP_TRIM_WAIT);
        GIVEN_BACK.store(0, Ordering::Relaxed);
        trim();
    });
    if let Err(error) = trimming {
        // The pages stay until the next time.
        GIVEN_BACK.store(0, Ordering::Relaxed);
        tracing::debug!(%error, "the heap is not trimmed");
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    #[expect(unsafe_code, reason = "there is no safe name for this call")]
    // SAFETY: it takes a number, touches only memory that the allocator holds as free, and locks like any `free`.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back what they think fit.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
