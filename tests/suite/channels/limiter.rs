//! Claims about buckets of tokens. Time is handed in.

use std::time::{Duration, Instant};

use millrace::channels::RateLimiter;

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

/// A batch that is larger than its bucket passes when the bucket is full, and is paid for afterwards.
#[test]
fn more_than_a_bucket_holds_waits_for_a_full_one_and_owes_the_rest() {
    let limiter = RateLimiter::new(4.0, 4.0);
    let now = Instant::now();
    assert_eq!(limiter.take(1, now), Ok(()));
    assert_eq!(limiter.take(8, now), Err(ms(250)), "until it is full");
    assert_eq!(limiter.take(8, now + ms(250)), Ok(()));
    assert_eq!(limiter.take(1, now + ms(250)), Err(ms(1_250)), "four are owed");
    assert_eq!(limiter.take(1, now + ms(1_500)), Ok(()));
}
