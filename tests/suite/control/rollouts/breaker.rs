//! A host's own breaker.

use std::time::Duration;

use millrace::control::breaker::{Breaker, BreakerRule, Tripped};
use millrace::control::rollout::Progress;
use millrace_tests::control_events::{ISSUED, SECOND, digest_of, running, spec};

use super::{PLUGIN, desired, plan, wave};

const RULE: BreakerRule =
    BreakerRule { traps: 3, within: Duration::from_secs(10), armed_for: Duration::from_secs(100) };

fn at(second: i64) -> i64 {
    ISSUED + second * SECOND
}

/// It is given nothing but the host's own counters, so it needs neither feed nor board.
#[test]
fn breaker_trips_on_so_many_traps_in_such_a_time() {
    let mut breaker = Breaker::armed(RULE, at(0), 7);
    assert_eq!(breaker.look(at(1), 7), None);
    assert_eq!(breaker.look(at(2), 9), None);
    assert_eq!(breaker.look(at(3), 10), Some(3));
    // The same number over a longer time is none.
    let mut breaker = Breaker::armed(RULE, at(0), 0);
    for second in 1..90 {
        assert_eq!(breaker.look(at(second), u64::try_from(second).unwrap() / 5), None, "{second}");
    }
    assert_eq!(breaker.look(at(90), 30), Some(14));
}

#[test]
fn breaker_looks_at_a_new_version_only() {
    let mut breaker = Breaker::armed(RULE, at(0), 0);
    assert_eq!(breaker.look(at(101), 1_000), None);
    let mut breaker = Breaker::armed(RULE, at(0), 0);
    assert_eq!(breaker.look(at(100), 1_000), Some(1_000));
    let mut off = Breaker::armed(BreakerRule { traps: 0, ..RULE }, at(0), 0);
    assert_eq!(off.look(at(1), 1_000), None);
}

#[test]
fn breaker_is_not_misled_by_a_counter_or_a_clock_that_goes_back() {
    let mut breaker = Breaker::armed(RULE, at(0), 50);
    assert_eq!(breaker.look(at(1), 2), None, "two since the counter began anew");
    assert_eq!(breaker.look(at(2), 3), Some(3));
    let mut breaker = Breaker::armed(RULE, at(0), 50);
    assert_eq!(breaker.look(at(5), 51), None);
    assert_eq!(breaker.look(at(3), 52), None, "the clock went back; one more trap is one");
    assert_eq!(breaker.look(at(4), 54), Some(3));
}

#[test]
fn breaker_remembers_no_more_than_it_needs() {
    let rule = BreakerRule { traps: 5_000, within: Duration::from_secs(100_000), armed_for: Duration::MAX };
    let mut breaker = Breaker::armed(rule, at(0), 0);
    for look in 1..5_000_i64 {
        assert_eq!(breaker.look(at(look), u64::try_from(look).unwrap()), None);
    }
    assert_eq!(breaker.look(at(5_000), 5_000), Some(5_000), "the first look is where it counts from");
    assert!(format!("{breaker:?}").len() < 20_000, "it keeps every look");
}

#[test]
fn what_tripped_is_blocked_until_somebody_deploys_it_again() {
    let digest = digest_of(b"2.0.0");
    let waves = || plan(&[wave(5, &[], 0), wave(100, &[], 0)]);
    let first = desired(waves(), 0, Progress::Running);
    let tripped = Tripped::new(&first, 7, &digest, 10, ISSUED);
    assert!(tripped.blocks(&first, 7, &digest));
    // The next wave is another revision of the same rollout.
    assert!(tripped.blocks(&desired(waves(), 1, Progress::Running), 8, &digest));
    assert!(!tripped.blocks(&first, 7, &digest_of(b"2.0.1")));
    let mut again = first.clone();
    again.rollout.as_mut().unwrap().id = "evt_01JH0000000000000000000002".into();
    assert!(!tripped.blocks(&again, 9, &digest));
    // Without a rollout, any later word is one.
    let plain = running(spec(PLUGIN, "2.0.0", b"2.0.0"));
    let tripped = Tripped::new(&plain, 7, &digest, 10, ISSUED);
    assert!(tripped.blocks(&plain, 7, &digest) && !tripped.blocks(&plain, 8, &digest));
    let text = serde_json::to_string(&tripped).unwrap();
    assert_eq!(serde_json::from_str::<Tripped>(&text).unwrap(), tripped);
}
