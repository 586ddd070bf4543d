//! Claims about buckets of tokens. Time is handed in.

use std::time::{Duration, Instant};

use millrace::channels::{ChannelError, ChannelLimits, Limiters, Party, ProcessId, ProcessName, RateLimiter};
use millrace::event::TenantId;
use millrace::limits::{CHANNEL_LIMITER_SENDERS_MAX, CHANNEL_LIMITERS_MAX};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn k13_ten_tokens_are_ten_at_once_and_the_eleventh_is_denied() {
    let limiter = RateLimiter::new(10.0, 5.0);
    let now = Instant::now();
    for n in 1..=10 {
        assert_eq!(limiter.take(1, now), Ok(()), "the {n}th");
    }
    assert_eq!(limiter.take(1, now), Err(ms(200)), "a token takes a fifth of a second");
    assert!(limiter.tokens() < 1.0);
    let eager = RateLimiter::new(10.0, 0.0);
    let allowed = (0..20).filter(|_| eager.allow()).count();
    assert_eq!(allowed, 10);
}

#[test]
fn k13_what_was_taken_comes_back_with_time_and_never_more_than_there_was() {
    let limiter = RateLimiter::new(5.0, 100.0);
    let now = Instant::now();
    assert_eq!(limiter.take(5, now), Ok(()));
    assert_eq!(limiter.take(1, now), Err(ms(10)));
    // Six would have come back; five fit.
    let later = now + ms(60);
    for _ in 0..5 {
        assert_eq!(limiter.take(1, later), Ok(()));
    }
    assert!(limiter.take(1, later).is_err());
}

#[test]
fn k13_a_denial_moves_the_clock_and_keeps_the_fraction() {
    let limiter = RateLimiter::new(1.0, 4.0);
    let now = Instant::now();
    assert_eq!(limiter.take(1, now), Ok(()));
    assert_eq!(limiter.take(1, now + ms(125)), Err(ms(125)), "half of one is there");
    assert!((limiter.tokens() - 0.5).abs() < 1e-9, "{}", limiter.tokens());
    assert_eq!(limiter.take(1, now + ms(250)), Ok(()), "the other half has come");
    assert_eq!(limiter.take(1, now + ms(250)), Err(ms(250)), "and no half twice");
    // A clock that goes back gives nothing.
    assert_eq!(limiter.take(1, now), Err(ms(250)));
    assert_eq!(limiter.take(1, now + ms(500)), Ok(()));
}

#[test]
fn k13_at_rate_zero_nothing_comes_back() {
    let limiter = RateLimiter::new(2.0, 0.0);
    let now = Instant::now();
    assert_eq!((limiter.take(2, now), limiter.take(1, now)), (Ok(()), Err(Duration::MAX)));
    assert_eq!(limiter.take(1, now + Duration::from_secs(3_600)), Err(Duration::MAX));
}

/// However large: it needs one token, and what it takes beyond is owed.
#[test]
fn a_large_append_needs_no_more_than_a_small_one_and_owes_the_rest() {
    let limiter = RateLimiter::new(4.0, 4.0);
    let now = Instant::now();
    assert_eq!(limiter.take(3, now), Ok(()));
    assert_eq!(limiter.take(8, now), Ok(()), "one was left");
    assert_eq!(limiter.take(1, now), Err(ms(2_000)), "seven are owed, and one is needed");
    assert_eq!(limiter.take(1_000, now + ms(1_750)), Err(ms(250)));
    assert_eq!(limiter.take(1, now + ms(2_000)), Ok(()));
}

/// Small ones take each token as it comes, and a large one comes as soon as one is there, too.
#[test]
fn small_appends_that_take_all_that_comes_back_do_not_starve_a_large_one() {
    let limiter = RateLimiter::new(500.0, 100.0);
    let begin = Instant::now();
    assert_eq!(limiter.take(500, begin), Ok(()));
    let mut passed = 0;
    for turn in 1..=100 {
        let now = begin + ms(10 * turn);
        // Every other time the large one is there first.
        if turn % 2 == 0 && passed == 0 && limiter.take(400, now).is_ok() {
            passed = turn;
        }
        let _ = limiter.take(1, now);
    }
    assert_eq!(passed, 2, "the first time that it was there first");
    assert!(limiter.tokens() < 0.0, "and it is paid for: {}", limiter.tokens());
}

fn process(name: &str) -> ProcessId {
    ProcessId { tenant: TenantId::new("acme").unwrap(), name: ProcessName::new(name).unwrap() }
}

fn limits(burst: f64, rate: f64, sender_burst: f64, sender_rate: f64) -> ChannelLimits {
    ChannelLimits { burst, rate, sender_burst, sender_rate, ..ChannelLimits::default() }
}

