//! What hosts say of themselves.

use std::time::Duration;

use millrace::control::report::{Baselines, HostReport, PluginReport, Seen};
use millrace::control::rollout::Sample;
use millrace::control::{ControlVersion, ObservedRow, Phase};
use millrace::plugins::{Candidate, CandidateState, PluginState, PluginStatus};
use millrace::processors::ShadowReport;
use millrace_tests::control_events::{ISSUED, SECOND, digest_of};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::code_of;
use super::{PLUGIN, labels};

fn observed(phase: Phase, version: &str, since: i64) -> ObservedRow {
    ObservedRow {
        plugin: PLUGIN.into(),
        revision: 7,
        phase,
        serving: Some(digest_of(version.as_bytes())),
        reason: None,
        since: ISSUED + since * SECOND,
        attempts: 1,
    }
}

/// The status of a plugin whose versions have counted so much: version, events, traps, dead letters.
fn status(serving: &str, deployed_at: i64, counted: &[(&str, u64, u64, u64)]) -> PluginStatus {
    let versions: Vec<Value> = counted
        .iter()
        .map(|(version, events, traps, dead)| {
            let shape = json!({ "count": 0, "mean": 0.0, "p50": 0.0, "p99": 0.0 });
            json!({
                "version": version, "events": events, "commits": 1, "retries": 0, "dead_letters": dead,
                "restarts": 0, "swaps": 1, "cpu_seconds": *events as f64 / 1e6,
                "traps": { "trap": traps, "timeout": 0, "limit": 0, "output": 0 },
                "batch_events": shape, "handle_seconds": shape, "commit_seconds": shape,
                "snapshot_seconds": shape, "flush_seconds": shape, "hand_over_seconds": shape,
            })
        })
        .collect();
    serde_json::from_value(json!({
        "name": PLUGIN, "state": "running", "message": "", "manifest": null, "lag_events": 12, "tasks": [],
        "deployment": {
            "plugin": PLUGIN, "version": serving, "digest": digest_of(serving.as_bytes()).trim_start_matches("sha256:"),
            "paused": false, "lanes": 1, "from": "oldest", "deployed_at": deployed_at, "deployed_by": "control",
        },
        "counters": serde_json::to_value(millrace::plugins::PluginCounters::default()).unwrap(),
        "measures": { "versions": versions },
        "last_refusal": null, "candidate": null,
    }))
    .unwrap()
}

fn counts(sample: Sample) -> (u64, u64, u64) {
    (sample.events, sample.traps, sample.errors)
}

#[test]
fn a_report_counts_from_the_activation_and_keeps_what_was_before() {
    let mut baselines = Baselines::default();
    let mut report = |observed: &ObservedRow, status: &PluginStatus| {
        PluginReport::of(observed, Some(status), &mut baselines, ISSUED + 100 * SECOND)
    };
    let first = report(&observed(Phase::Active, "1.0.0", 40), &status("1.0.0", 1, &[("1.0.0", 500, 1, 2)]));
    assert_eq!((counts(first.now), first.before, first.active_ms), ((500, 1, 2), None, 60_000));
    assert_eq!((first.now.nanoseconds, first.now.lag_events), (500_000, 12));

    // Another one proves itself meanwhile.
    let shadow = report(&observed(Phase::Shadow, "1.0.0", 90), &status("1.0.0", 1, &[("1.0.0", 600, 1, 2)]));
    assert_eq!((counts(shadow.now), shadow.active_ms), ((600, 1, 2), 0));

    // It took over. What the one before did up to the end is that one's, what this one has done is its own.
    let both = [("1.0.0", 650, 3, 2), ("2.0.0", 30, 0, 1)];
    let second = report(&observed(Phase::Active, "2.0.0", 95), &status("2.0.0", 2, &both));
    assert_eq!(counts(second.now), (30, 0, 1));
    assert_eq!(second.before.map(counts), Some((650, 3, 2)));
    assert_eq!((second.before.unwrap().lag_events, second.active_ms), (12, 5_000));

    // Another revision of the same deployment counts on.
    let mut next = observed(Phase::Active, "2.0.0", 98);
    next.revision = 8;
    let both = [("1.0.0", 650, 3, 2), ("2.0.0", 80, 0, 1)];
    let on = report(&next, &status("2.0.0", 2, &both));
    assert_eq!((on.revision, counts(on.now), on.before), (8, (80, 0, 1), second.before));

    // Back to the first: it begins at 0, whatever it had counted before.
    let both = [("1.0.0", 660, 3, 2), ("2.0.0", 90, 4, 1)];
    let back = report(&observed(Phase::Active, "1.0.0", 99), &status("1.0.0", 3, &both));
    assert_eq!(counts(back.now), (10, 0, 0));
    assert_eq!(back.before.map(counts), Some((90, 4, 1)));

    // The same version with another configuration.
    let both = [("1.0.0", 700, 3, 5), ("2.0.0", 90, 4, 1)];
    let configured = report(&observed(Phase::Active, "1.0.0", 99), &status("1.0.0", 4, &both));
    assert_eq!(counts(configured.now), (40, 0, 3));
    assert_eq!(configured.before.map(counts), Some((10, 0, 0)));
}

