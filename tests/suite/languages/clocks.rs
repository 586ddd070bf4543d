//! Components that were built with the grant `clock`: on a stream that has gone quiet, what is due is done by the clock on
//! the wall.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use millrace::cli::toolchain::copy_tree;
use millrace_tests::embedded::Embedded;
use millrace_tests::guests::lasting_project;
use serde_json::{Value, json};

use crate::commands::ran;

/// A sample's component, built with the grant `clock`. The project stays: a build takes half a minute of a core, and is
/// not repeated as long as nothing has changed of what it is built from.
async fn with_clock(name: &str) -> Bytes {
    let dir = lasting_project(&format!("{name}-clock")).expect("the folder is the tests'");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(name);
    copy_tree(&sample, &dir).expect("the sample is copied");
    let file = dir.join("plugin.toml");
    let content = fs::read_to_string(&file).expect("a file");
    let granted = content.replace("grants = []", "grants = [\"clock\"]");
    assert_ne!(granted, content);
    fs::write(&file, granted).expect("the folder is the tests'");
    let (ended, said) = ran(&["plugin", "build", dir.to_str().expect("UTF-8")]).await;
    ended.unwrap_or_else(|error| panic!("it is not built: {error}\n{said}"));
    fs::read(dir.join("target").join(format!("{name}.wasm"))).expect("it is built").into()
}

/// The first row of a table after one event, which nothing follows.
async fn row_after(name: &str, settings: &[(&str, &str)], event: &Value, table: &str) -> Value {
    let component = with_clock(name).await;
    let host = Embedded::start_with_code_of(vec![component.clone()], |config| {
        let plugin = config.plugins.entry(name.to_owned()).or_default();
        plugin.grants = vec!["clock".into()];
        for (setting, value) in settings {
            plugin.config.insert((*setting).to_owned(), (*value).to_owned());
        }
    })
    .await
    .expect("a host");
    host.client.deploy_bytes(component).await.expect("an answer").ok().expect("it is deployed");
    host.client.publish(format!("{event}\n")).await.expect("the event is taken");
    let path = format!("/v1/tables/{table}");
    let first = |answer: &Value| answer["rows"].get(0).cloned();
    let answer = host.client.wait_for(&path, |answer| first(&answer.json()).is_some()).await;
    let row = first(&answer.expect("the row comes without another event").json()).expect("it is there");
    host.stop().await;
    row
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_told_of_on_a_quiet_stream_with_the_wall_clock() {
    let event = json!({
        "aggregate": "order", "agg_id": "a", "version": 1, "type": "order.changed",
        "at": "2013-01-01T08:00:00Z", "payload": {},
    });
    let row = row_after("debounce", &[("clock", "wall"), ("quiet_ms", "1000")], &event, "batches").await;
    assert_eq!((&row["key"], &row["version"]), (&json!("order/a"), &json!(1)), "{row}");
    let values = &row["values"];
    assert_eq!((&values["events"], &values["reason"]), (&json!(1), &json!("quiet")), "{row}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_ends_on_a_quiet_stream_with_the_wall_clock() {
    let at = "2020-01-01T08:00:00Z";
    let event = json!({
        "aggregate": "entry", "agg_id": "e1", "version": 1, "type": "entry.created", "at": at,
        "payload": {
            "id": "e1", "conversationId": "conv-1", "channel": "history", "contentType": "history",
            "content": [{ "role": "USER", "text": "a question" }], "createdAt": at,
        },
    });
    let row = row_after("turn-tracer", &[("clock", "wall")], &event, "turns").await;
    let values = &row["values"];
    assert_eq!(
        (&values["reason"], &values["ended_at"]),
        (&json!("idle_timeout"), &json!("2020-01-01T08:05:00Z")),
        "{row}"
    );
}
