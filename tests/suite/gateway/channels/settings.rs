//! What an operator sets of channels reaches them, and what lies in them outlives the host.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use millrace::config::{ChannelsStore, Config, ConfigError, Layers};
use millrace::host::Host;
use reqwest::{Client, Method};
use serde_json::{Value, json};

fn config(folder: &Path) -> Config {
    let mut config = Config::default();
    config.serve.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.serve.data = folder.join("data");
    config.store.disk_free_bytes_min = 0;
    config
}

async fn start(config: &Config) -> Host {
    Host::builder().config(config.clone()).start().await.expect("a host")
}

async fn ask(host: &Host, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("http://{}/v1/processes/job-1{path}", host.addr());
    let answer = Client::new().request(method, url).body(body.to_string()).send().await.expect("an answer");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

/// Makes a process with an entry.
async fn fill(host: &Host) {
    let made = json!({ "executor": "worker", "channels": ["chat"] });
    assert_eq!(ask(host, Method::PUT, "?as=client", &made).await.0, 201);
    let (status, answer) =
        ask(host, Method::POST, "/channels/chat/entries?as=client", &json!({ "text": "kept" })).await;
    assert_eq!((status, &answer["position"]), (201, &json!(1)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_outlive_the_host_unless_they_are_kept_in_memory() {
    for (store, kept) in [(ChannelsStore::Durable, true), (ChannelsStore::Memory, false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path());
        config.channels.store = store;
        let host = start(&config).await;
        fill(&host).await;
        host.shutdown().await;
        let host = start(&config).await;
        let read = json!(null);
        let (status, page) = ask(&host, Method::GET, "/channels/chat/entries?payload=text", &read).await;
        if kept {
            assert_eq!((status, &page["entries"][0]["text"]), (200, &json!("kept")), "{page}");
        } else {
            assert_eq!((status, &page["code"]), (404, &json!("channel_unknown")), "{page}");
        }
        host.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_that_were_set_count_in_either_store() {
    for store in [ChannelsStore::Durable, ChannelsStore::Memory] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path());
        config.channels.store = store;
        config.channels.channel_payload_bytes_max = 5;
        config.channels.channel_entries_max = 2;
        let host = start(&config).await;
        fill(&host).await;
        let entries = "/channels/chat/entries?as=client";
        let (status, problem) = ask(&host, Method::POST, entries, &json!({ "text": "123456" })).await;
        assert_eq!((status, &problem["max"]), (413, &json!(5)), "{problem}");
        assert_eq!(ask(&host, Method::POST, entries, &json!({ "text": "12345" })).await.0, 201);
        let (status, problem) = ask(&host, Method::POST, entries, &json!({ "text": "x" })).await;
        assert_eq!((status, &problem["code"]), (409, &json!("channel_full")), "{problem}");
        let seen = ask(&host, Method::GET, "/channels/chat", &json!(null)).await.1;
        assert_eq!(seen["entries_max"], 2);
        host.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_long_enough_is_removed_by_the_host_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(folder.path());
    config.channels.channel_keep_ms = 0;
    let host = start(&config).await;
    fill(&host).await;
    assert_eq!(ask(&host, Method::POST, "/close", &json!({ "outcome": "success" })).await.0, 200);
    let gone = async {
        while ask(&host, Method::GET, "", &json!(null)).await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it is removed");
    host.shutdown().await;
}

#[test]
fn settings_of_channels_that_contradict_each_other_are_refused_by_key() {
    let resolve = |key: &str, value: &str| -> Result<Config, ConfigError> {
        let mut layers = Layers::new();
        layers.assignment(&format!("channels.{key}={value}"))?;
        Ok(layers.resolve()?.config)
    };
    for (key, value) in [
        ("channel_payload_bytes_max", "16777217"),
        ("channel_payload_bytes_max", "0"),
        ("channel_batch_bytes_max", "67108865"),
        ("channel_batch_bytes_max", "10485759"),
        ("channel_bytes_max", "10485759"),
        ("channel_bytes_max", "1073741825"),
        ("channel_hold_ms", "60001"),
        ("channel_rate", "0"),
        ("channel_subscribers_max", "0"),
        ("store", "paper"),
        ("channel_burst", "-1"),
    ] {
        let error = resolve(key, value).expect_err("it cannot be");
        assert!(error.to_string().contains("channels.channel_") || key == "store", "{key}: {error}");
    }
    for (key, value) in
        [("channel_batch_bytes_max", "67108864"), ("channel_keep_ms", "0"), ("store", "memory")]
    {
        resolve(key, value).expect("it can be");
    }
}
