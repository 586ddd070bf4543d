//! Claims about whose fault a failure was: every problem and every message about one says it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use millrace::error::Blame;
use millrace::gateway::{PROBLEMS, Problem};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn every_code_has_a_blame_in_its_problem() {
    let mut seen = BTreeSet::new();
    for kind in PROBLEMS {
        let problem = Problem::new(kind.code, "of a test").to_json();
        assert_eq!(problem["blame"], kind.blame.as_str(), "{problem}");
        assert_eq!(problem["code"], kind.code);
        assert!(seen.insert(kind.code), "`{}` is there twice", kind.code);
        // What the host broke is a 5xx or a conflict with itself; what somebody else did is not its failure.
        let fits = match kind.blame {
            Blame::Host => kind.status >= 500 || kind.code == "fenced",
            Blame::Guest => (400..500).contains(&kind.status),
            Blame::Caller => (400..500).contains(&kind.status) || kind.code == "connections_max",
        };
        assert!(fits, "`{}` blames the {} with status {}", kind.code, kind.blame.as_str(), kind.status);
    }
}

#[test]
fn every_warning_and_error_in_the_source_says_kind_and_blame() {
    let mut silent = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src"), &mut |path, text| {
        for level in ["warn!(", "error!("] {
            for (at, _) in text.match_indices(level) {
                // `at!(error)` in a macro, and the definition of errors by `thiserror`, are other words.
                let before = text[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                    continue;
                }
                let call = statement(&text[at..]);
                if !(call.contains("error.kind") && call.contains("error.blame")) {
                    let line = text[..at].lines().count();
                    silent.push(format!("{}:{line}", path.display()));
                }
            }
        }
    });
    assert!(silent.is_empty(), "these messages do not say `error.kind` and `error.blame`: {silent:#?}");
}

/// A macro's call, to its closing bracket.
fn statement(text: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 1 => return &text[..at],
            ')' => depth -= 1,
            _ => {}
        }
    }
    text
}

fn visit(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            look(&path, &std::fs::read_to_string(&path).expect("sources are UTF-8"));
        }
    }
}

#[tokio::test]
async fn messages_about_failing_guests_blame_the_guest() -> Result<()> {
    let dir = TempDir::new()?;
    let setup = Setup::new(workspace_binary("millrace")).set("telemetry.format=json");
    let mut host = HostProcess::start_as(setup, &dir.path().join("data")).await?;
    for name in ["trap_on_type", "rejecter"] {
        host.deploy(std::fs::read(guest(name))?.into()).await?;
    }
    let event = json!({"aggregate": "thing", "agg_id": "one", "version": 1, "type": "poison", "payload": {}});
    host.publish(event.to_string() + "\n").await?;
    host.settle().await?;
    for plugin in ["trap-on-type", "rejecter"] {
        let letters = host.get(&format!("/v1/plugins/{plugin}/dead-letters")).await?;
        assert_eq!(letters["dead_letters"][0]["blame"], "guest", "{letters}");
    }
    host.terminate()?;
    let said: Vec<Value> = host.said().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let failures: Vec<_> =
        said.iter().filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect();
    assert!(failures.len() >= 2, "{said:?}");
    for line in failures {
        assert_eq!(line["error.blame"], "guest", "{line}");
        line["error.kind"].as_str().with_context(|| format!("no kind: {line}"))?;
    }
    Ok(())
}
