//! Claims about what can go wrong with the control feed, as others see it: each has a code, a problem that says what to do,
//! and a test that meets it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::control::{ControlFeedError, ControlSource as _, ControlVersion, Received};
use millrace::error::{BackendError, Blame, Classify as _};
use millrace::gateway::{PROBLEMS, Problem};
use millrace_tests::control_events::trust;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;

use super::feeds::event;
use crate::layering::sources;

/// What hosts say of entries that they set aside, beyond what an error says.
const OF_ENTRIES: [&str; 2] = [Received::UNREADABLE, Received::MISSING];
/// What they say of plugins that do not run as they should.
const OF_PLUGINS: [&str; 3] = ["breaker_tripped", "plugin_failed", "plugin_config_invalid"];
/// In logs only.
const OF_LOGS: [&str; 4] =
    ["control_drift", "control_feed_lost", "control_mark_beyond", "control_revision_past"];

fn one_of_each() -> Vec<ControlFeedError> {
    let text = || "a text of this test".to_owned();
    let digest = || format!("sha256:{}", "0f".repeat(32));
    vec![
        ControlFeedError::InvalidEvent { detail: text() },
        ControlFeedError::NotUnderstood { detail: text() },
        ControlFeedError::InvalidReport { detail: text() },
        ControlFeedError::ChangeRefused { plugin: "board".into(), detail: text() },
        ControlFeedError::Frozen { by: "ann".into(), reason: text() },
        ControlFeedError::Untrusted { detail: text() },
        ControlFeedError::OutOfTime { detail: text() },
        ControlFeedError::RevisionConflict { entity: "plugin:board".into(), expected: 1, found: 2 },
        ControlFeedError::EventIdTaken { event_id: event("board").id().to_string() },
        ControlFeedError::BehindRetention { asked: 1, oldest: 9 },
        ControlFeedError::ArtifactMissing { digest: digest() },
        ControlFeedError::ArtifactDamaged { digest: digest(), found: digest() },
        ControlFeedError::ArtifactMismatch { digest: digest(), found: digest() },
        ControlFeedError::ArtifactSize { expected: 1, found: 2 },
        ControlFeedError::ArtifactBroken { detail: text() },
        ControlFeedError::InvalidName { what: "pin", name: "a b".into() },
        ControlFeedError::InvalidSignature { detail: text() },
        ControlFeedError::NoteTaken { digest: digest(), name: "note".into() },
        ControlFeedError::InvalidDigest { digest: "sha256:".into() },
        ControlFeedError::Limit { limit: "control_event_bytes_max", asked: 2, max: 1 },
        ControlFeedError::UnknownBackend {
            what: "control source",
            name: "kafka".into(),
            known: "nop".into(),
        },
        ControlFeedError::LetterUnknown { event_id: event("board").id().to_string() },
        ControlFeedError::NoFeed,
        ControlFeedError::Settings { setting: "control.dir".into(), detail: text() },
        ControlFeedError::Backend(BackendError::Closed),
    ]
}

/// The texts in quotation marks that begin so and could be codes.
fn quoted<'a>(text: &'a str, begins: &str) -> BTreeSet<&'a str> {
    let is_code = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let begins = format!("\"{begins}");
    let names = text.match_indices(&begins).filter_map(|(at, _)| text[at + 1..].split('"').next());
    names.filter(is_code).collect()
}