fn whose(refused: Result<(), ChannelError>) -> (String, Duration) {
    match refused {
        Err(ChannelError::RateLimited { who, after, .. }) => (who, after),
        other => panic!("{other:?}"),
    }
}

/// One that asks all the time would otherwise have each token before the other one comes again.
#[test]
fn who_was_denied_first_gets_the_next_token_of_its_process_however_often_others_ask() {
    let limits = limits(10.0, 10.0, 1_000.0, 1_000.0);
    let (limiters, job) = (Limiters::default(), process("job"));
    let (hog, ann) = (Party::new("hog").unwrap(), Party::new("ann").unwrap());
    let begin = Instant::now();
    let take = |who: &Party, entries, at| limiters.take_at(&job, who, entries, &limits, begin + ms(at));
    take(&hog, 10, 0).unwrap();
    let mut times = Vec::new();
    let (mut next, mut hogs) = (0, 0);
    for at in 0..4_000 {
        hogs += usize::from(at > 0 && take(&hog, 1, at).is_ok());
        if at < next {
            continue;
        }
        match take(&ann, 1, at) {
            Ok(()) => {
                times.push(at);
                next = at + 100;
            }
            // It does as it is told.
            Err(ChannelError::RateLimited { after, .. }) => {
                next = at + u64::try_from(after.as_millis()).unwrap() + 1
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(times.len() >= 10, "{times:?}");
    assert!(hogs >= 10, "the other one is not shut out either: {hogs}");
    assert!(times.len() + hogs <= 41, "and both together have no more than the process may");
}

/// A token that is kept and never fetched is anybody's after a while.
#[test]
fn who_does_not_come_back_keeps_nobody_waiting() {
    let limits = limits(1.0, 1.0, 10.0, 10.0);
    let (limiters, job) = (Limiters::default(), process("job"));
    let (eve, ann) = (Party::new("eve").unwrap(), Party::new("ann").unwrap());
    let begin = Instant::now();
    let take = |who: &Party, at| limiters.take_at(&job, who, 1, &limits, begin + ms(at));
    take(&eve, 0).unwrap();
    assert_eq!(whose(take(&ann, 0)), ("process `job`".to_owned(), ms(1_000)));
    assert_eq!(whose(take(&eve, 1_000)), ("process `job`".to_owned(), ms(1_000)), "it is kept for ann");
    take(&eve, 3_001).unwrap();
}

#[test]
fn a_flood_of_one_sender_takes_nothing_from_other_processes_and_a_question_takes_nothing_at_all() {
    let limits = limits(5.0, 0.0, 2.0, 0.0);
    let limiters = Limiters::default();
    let ann = Party::new("ann").unwrap();
    for n in 0..1_000 {
        let taken = limiters.take(&process("flood"), &ann, 1, &limits);
        assert_eq!(taken.is_ok(), n < 2);
    }
    assert_eq!(whose(limiters.ask(&process("flood"), &ann, &limits)).0, "sender `ann`");
    for n in 0..100 {
        let quiet = process(&format!("quiet-{n}"));
        limiters.ask(&quiet, &ann, &limits).unwrap();
        for _ in 0..2 {
            limiters.take(&quiet, &ann, 1, &limits).unwrap();
        }
        assert!(limiters.ask(&quiet, &ann, &limits).is_err());
    }
    assert_eq!(limiters.len(), 101);
    limiters.ask(&process("unheard-of"), &ann, &limits).unwrap();
    assert_eq!(limiters.len(), 101, "nothing is kept for who has only asked");
}

#[test]
fn limiters_of_processes_and_their_senders_are_bound_and_those_in_use_stay() {
    let limits = limits(1_000_000.0, 0.0, 1.0, 0.0);
    let limiters = Limiters::default();
    let (busy, ann) = (process("busy"), Party::new("ann").unwrap());
    limiters.take(&busy, &ann, 1, &limits).unwrap();
    for n in 0..2 * CHANNEL_LIMITERS_MAX {
        limiters.take(&process(&format!("job-{n}")), &ann, 1, &limits).unwrap();
        if n % 100 == 0 {
            assert!(limiters.take(&busy, &ann, 1, &limits).is_err(), "after {n} it is as empty as before");
        }
    }
    assert!(limiters.len() <= CHANNEL_LIMITERS_MAX, "{}", limiters.len());
    // Former executors of one process: the one that was there last is known.
    for n in 0..10 * CHANNEL_LIMITER_SENDERS_MAX {
        let eve = Party::new(&format!("eve-{n}")).unwrap();
        limiters.take(&busy, &eve, 1, &limits).unwrap();
        assert!(limiters.take(&busy, &eve, 1, &limits).is_err());
    }
}
