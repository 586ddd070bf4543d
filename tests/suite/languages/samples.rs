//! The samples in JavaScript and Python, tried as their authors would over more events than they bring along: what comes
//! out must not depend on how events are cut or when an instance begins anew.

use std::collections::BTreeSet;
use std::path::Path;

use millrace_tests::flights;
use millrace_tests::guests::guest;
use serde_json::{Value, json};

use crate::commands::ran;

/// What `plugin check` finds in a sample over these lines, by code.
async fn found(name: &str, lines: &[String]) -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let events = folder.path().join("events.ndjson");
    std::fs::write(&events, lines.join("\n")).expect("the folder is the test's");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (component, events) = (text(&guest(name)), text(&events));
    let (ended, said) = ran(&["plugin", "check", &component, "--events", &events, "--json"]).await;
    ended.unwrap_or_else(|error| panic!("{name}: {error}\n{said}"));
    let report: Value = serde_json::from_str(&said).expect("a report");
    assert_eq!(report["events"].as_u64(), Some(lines.len() as u64), "all of them are tried");
    let findings = report["findings"].as_array().expect("a list");
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
