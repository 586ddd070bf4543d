//! What it costs to be bound in one's rate, and what somebody who is costs others.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use millrace::channels::{ChannelLimits, Limiters, Party, ProcessId, RateLimiter};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite, percentile};

use super::ends::{Append, Form, SocketEnd, has, payload};
use super::{Server, new_process, ratios, record, side_by_side};

/// Checks of a round.
const CHECKS: u64 = 2_000_000;
/// Processes that the router knows meanwhile, and senders of each.
const PROCESSES: usize = 10_000;
const SENDERS: usize = 2;
/// Senders at their rate, each in a process of its own, and for how long.
const OTHERS: usize = 20;
const SPAN: Duration = Duration::from_secs(5);
/// What a host allows a sender where nobody sets anything; and the times that one of them wants.
const EVERY: Duration = Duration::from_millis(10);
const TIMES: u64 = 100;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    checks(suite)?;
    hog(suite)
}

fn checks(suite: &mut Suite) -> Result<()> {
    let floor = Some(500.0);
    let figure = |name, floor| Figure { name, unit: "ns", floor, better: Better::Lower };
    suite.measure(figure("RateLimiter::allow", floor), |_| {
        let limiter = RateLimiter::new(1e12, 1e12);
        nanos(CHECKS, |_| ensured(limiter.allow()))
    })?;
    suite.measure(figure("the same when it denies", floor), |_| {
        let limiter = RateLimiter::new(1.0, 0.0);
        limiter.allow();
        nanos(CHECKS, |_| ensured(!limiter.allow()))
    })?;
    suite.measure(figure("the same, from two threads at once", None), |_| {
        let limiter = RateLimiter::new(1e12, 1e12);
        let each = side_by_side(2, |_| nanos(CHECKS, |_| ensured(limiter.allow())))?;
        Ok(each.iter().sum::<f64>() / each.len() as f64)
    })?;
    let limits = ChannelLimits {
        burst: 1e12,
        rate: 1e12,
        sender_burst: 1e12,
        sender_rate: 1e12,
        ..ChannelLimits::default()
    };
    let named = |number| anyhow::Ok(new_process(number)?.0.id);
    let processes: Vec<ProcessId> = (0..PROCESSES).map(named).collect::<Result<_>>()?;
    let senders = (0..SENDERS).map(|number| Party::new(&format!("sender-{number}")));
    let senders: Vec<Party> = senders.collect::<Result<_, _>>()?;
    let name = "the router's check of a process and its sender, 10,000 processes with two each";
    suite.measure(figure(name, floor), |_| {
        let limiters = Limiters::default();
        let check = |number: u64| {
            // Neighbours in time are none in memory.
            let at = usize::try_from(number * 7_919 % (PROCESSES * SENDERS) as u64)?;
            let (process, sender) = (&processes[at / SENDERS], &senders[at % SENDERS]);
            Ok(limiters.take(process, sender, 1, &limits)?)
        };
        // All are known before it counts.
        nanos((PROCESSES * SENDERS) as u64, check)?;
        nanos(CHECKS, check)
    })?;
    Ok(())
}

fn ensured(held: bool) -> Result<()> {
    ensure!(held, "the check did not answer as it should");
    Ok(())
}

/// Nanoseconds of a call.
fn nanos(calls: u64, mut call: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    for number in 0..calls {
        black_box(call(black_box(number)))?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / calls as f64)
}

/// What the senders of one run have come to.
#[derive(Debug, Default)]
struct Run {
    /// Entries a second that those at their rate got through, together.
    rate: f64,
    /// Milliseconds that 99 of 100 of them were acknowledged in.
    p99: f64,
    /// Entries a second that the other one asked for, and got through.
    asked: f64,
    taken: f64,
}

