//! Looking at what a plugin keeps, with the command.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use millrace::cli::{Cli, CliError, Exit, Output};
use millrace::host::Host;
use serde_json::{Value, json};

use super::{config, deploy, publish, settle, start};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `millrace state show` with these arguments: what it wrote, or why it did not.
async fn show(host: &Host, arguments: &[&str]) -> Result<String, CliError> {
    let url = format!("http://{}", host.addr());
    let line = ["millrace", "state", "show", "--url", &url];
    let cli = Cli::try_parse_from(line.iter().chain(arguments)).unwrap();
    let written = Written::default();
    let output = written.clone();
    // The command makes its own runtime.
    tokio::task::spawn_blocking(move || millrace::cli::run(cli, &mut Output::new(output))).await.unwrap()?;
    let text = written.0.lock().unwrap().clone();
    Ok(String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_saved_state_is_shown_with_its_position_size_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    deploy(&host, "counter").await.unwrap();
    publish(&host, &[("a", "x", 0), ("b", "x", 0), ("a", "x", 0)]).await;
    settle(&host, "counter").await;
    let text = show(&host, &["counter"]).await.unwrap();
    let epoch = host.log().epoch();
    for line in [
        "plugin        counter",
        "tenant        default",
        "lane          0 of 1",
        &format!("position      {}.3", epoch.0),
        "content type  application/vnd.millrace.counter.v1+json",
        "bytes         13",
        r#"state         {"a":2,"b":1}"#,
        "keyed state   0 entries, 0 bytes",
    ] {
        assert!(text.lines().any(|found| found == line), "`{line}` is missing in:\n{text}");
    }
    let told: Value = serde_json::from_str(&show(&host, &["counter", "--json"]).await.unwrap()).unwrap();
    assert_eq!(told["saved"]["json"], json!({"a": 2, "b": 1}));
    assert_eq!(told["saved"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(told["keyed"], json!({"entries": 0, "bytes": 0, "page": []}));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyed_state_is_shown_page_by_page_with_what_expires() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    deploy(&host, "expiring").await.unwrap();
    publish(&host, &[("a", "x", 0), ("b", "expiring.keep", 0), ("c", "x", 5)]).await;
    settle(&host, "expiring").await;
    let text = show(&host, &["expiring", "--prefix", "count/"]).await.unwrap();
    assert!(text.contains("state         none is saved"), "{text}");
    assert!(text.contains("keyed state   3 entries, 24 bytes"), "{text}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip_while(|line| !line.starts_with("KEY"))
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let expected = [
        ["count/a", "1", "2001-09-09T01:46:50Z"],
        ["count/b", "1", "never"],
        ["count/c", "1", "2001-09-09T01:46:55Z"],
    ];
    assert_eq!(rows, expected);
    let first: Value =
        serde_json::from_str(&show(&host, &["expiring", "-n", "2", "--json"]).await.unwrap()).unwrap();
    let next = first["keyed"]["next"].as_str().unwrap();
    let rest = show(&host, &["expiring", "--after", next, "--json"]).await.unwrap();
    let rest: Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(rest["keyed"]["page"][0]["key"], "count/c");
    assert!(rest["keyed"]["next"].is_null());
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_a_clear_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    deploy(&host, "counter").await.unwrap();
    publish(&host, &[("a", "x", 0)]).await;
    settle(&host, "counter").await;
    for (arguments, says) in [
        (&["nobody"][..], "plugin_unknown"),
        (&["counter", "--lane", "1"], "plugin `counter` has 1 lanes, counted from 0; there is no lane 1"),
        (&["counter", "--tenant", "acme"], "plugin `counter` has no task for tenant `acme`, lane 0"),
        (&["counter", "--tenant", "not a tenant"], "`tenant` is no tenant's name"),
        (&["counter", "--after", "??"], "`after` is not what a page gave as `next`"),
        (&["counter", "--limit", "1001"], "guest_scan_max"),
    ] {
        let error = show(&host, arguments).await.unwrap_err();
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    host.shutdown().await;
}
