//! Claims about what guests say: one JSON object a message, with its place.

use anyhow::{Context, Result};
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Starts a host that writes JSON, and sends a poisoned event to a guest that then floods its log.
async fn flooded(dir: &TempDir, filter: &str) -> Result<Vec<Value>> {
    let setup = Setup::new(workspace_binary("millrace"))
        .set("telemetry.format=json")
        .set(&format!("telemetry.filter={filter}"));
    let mut host = HostProcess::start_as(setup, &dir.path().join("data")).await?;
    host.deploy(std::fs::read(guest("log_flood"))?.into()).await?;
    let event = |version, event_type: &str| {
        json!({"aggregate": "thing", "agg_id": "one", "version": version, "type": event_type, "payload": {}})
            .to_string()
            + "\n"
    };
    host.publish(event(1, "added") + &event(2, "poison")).await?;
    host.settle().await?;
    host.terminate()?;
    host.said()
        .lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("this is not one JSON object: {line}"))
        })
        .collect()
}

#[tokio::test]
async fn a_guest_s_message_is_one_json_object_with_its_place() -> Result<()> {
    let dir = TempDir::new()?;
    let said = flooded(&dir, "info").await?;
    let guests: Vec<&Value> = said.iter().filter(|line| line["target"] == "millrace::guest").collect();
    assert!(!guests.is_empty(), "{said:?}");
    for line in guests {
        assert_eq!(line["level"], "WARN", "{line}");
        assert_eq!(line["tenant"], "default", "{line}");
        assert_eq!(line["plugin.name"], "log-flood", "{line}");
        assert_eq!(line["plugin.version"], "1.0.0", "{line}");
        assert_eq!(line["lane"], 0, "{line}");
        assert_eq!(line["stream.position"], 2, "{line}");
        assert!(line["text"].as_str().is_some_and(|text| text.starts_with("far too much")), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn guests_can_be_filtered_apart_from_the_host() -> Result<()> {
    let dir = TempDir::new()?;
    let said = flooded(&dir, "info,millrace::guest=error").await?;
    assert!(said.iter().all(|line| line["target"] != "millrace::guest"), "{said:?}");
    assert!(said.iter().any(|line| line["message"] == "host started"), "{said:?}");
    Ok(())
}