fn hog(suite: &mut Suite) -> Result<()> {
    let mut runs = [const { Vec::new() }; 6];
    for round in 0..ROUNDS {
        // Each on a host of its own, with the bounds that a host has.
        let alone = senders(&Server::start(&[])?, 0)?;
        let beside = senders(&Server::start(&[])?, 1)?;
        eprintln!("  one sender at {TIMES} times its rate, round {}: {alone:.1?}, {beside:.1?}", round + 1);
        ensure!(beside.taken < beside.asked / 2.0, "it is bound: {beside:?}");
        let values = [alone.rate, beside.rate, alone.p99, beside.p99, beside.asked, beside.taken];
        for (values, value) in runs.iter_mut().zip(values) {
            values.push(value);
        }
    }
    let [alone, beside, alone_p99, beside_p99, asked, taken] = runs;
    let (higher, lower) = (Better::Higher, Better::Lower);
    let kept = ratios(&beside, &alone);
    let rows = vec![
        ("20 senders at their rate of 100/s, durable", "entries/s", None, higher, alone),
        ("beside one that sends 100 times its rate in another process", "entries/s", None, higher, beside),
        ("of what they do without it", "x", Some(0.9), higher, kept),
        ("p99 of their acknowledgements without it", "ms", None, lower, alone_p99),
        ("p99 of their acknowledgements beside it", "ms", None, lower, beside_p99),
        ("what it asks for meanwhile", "entries/s", None, higher, asked),
        ("of which is taken", "entries/s", None, lower, taken),
    ];
    record(suite, rows)
}

fn senders(server: &Server, hogs: usize) -> Result<Run> {
    let mut processes = Vec::new();
    for _ in 0..OTHERS + hogs {
        processes.push(server.process()?);
    }
    let begin = Instant::now();
    let ended = side_by_side(OTHERS + hogs, |number| {
        let mut end = SocketEnd::append(server, &processes[number], Form::Binary)?;
        if number < OTHERS {
            at_its_rate(&mut end, begin).map(Ok)
        } else {
            too_fast(&mut end, begin).map(Err)
        }
    })?;
    let seconds = SPAN.as_secs_f64();
    let (mut run, mut all) = (Run::default(), Vec::new());
    for ended in ended {
        match ended {
            Ok(millis) => all.extend(millis),
            Err((asked, taken)) => (run.asked, run.taken) = (asked as f64 / seconds, taken as f64 / seconds),
        }
    }
    run.rate = all.len() as f64 / seconds;
    run.p99 = percentile(&all, 99).context("something was appended")?;
    Ok(run)
}

/// Milliseconds of each append that was acknowledged in time.
fn at_its_rate(end: &mut SocketEnd, begin: Instant) -> Result<Vec<f64>> {
    let (payload, mut out, mut millis) = (payload(), Vec::new(), Vec::new());
    for number in 0.. {
        let due = EVERY * u32::try_from(number)?;
        if due >= SPAN {
            break;
        }
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        let asked = Instant::now();
        out.clear();
        end.write(number, &payload, &mut out);
        end.send(&out)?;
        ensure!(end.acknowledged()? == 1, "one entry is under way");
        if begin.elapsed() > SPAN {
            break;
        }
        millis.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    Ok(millis)
}

/// Asks for so many times as much as it may, whatever it is told. Answers how often it asked, and how often it was given.
fn too_fast(end: &mut SocketEnd, begin: Instant) -> Result<(u64, u64)> {
    let (payload, mut out) = (payload(), Vec::new());
    let (mut asked, mut taken) = (0, 0);
    while begin.elapsed() < SPAN {
        let due = EVERY * u32::try_from(asked / TIMES)?;
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        out.clear();
        for _ in 0..TIMES {
            // The host counts: what is denied has no number.
            end.write_unnumbered(&payload, &mut out);
        }
        end.send(&out)?;
        let mut open = TIMES;
        while open > 0 {
            end.answers(|message| {
                if has(message, b"\"op\":\"appended\"") {
                    taken += 1;
                } else if !has(message, b"\"code\":\"channel_rate_limited\"") {
                    bail!("the host says {message:?}");
                }
                open -= 1;
                Ok(())
            })?;
        }
        asked += TIMES;
    }
    Ok((asked, taken))
}