#[test]
fn a_report_counts_nothing_for_a_version_that_does_not_serve() {
    let mut baselines = Baselines::default();
    // The store says already what the plugin does not yet do.
    let ahead = PluginReport::of(
        &observed(Phase::Active, "2.0.0", 0),
        Some(&status("1.0.0", 1, &[("1.0.0", 500, 1, 2)])),
        &mut baselines,
        ISSUED,
    );
    assert_eq!((ahead.now, ahead.before), (Sample::default(), None));
    let mut none = observed(Phase::Quarantined, "1.0.0", 0);
    none.reason = Some(("world_unknown".into(), "ü".repeat(1_000)));
    let none = PluginReport::of(&none, None, &mut baselines, ISSUED);
    let reason = none.reason.unwrap();
    assert_eq!(
        (none.now, reason.code.as_str(), reason.message.len()),
        (Sample::default(), "world_unknown", 256)
    );
}

#[test]
fn a_report_says_how_the_serving_version_is() {
    let mut failed = status("1.0.0", 1, &[("1.0.0", 500, 1, 2)]);
    (failed.state, failed.message) = (PluginState::Failed, "it fell".into());
    let told = |version| {
        let row = observed(Phase::Active, version, 0);
        PluginReport::of(&row, Some(&failed), &mut Baselines::default(), ISSUED)
    };
    let said = told("1.0.0");
    assert_eq!((said.state, said.message.as_str()), (Some(PluginState::Failed), "it fell"));
    assert_eq!((told("2.0.0").state, told("2.0.0").message.as_str()), (None, ""));
    let later = json!({ "revision": 3, "phase": "active", "state": "dreaming" });
    assert_eq!(serde_json::from_value::<PluginReport>(later).unwrap().state, None);
}

#[test]
fn a_report_tells_the_shadow_run_of_what_serves_and_of_nothing_else() {
    let digest = |version: &str| digest_of(version.as_bytes()).trim_start_matches("sha256:").to_owned();
    let shadow = |serving: &str, candidate: &str, state: CandidateState| {
        let mut status = status(serving, 1, &[(serving, 500, 0, 0)]);
        status.candidate = Some(Candidate {
            name: format!("{PLUGIN} {candidate}"),
            digest: digest(candidate),
            by: "feed".into(),
            at: 1,
            state,
            refusal: None,
            report: Some(ShadowReport { events: 7, errors_new: 7, ..ShadowReport::default() }),
        });
        let row = observed(Phase::Active, serving, 0);
        PluginReport::of(&row, Some(&status), &mut Baselines::default(), ISSUED).shadow
    };
    let own = shadow("2.0.0", "2.0.0", CandidateState::TookOver).unwrap();
    assert_eq!((own.new.events, own.new.errors), (7, 7));
    assert_eq!(shadow("1.0.0", "2.0.0", CandidateState::Refused), None);
    assert_eq!(shadow("1.0.0", "2.0.0", CandidateState::InShadow), None);
    assert_eq!(shadow("1.0.0", "2.0.0", CandidateState::TookOver), None);
    // With another configuration it may do worse.
    assert_eq!(shadow("2.0.0", "2.0.0", CandidateState::Refused), None);
}

