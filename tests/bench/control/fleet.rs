//! From a deploy to the moment at which all three hosts of a fleet say that they run it.
//!
//! They are processes with stores of their own. Both versions have been deployed before, so their code is in the hosts'
//! caches, and none is tried in the shadow: nothing of the time is a compiler's or a shadow's, and nothing is subtracted. It
//! begins when the deploy is sent, before the origin has it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use millrace_tests::bench::{Better, Figure, Suite, median};
use millrace_tests::guests::variant;
use millrace_tests::host::HostProcess;

use super::WAIT_MAX;
use super::deploy::{PLACES, Teller, start, start_origin};
use super::places::Place;
use crate::runtime;

const DEPLOYS: usize = 20;
const FLOOR_MS: f64 = 2_000.0;
/// How often each host is asked.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    for name in PLACES {
        let place = Place::open(name);
        let millis = runtime()?.block_on(Box::pin(deploys(&place)))?;
        let max = millis.iter().copied().reduce(f64::max);
        for (what, value) in [("median", median(&millis)), ("max", max)] {
            let name = format!(
                "deploy over {name}, from sending it until all of three hosts run it, precompiled and without a \
                 shadow, {DEPLOYS} deploys, {what}"
            );
            let figure = Figure { name: &name, unit: "ms", floor: Some(FLOOR_MS), better: Better::Lower };
            suite.record(figure, &[value.context("there are deploys")?])?;
        }
    }
    Ok(())
}

/// The milliseconds of each.
async fn deploys(place: &Place) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir()?;
    let origin = start_origin(place, &dir).await?;
    let mut teller = Teller::of(&origin);
    let mut hosts = [origin, start(place, &dir, "second").await?, start(place, &dir, "third").await?];
    let versions = [variant(1, "good"), variant(2, "good")];
    for version in &versions {
        teller.push(version).await?;
    }
    // Each is compiled once.
    for version in &versions {
        deploy(&mut teller, &hosts, version).await?;
    }
    let mut millis = Vec::new();
    // The last one was the second.
    for number in 0..DEPLOYS {
        millis.push(deploy(&mut teller, &hosts, &versions[number % versions.len()]).await?);
        // Not in step with those who look at the feed now and then.
        tokio::time::sleep(Duration::from_millis(100 + number as u64 * 37 % 50)).await;
    }
    for host in &mut hosts {
        ensure!(host.terminate()?, "the host ends well: {}", host.said());
    }
    Ok(millis)
}

/// Answers how many milliseconds went by until all hosts ran it.
async fn deploy(teller: &mut Teller, hosts: &[HostProcess], component: &[u8]) -> Result<f64> {
    let event = teller.next(component)?;
    let revision = event.unsigned().revision;
    let (sent, _) = teller.tell(event).await?;
    let runs = try_join_all(hosts.iter().map(|host| runs(host, revision))).await?;
    let last = runs.into_iter().max().context("there are hosts")?;
    Ok(last.saturating_duration_since(sent).as_secs_f64() * 1e3)
}

/// When a host was first heard to run this revision.
async fn runs(host: &HostProcess, revision: u64) -> Result<Instant> {
    let begin = Instant::now();
    loop {
        let own = host.get("/v1/fleet/self").await?;
        let plugin = &own["plugins"][0];
        if plugin["revision"] == revision && plugin["phase"] == "active" {
            return Ok(Instant::now());
        }
        ensure!(begin.elapsed() < WAIT_MAX, "revision {revision} does not run: {own:#}\n{}", host.said());
        tokio::time::sleep(LOOK).await;
    }
}
