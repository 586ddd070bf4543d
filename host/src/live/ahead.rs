//! Asks for memory that is needed soon, and does not wait for it.
//!
//! Windows fit no cache. A commit goes over its rows several times, and each time asks for what the next time
//! needs: so it waits for many lines at once and not for one after the other.

/// Bytes that come at once.
const LINE: usize = 64;
const LARGE_PAGE: usize = 2 << 20;
/// What stands before the bytes of an `Arc`.
const COUNTS_BYTES: usize = 16;

/// Asks for the line that this begins in.
pub(super) fn line<T: ?Sized>(of: &T) {
    fetch(std::ptr::from_ref(of).cast());
}

/// Asks for the line before a slice, where an `Arc` of it has its counts.
pub(super) fn counts(of: &[u8]) {
    fetch(of.as_ptr().wrapping_sub(COUNTS_BYTES));
}

/// Asks for all lines of a value or a slice.
pub(super) fn all<T: ?Sized>(of: &T) {
    let start: *const u8 = std::ptr::from_ref(of).cast();
    let mut offset = 0;
    while offset < size_of_val(of) {
        fetch(start.wrapping_add(offset));
        offset += LINE;
    }
    if size_of_val(of) > 0 {
        fetch(start.wrapping_add(size_of_val(of) - 1));
    }
}

/// Asks for large pages for a long list, so that finding a place in it takes no look at a table of pages.
pub(super) fn large_pages<T>(of: &mut Vec<T>) {
    let bytes = of.capacity() * size_of::<T>();
    if bytes < LARGE_PAGE * 2 {
        return;
    }
    let start = of.as_mut_ptr().cast::<u8>();
    let skip = start.align_offset(LARGE_PAGE);
    let length = bytes.saturating_sub(skip) / LARGE_PAGE * LARGE_PAGE;
    advise(start.wrapping_add(skip), length);
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "there is no safe name for this call")]
fn advise(start: *mut u8, length: usize) {
    // SAFETY: the span is part of one allocation; the advice changes no byte of it. Without it, it is slower.
    let _ = unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut u8, _: usize) {}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "there is no safe name for this instruction")]
fn fetch(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: it is a hint and touches no memory, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// Other processors have no stable name for it, and wait.
#[cfg(not(target_arch = "x86_64"))]
fn fetch(_: *const u8) {}
