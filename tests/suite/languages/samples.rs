//! The samples in JavaScript and Python, tried as their authors would over more events than they bring along: what comes
//! out must not depend on how events are cut or when an instance begins anew. And guests for which it does.

use std::collections::BTreeSet;
use std::path::Path;

use millrace::cli::Exit;
use millrace_tests::flights;
use millrace_tests::guests::guest;
use serde_json::{Value, json};

use crate::commands::ran;

/// How `plugin check` of a guest over these lines ends, and its findings.
async fn checked(name: &str, lines: &[String]) -> (Option<Exit>, Vec<Value>) {
    let folder = tempfile::tempdir().expect("a folder");
    let events = folder.path().join("events.ndjson");
    std::fs::write(&events, lines.join("\n")).expect("the folder is the test's");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (component, events) = (text(&guest(name)), text(&events));
    let (ended, said) = ran(&["plugin", "check", &component, "--events", &events, "--json"]).await;
    let report: Value =
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{name}: no report: {said} {ended:?}"));
    assert_eq!(report["events"].as_u64(), Some(lines.len() as u64), "all of them are tried: {report:#}");
    let findings = report["findings"].as_array().expect("a list").clone();
    (ended.err().map(|error| error.exit()), findings)
}

/// What it finds in a sample, by code; nothing of it is grave.
async fn found(name: &str, lines: &[String]) -> BTreeSet<String> {
    let (exit, findings) = checked(name, lines).await;
    assert_eq!(exit, None, "{name}: {findings:?}");
    findings.iter().map(|finding| finding["code"].as_str().expect("a code").to_owned()).collect()
}

/// What closes in a `flush` has no event that caused it, which a tick more or less shows; the plugins' own tests compare
/// all else of runs with and without ticks.
fn only_ticks(found: &BTreeSet<String>) {
    assert!(found.iter().all(|code| code == "ticks"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_debounce_over_flights_finds_nothing() {
    let lines: Vec<String> = flights::lines().expect("the flights").into_iter().take(400).collect();
    only_ticks(&found("debounce", &lines).await);
}

/// Entry by entry of 20 conversations at a time: every other one is answered, the others are abandoned.
fn entries(count: u64) -> Vec<String> {
    let line = |number: u64| {
        let conversation = format!("c{}", number / 60 * 20 + number % 20);
        let (role, channel) = match number % 60 / 20 {
            0 => ("USER", "history"),
            1 => ("USER", "context"),
            _ => ("AI", if number.is_multiple_of(2) { "history" } else { "context" }),
        };
        let (hour, minute, second) = (number / 360, number / 6 % 60, number % 6 * 10);
        let at = format!("2026-05-19T{hour:02}:{minute:02}:{second:02}Z");
        let payload = json!({
            "id": format!("e{number}"), "conversationId": conversation, "channel": channel, "contentType": "history",
            "content": [{ "role": role, "text": format!("words {number}") }], "createdAt": at,
        });
        let event = json!({
            "aggregate": "entry", "agg_id": format!("e{number}"), "version": 1, "type": "entry.created", "at": at,
            "payload": payload,
        });
        event.to_string()
    };
    (0..count).map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_the_tracer_over_hundreds_of_entries_finds_nothing() {
    only_ticks(&found("turn-tracer", &entries(360)).await);
}

/// Thirty events that the hostile guests count beside their state.
fn tallied() -> Vec<String> {
    let line = |number: u32| {
        let event = json!({
            "aggregate": "thing", "agg_id": format!("k{}", number % 4), "version": number, "type": "tally",
            "at": "2026-01-05T08:00:00Z", "payload": {},
        });
        event.to_string()
    };
    (1..=30).map(line).collect()
}

async fn what_a_restart_forgets_is_found(name: &str, table: &str) {
    let (exit, findings) = checked(name, &tallied()).await;
    assert_eq!(exit, Some(Exit::Refused), "{findings:?}");
    let [finding] = &findings[..] else { panic!("one finding: {findings:?}") };
    assert_eq!((&finding["code"], &finding["grave"]), (&json!("restarts"), &json!(true)), "{finding}");
    assert_eq!(finding["events"], 12, "the first one behind a restart: {finding}");
    let difference = &finding["difference"];
    assert_eq!(difference["place"], format!("row {table}/k0, column type"), "{finding}");
    let sides = ["one", "other"].map(|side| difference[side].as_str().unwrap_or_default());
    assert!(sides[0].contains("tally 12") && sides[1].contains("tally 1"), "{finding}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_what_a_js_guest_forgets_at_a_restart() {
    what_a_restart_forgets_is_found("hostile-js", "seen_js").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_what_a_python_guest_forgets_at_a_restart() {
    what_a_restart_forgets_is_found("hostile-python", "seen_python").await;
}
