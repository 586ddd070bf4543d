//! Signals to the servers of tests.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

/// Stops a process, and waits until each of its threads stands still: the signal only begins that, and one that runs on
/// another core may answer meanwhile.
pub fn pause(pid: Pid) {
    kill_process(pid, Signal::STOP).expect("it runs");
    let begin = Instant::now();
    while !stands_still(pid) {
        assert!(begin.elapsed() < STOP_WAIT_MAX, "it does not stop");
        sleep(Duration::from_millis(1));
    }
}

fn stands_still(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).expect("it runs");
    // One that ends meanwhile does nothing either.
    let stats = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // The name before it may have anything in it.
    stats.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}
