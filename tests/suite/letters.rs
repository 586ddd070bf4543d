//! Claims about dead letters from outside: the command and the edge, against a host with a guest that falls.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use millrace::cli::{Cli, CliError, Exit, Output};
use millrace::host::Host;
use serde_json::{Value, json};

use crate::state::{config, deploy, publish, start};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("test").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A command against this host: how it ended, and what it wrote.
async fn ran(host: &Host, arguments: &[&str]) -> (Result<(), CliError>, String) {
    let url = format!("http://{}", host.addr());
    let line: Vec<&str> = std::iter::once("millrace").chain(arguments.iter().copied()).collect();
    let cli = Cli::try_parse_from(line.iter().copied().chain(["--url", &url])).expect("a good command line");
    let written = Written::default();
    let output = written.clone();
    // The command makes its own runtime.
    let ended = tokio::task::spawn_blocking(move || millrace::cli::run(cli, &mut Output::new(output))).await;
    let text = String::from_utf8(written.0.lock().expect("test").clone()).expect("text");
    (ended.expect("no panic"), text)
}

async fn said(host: &Host, arguments: &[&str]) -> Value {
    let (ended, text) = ran(host, arguments).await;
    ended.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {text}"))
}

/// Three keys; the second event of `a` makes the guest fall, and one follows it.
async fn fallen() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().expect("a folder");
    let host = start(&config(dir.path())).await;
    deploy(&host, "trap_on_type").await.expect("it deploys");
    publish(&host, &[("a", "x", 0), ("a", "poison", 0), ("b", "x", 0), ("a", "x", 0)]).await;
    for _ in 0..2_000 {
        let list = said(&host, &["dead-letter", "list", "trap-on-type", "--json"]).await;
        let held = list.pointer("/dead_letters/0/held") == Some(&json!(true));
        if held && list.pointer("/dead_letters/0/parked_behind") == Some(&json!(1)) {
            return (dir, host);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the event never became a letter that holds its key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_tells_what_happened_and_is_discarded_once() {
    let (_dir, host) = fallen().await;
    let (ended, text) = ran(&host, &["dead-letter", "list", "trap-on-type"]).await;
    ended.expect("it lists");
    assert!(text.contains("thing/a") || text.contains("/a"), "{text}");
    assert!(text.contains("holds its key, 1 behind") && text.contains("trap"), "{text}");
    let letter = said(&host, &["dead-letter", "show", "trap-on-type", "2", "--json"]).await;
    assert_eq!(letter["reason"], "trap");
    assert_eq!((letter["blame"].as_str(), letter["attempts"].as_u64()), (Some("guest"), Some(2)));
    assert!(letter["message"].as_str().expect("text").contains("poisoned by a"), "{letter}");
    assert!(!letter["backtrace"].as_str().expect("text").is_empty(), "{letter}");
    assert_eq!(letter["plugin_version"], "1.0.0");

    let (again, text) = ran(&host, &["dead-letter", "replay", "trap-on-type", "2"]).await;
    let again = again.expect_err("the same version falls again");
    assert!(text.contains("2 failed again (trap)"), "{text}");
    assert!(again.to_string().contains("stay dead letters"), "{again}");
    let after = said(&host, &["dead-letter", "show", "trap-on-type", "2", "--json"]).await;
    assert_eq!(after["attempts"], 3);

    let discarded = said(&host, &["dead-letter", "discard", "trap-on-type", "2", "--json"]).await;
    assert_eq!(discarded["resolved"], json!([{ "letter": 2, "outcome": "discarded", "released": 1 }]));
    for (arguments, code) in [
        (["dead-letter", "discard", "trap-on-type", "2"], "dead_letter_unknown"),
        (["dead-letter", "replay", "trap-on-type", "77"], "dead_letter_unknown"),
        (["dead-letter", "replay", "nobody", "2"], "plugin_unknown"),
    ] {
        let (refused, _) = ran(&host, &arguments).await;
        let refused = refused.expect_err("there is nothing to decide");
        assert!(refused.to_string().contains(code), "{refused}");
        assert_eq!(refused.exit(), Exit::Refused, "{refused}");
    }
    let (_, text) = ran(&host, &["dead-letter", "list", "trap-on-type"]).await;
    assert_eq!(text.trim(), "no dead letters");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_done_once_more_without_any_effect() {
    let (dir, host) = fallen().await;
    let dump = dir.path().join("core.wasm");
    let file = dump.to_str().expect("a path");
    let arguments = ["replay", "trap-on-type", "--event", "2", "--json", "--core-dump", file];
    let fell = said(&host, &arguments).await;
    assert_eq!((fell["outcome"].as_str(), fell["core_dump"].as_bool()), (Some("trap"), Some(true)), "{fell}");
    assert!(fell["message"].as_str().expect("text").contains("poisoned by a"), "{fell}");
    let core = std::fs::read(&dump).expect("the core dump is written");
    assert!(core.starts_with(b"\0asm\x01\0\0\0"), "it is a core module");

    let fine = said(&host, &["replay", "trap-on-type", "--event", "1", "--json"]).await;
    assert_eq!(
        (fine["outcome"].as_str(), fine["effects_total"].as_u64()),
        (Some("handled"), Some(1)),
        "{fine}"
    );
    assert_eq!(fine["effects"][0]["table"], "trap_seen");
    let by_id = fine["event_id"].as_str().expect("text").to_owned();
    let same = said(&host, &["replay", "trap-on-type", "--event", &by_id, "--json"]).await;
    assert_eq!(same["position"], 1);

    let (refused, _) = ran(&host, &["replay", "trap-on-type", "--event", "no-such-event"]).await;
    assert!(refused.expect_err("there is none").to_string().contains("event_unknown"));
    let letters = said(&host, &["dead-letter", "list", "trap-on-type", "--json"]).await;
    let letters = letters["dead_letters"].as_array().expect("a list");
    assert_eq!((letters.len(), &letters[0]["attempts"]), (1, &json!(2)), "nothing was committed");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_plugin_decides_nothing() {
    let (_dir, host) = fallen().await;
    let (paused, _) = ran(&host, &["plugin", "pause", "trap-on-type"]).await;
    paused.expect("it pauses");
    let (refused, _) = ran(&host, &["dead-letter", "discard", "trap-on-type", "2"]).await;
    assert!(refused.expect_err("nobody is there").to_string().contains("plugin_not_running"));
    let (resumed, _) = ran(&host, &["plugin", "resume", "trap-on-type"]).await;
    resumed.expect("it resumes");
    let discarded = said(&host, &["dead-letter", "discard", "trap-on-type", "--all", "--json"]).await;
    assert_eq!(discarded["resolved"][0]["outcome"], "discarded");
    host.shutdown().await;
}

/// Until so many parked events, held keys and dead letters are listed: a lane tells of them after its commit.
async fn waits(host: &Host, [parked_events, held_keys, dead_letters]: [u64; 3]) {
    let expected =
        json!({ "parked_events": parked_events, "held_keys": held_keys, "dead_letters": dead_letters });
    for _ in 0..2_000 {
        let list = said(host, &["plugin", "list", "--json"]).await;
        if list["plugins"][0]["waiting"] == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the list never says {expected}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_tells_what_waits_also_of_a_paused_plugin_and_after_a_restart() {
    let (dir, host) = fallen().await;
    waits(&host, [1, 1, 1]).await;
    let (_, text) = ran(&host, &["plugin", "list"]).await;
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").collect()).collect();
    let cells =
        |line: usize| words[line].iter().map(|w| w.trim()).filter(|w| !w.is_empty()).collect::<Vec<_>>();
    let column =
        |name| cells(0).iter().position(|head| *head == name).and_then(|at| cells(1).get(at).copied());
    assert_eq!(["PARKED", "HELD KEYS", "DEAD LETTERS"].map(column), [Some("1"); 3], "{text}");

    let (paused, _) = ran(&host, &["plugin", "pause", "trap-on-type"]).await;
    paused.expect("it pauses");
    waits(&host, [1, 1, 1]).await;
    host.shutdown().await;
    let host = start(&config(dir.path())).await;
    waits(&host, [1, 1, 1]).await;
    let (resumed, _) = ran(&host, &["plugin", "resume", "trap-on-type"]).await;
    resumed.expect("it resumes");
    waits(&host, [1, 1, 1]).await;
    said(&host, &["dead-letter", "discard", "trap-on-type", "--all", "--json"]).await;
    // What waited behind it is handled now.
    waits(&host, [0, 0, 0]).await;
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_also_told_of_a_plugin_that_cannot_start() {
    let (dir, host) = fallen().await;
    host.shutdown().await;
    let artifacts = config(dir.path()).serve.data.join("artifacts");
    std::fs::remove_dir_all(artifacts).expect("its component is gone");
    let cache = config(dir.path()).serve.data.join("precompiled");
    std::fs::remove_dir_all(cache).expect("in both forms");
    let host = start(&config(dir.path())).await;
    let show = said(&host, &["plugin", "show", "trap-on-type", "--json"]).await;
    assert_eq!(show["state"], "failed", "{show}");
    waits(&host, [1, 1, 1]).await;
    host.shutdown().await;
}
