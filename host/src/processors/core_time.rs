//! The time that a thread was at work, without what it waited for a core: on a busy machine a call is slow
//! through no fault of its own.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

thread_local! {
    static SCHEDULED: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// How long this thread has stood ready to run and had no core, since it began. 0 where the system does not tell.
pub fn waited_for_core() -> Duration {
    SCHEDULED.with_borrow_mut(|file| {
        if file.is_none() {
            // It is the file of the thread that opens it.
            *file = File::open("/proc/thread-self/schedstat").ok();
        }
        let mut text = [0; 96];
        let read = file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        read.and_then(|length| second_number(&text[..length])).map(Duration::from_nanos).unwrap_or_default()
    })
}

fn second_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A stretch of a thread's work.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnTime {
    begun: Instant,
    waited: Duration,
}

impl OwnTime {
    pub(super) fn begin() -> Self {
        Self { waited: waited_for_core(), begun: Instant::now() }
    }

    /// To be asked on the thread that began.
    pub(super) fn elapsed(&self) -> Duration {
        let elapsed = self.begun.elapsed();
        elapsed.saturating_sub(waited_for_core().saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_core_is_no_own_time() {
        // More threads at work than there are cores, so that some wait.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let work = |_| {
            std::thread::spawn(|| {
                let (own, begun) = (OwnTime::begin(), Instant::now());
                let waited = waited_for_core();
                let mut number = 1_u64;
                while begun.elapsed() < Duration::from_millis(60) {
                    number = std::hint::black_box(number.wrapping_mul(3));
                }
                (own.elapsed(), begun.elapsed(), waited_for_core() - waited)
            })
        };
        let threads: Vec<_> = (0..cores * 3).map(work).collect();
        let times: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("it ends")).collect();
        for (own, all, waited) in &times {
            assert!(own <= all, "{times:?}");
            assert!(*own + *waited <= *all + *waited, "{times:?}");
        }
        assert!(times.iter().any(|(own, all, _)| own < all), "all of them waited for a core: {times:?}");
    }

    #[test]
    fn the_second_number_of_the_line_counts() {
        assert_eq!(second_number(b"123 456 7\n"), Some(456));
        assert_eq!(second_number(b"123"), None);
        assert_eq!(second_number(b""), None);
    }
}