#[test]
fn every_error_of_the_feed_has_a_problem_that_says_what_to_do() {
    let files = sources(&["host/src/control"]);
    let (_, text) = files.iter().find(|(path, _)| path.ends_with("control/error.rs")).unwrap();
    let (_, codes) = text.split_once("fn code(&self)").unwrap();
    let (codes, _) = codes.split_once("fn retry(&self)").unwrap();
    let mut missing = quoted(codes, "");
    assert!(missing.len() > 20, "{missing:?}");
    for error in one_of_each() {
        missing.remove(error.code());
        let problem = Problem::from(error.clone()).to_json();
        assert_eq!(problem["code"], error.code(), "{problem}");
        assert_eq!(problem["blame"], error.blame().as_str(), "{problem}");
        assert!(!problem["fix"].as_str().unwrap().is_empty(), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        match error.blame() {
            Blame::Host => assert!(!detail.is_empty(), "what it is about is for the operators: {problem}"),
            _ => assert_eq!(detail, error.to_string()),
        }
        if let ControlFeedError::Limit { limit, asked, max } = error {
            assert_eq!(
                (&problem["limit"], &problem["asked"], &problem["max"]),
                (&limit.into(), &asked.into(), &max.into())
            );
        }
    }
    assert!(missing.is_empty(), "this test has no example of these: {missing:?}");
}

/// Bounds, and reasons that hosts give, among them.
#[test]
fn every_code_of_the_feed_has_a_problem() {
    let known: BTreeSet<&str> = PROBLEMS.iter().map(|kind| kind.code).collect();
    let files = sources(&["host/src/control", "host/src/backends"]);
    let mut codes: BTreeSet<&str> = OF_ENTRIES.into_iter().chain(OF_PLUGINS).collect();
    for text in files.values() {
        let bounds = ["control_", "artifact_"].into_iter().flat_map(|begins| quoted(text, begins));
        let is_code =
            |code: &&str| !code.ends_with('_') && *code != "control_version" && !OF_LOGS.contains(code);
        codes.extend(bounds.filter(is_code));
    }
    assert!(codes.len() > 30, "{codes:?}");
    let missing: Vec<_> = codes.difference(&known).collect();
    assert!(missing.is_empty(), "nobody says what to do about these: {missing:?}");
}

/// A code that no test meets may be one that nothing answers any more.
#[test]
fn every_problem_of_the_feed_is_met_by_a_test() {
    let tests: String = sources(&["tests/suite", "tests/src"])
        .into_iter()
        .filter(|(path, _)| !path.ends_with("control/problems.rs"))
        .map(|(_, text)| text)
        .collect();
    let of_the_feed = |code: &&str| {
        let others = ["breaker_tripped", "digest_invalid", "plugin_config_invalid", "plugin_managed"];
        code.starts_with("control_")
            || code.starts_with("artifact_")
            || *code == "revision_conflict"
            || others.contains(code)
    };
    let codes: Vec<&str> = PROBLEMS.iter().map(|kind| kind.code).filter(of_the_feed).collect();
    assert!(codes.len() > 30, "{codes:?}");
    let unmet: Vec<_> = codes.into_iter().filter(|code| !tests.contains(&format!("\"{code}\""))).collect();
    assert!(unmet.is_empty(), "no test names these: {unmet:?}");
}

/// C8 on a host: garbage is told from what a newer host has written, everywhere that somebody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_what_is_broken_has_its_code_in_answer_log_and_metric() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, trust_file) = (dir.path().join("feed"), dir.path().join("trust.json"));
    fs::write(&trust_file, trust().to_json()).unwrap();
    let feed = FileFeed::open(FileFeedOptions::new(&folder)).unwrap();
    let later = event("one").to_json().replacen("\"schema_version\": 1", "\"schema_version\": 9", 1);
    for (name, text) in [("notes.json", "{"), ("later.json", later.as_str())] {
        let written = dir.path().join("written");
        fs::write(&written, text).unwrap();
        fs::rename(written, folder.join(name)).unwrap();
    }
    assert_eq!(feed.poll(ControlVersion(0), 9, Duration::ZERO).await.unwrap().events.len(), 2);

    let mut setup = Setup::new(workspace_binary("millrace"));
    setup.args.extend(["--feed-source".into(), "file".into()]);
    let setup = setup
        .set(&format!("control.dir={}", folder.display()))
        .set(&format!("control.trust_file={}", trust_file.display()));
    let host = HostProcess::start_as(setup, &dir.path().join("host")).await.unwrap();
    let begun = Instant::now();
    let events = loop {
        let answer = host.get("/v1/fleet/quarantine").await.unwrap();
        let events = answer["events"].as_array().unwrap().clone();
        if events.len() == 2 {
            break events;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "both are set aside: {answer}\n{}", host.said());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let codes: BTreeSet<_> = events.iter().map(|event| event["code"].as_str().unwrap()).collect();
    assert_eq!(codes, BTreeSet::from(["control_event_not_understood", "control_event_unreadable"]));
    // A record is counted and told of once it is kept, so an answer may come before both.
    let counted = |code: &str| format!("millrace_control_quarantined_total{{code=\"{code}\"}} 1\n");
    loop {
        let metrics = reqwest::get(format!("{}/metrics", host.url)).await.unwrap().text().await.unwrap();
        let unseen: Vec<_> = codes
            .iter()
            .filter(|code| !metrics.contains(&counted(code)) || !host.said().contains(**code))
            .collect();
        if unseen.is_empty() {
            break;
        }
        let late = begun.elapsed() > Duration::from_secs(60);
        assert!(!late, "counted and told of: {unseen:?}\n{metrics}\n{}", host.said());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