#[test]
fn a_later_hosts_report_is_read() {
    let text = json!({
        "schema_version": 2, "host": "a", "mood": { "good": true },
        "plugins": { PLUGIN: {
            "revision": 3, "phase": "dreaming", "now": { "events": 5, "fuel": 9 }, "extra": [],
        } },
    })
    .to_string();
    let report = HostReport::parse(&text).unwrap();
    let plugin = &report.plugins[PLUGIN];
    // A phase that is not known is none that counts.
    assert_eq!((plugin.phase, plugin.now.events, plugin.now.traps), (Phase::Absent, 5, 0));
    assert_eq!(report.cursor, ControlVersion(0));
    for wrong in ["", "[]", "{}", r#"{"schema_version":0,"host":"a"}"#, r#"{"schema_version":1}"#] {
        assert_eq!(code_of(HostReport::parse(wrong)), "control_report_invalid", "{wrong}");
    }
    let long = format!("{{\"schema_version\":1,\"host\":\"a\",\"x\":\"{}\"}}", "x".repeat(300_000));
    assert_eq!(code_of(HostReport::parse(&long)), "control_report_invalid");
}

#[test]
fn a_host_speaks_for_itself_only() {
    let text = |host: &str| HostReport::new(host, labels(&[]), "one").to_json().unwrap();
    let age = Duration::from_secs(1);
    let seen = Seen::read(vec![
        ("a".into(), age, text("a")),
        ("b".into(), age, text("a")),
        ("c".into(), age, "nonsense".into()),
    ]);
    let readable: Vec<_> = seen.iter().map(|seen| (seen.host.as_str(), seen.report.is_some())).collect();
    assert_eq!(readable, [("a", true), ("b", false), ("c", false)]);
}

#[test]
fn a_report_of_many_plugins_leaves_words_out_before_numbers() {
    let mut report = HostReport::new("a", labels(&[]), "one");
    let mut plugin =
        PluginReport::of(&observed(Phase::Active, "1.0.0", 0), None, &mut Baselines::default(), ISSUED);
    plugin.reason = Some(millrace::control::report::Reason { code: "code".into(), message: "m".repeat(256) });
    plugin.shadow = Some(millrace::control::report::ShadowSummary::default());
    for n in 0..500 {
        report.plugins.insert(format!("plugin-{n}"), plugin.clone());
    }
    let text = report.to_json().unwrap();
    let read = HostReport::parse(&text).unwrap();
    assert_eq!(read.plugins.len(), 500);
    let one = &read.plugins["plugin-7"];
    assert_eq!((one.shadow, one.revision, one.reason.as_ref().unwrap().code.as_str()), (None, 7, "code"));
    for n in 500..5_000 {
        report.plugins.insert(format!("plugin-{n}"), plugin.clone());
    }
    assert_eq!(code_of(report.to_json()), "control_report_bytes_max");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn a_report_is_read_as_it_was_written(
        events in any::<u64>(), traps in any::<u64>(), active_ms in any::<u64>(), cursor in any::<u64>(),
    ) {
        let mut report = HostReport::new("a", labels(&[("zone", "eu")]), "one");
        report.cursor = ControlVersion(cursor);
        let plugin = PluginReport::of(&observed(Phase::Active, "1.0.0", 0), None, &mut Baselines::default(), ISSUED);
        let now = Sample { events, traps, ..Sample::default() };
        report.plugins.insert(PLUGIN.into(), PluginReport { active_ms, now, before: Some(now), ..plugin });
        prop_assert_eq!(HostReport::parse(&report.to_json().unwrap()).unwrap(), report);
    }

    #[test]
    fn samples_of_anybody_add_up_without_overflow(
        a in (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()),
        b in (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()),
        min in any::<u64>(),
    ) {
        let of = |(events, traps, errors, nanoseconds, lag_events)| {
            Sample { events, traps, errors, nanoseconds, lag_events }
        };
        let (a, b) = (of(a), of(b));
        prop_assert_eq!(a.and(b), b.and(a));
        let rates = a.and(b).rates(min);
        prop_assert_eq!(rates.traps_per_million == 0, a.traps == 0 && b.traps == 0);
        let _ = a.since(b);
    }
}
