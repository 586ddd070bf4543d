//! `millrace channel`, against a server that says what it is told to, and against a host.

use clap::Parser as _;
use millrace::cli::{Cli, CliError, Exit};
use serde_json::{Value, json};

use crate::commands::{Written, config, ran, run, start, until};
use crate::scripted_host::{Asked, Scripted, answer, fine, problem};

impl Scripted {
    async fn ran(&self, arguments: &[&str]) -> (Result<(), CliError>, String) {
        let connect = ["--as", "ann", "--url", self.url.as_str()];
        ran(&[&["channel"][..], arguments, &connect].concat()).await
    }
}

fn frames(frames: &[(&str, Option<u64>, Value)]) -> String {
    let mut text =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_owned();
    for (event, id, data) in frames {
        if let Some(id) = id {
            text.push_str(&format!("id: {id}\n"));
        }
        text.push_str(&format!("event: {event}\ndata: {data}\n\n"));
    }
    text
}

/// `payload` is base64.
fn entry(position: u64, payload: &str) -> Value {
    json!({
        "position": position, "epoch": 1, "sequence": position, "timestamp": "2013-01-01T00:00:00Z",
        "senderid": "eve", "type": "data", "payload": payload,
    })
}

fn appended(positions: std::ops::RangeInclusive<u64>) -> Value {
    let one = |n: u64| json!({ "position": n, "sequence": n, "epoch": 0, "repeated": n == 1 });
    json!({ "appended": positions.map(one).collect::<Vec<_>>() })
}

/// One of its requests' first lines ends so, HTTP's version apart.
#[track_caller]
fn asks(asked: &Asked, method: &str, path: &str) {
    assert_eq!(asked.line, format!("{method} {path} HTTP/1.1"));
}

const ENTRIES: &str = "/v1/processes/job/channels/talk/entries";

// Follow.

#[tokio::test(flavor = "multi_thread")]
async fn follow_takes_a_lost_connection_up_where_it_broke() {
    let ready = ("ready", None, json!({ "after": 0, "oldest": 1, "newest": 2 }));
    let server = Scripted::new(vec![
        frames(&[ready.clone(), ("entry", Some(1), entry(1, "YQ==")), ("entry", Some(2), entry(2, "Yg=="))]),
        String::new(),
        problem(503, "starting"),
        frames(&[
            ready.clone(),
            ("entry", Some(2), entry(2, "Yg==")),
            ("entry", Some(3), entry(3, "Yw==")),
            ("lagged", None, json!({ "resume_at": 6, "missed": 2, "behind": 1 })),
            ("entry", Some(6), entry(6, "/w==")),
            ("what a later host says", None, json!({})),
            ("closing", None, json!({})),
        ]),
        frames(&[ready, ("closed", None, json!({ "reason": "ended", "last": 6 }))]),
    ]);
    let (ended, text) = server.ran(&["follow", "job", "talk"]).await;
    ended.unwrap();
    let expected = [
        "1  2013-01-01T00:00:00Z  eve#1  a",
        "2  2013-01-01T00:00:00Z  eve#2  b",
        "3  2013-01-01T00:00:00Z  eve#3  c",
        "6  2013-01-01T00:00:00Z  eve#6  base64:/w==",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let asked = server.asked();
    for (asked, after) in asked.iter().zip([0, 2, 2, 2, 6]) {
        asks(asked, "GET", &format!("{ENTRIES}?after={after}&as=ann"));
        assert!(asked.head.contains("accept: text/event-stream\r\n"), "{}", asked.head);
        assert!(asked.head.contains(&format!("last-event-id: {after}\r\n")), "{}", asked.head);
    }
    assert_eq!(asked.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ends_for_the_reason_that_it_is_told() {
    for (reason, exit) in [
        ("ended", None),
        ("success", None),
        ("failed", None),
        ("cancelled", None),
        ("removed", Some(Exit::Refused)),
        ("revoked", Some(Exit::Denied)),
    ] {
        let server = Scripted::new(vec![frames(&[("closed", None, json!({ "reason": reason, "last": 0 }))])]);
        let (ended, text) = server.ran(&["follow", "job", "talk", "--json"]).await;
        assert_eq!((ended.err().map(|error| error.exit()), text.as_str()), (exit, ""), "{reason}");
    }
    let refused = ("error", None, json!({ "status": 403, "code": "channel_access_revoked", "title": "no" }));
    let server = Scripted::new(vec![frames(&[refused])]);
    let error = server.ran(&["follow", "job", "talk"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Denied, "{error}");
    let server = Scripted::new(vec![problem(404, "channel_unknown")]);
    let error = server.ran(&["follow", "job", "talk"]).await.0.unwrap_err();
    assert_eq!((error.exit(), error.next_step()), (Exit::Refused, "do so"));
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_stops_after_so_many_entries_and_the_largest_fits() {
    // As large as an operator may let a payload be.
    let largest = "A".repeat(millrace::limits::CHANNEL_BATCH_BYTES_CEILING.div_ceil(3) * 4);
    let server = Scripted::new(vec![frames(&[
        ("entry", Some(41), entry(41, &largest)),
        ("entry", Some(42), entry(42, "Yg==")),
    ])]);
    let (ended, text) = server.ran(&["follow", "job", "talk", "--after", "40", "-n", "1", "--json"]).await;
    ended.unwrap();
    assert_eq!(text.lines().count(), 1);
    // Its text is too long to be shown.
    let sent = entry(41, &largest).to_string();
    assert!(text.trim_end() == sent, "it is not what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_begins_anew_where_its_position_means_nothing() {
    let gap = ("gap", Some(0), json!({ "code": "position_ahead", "position": 0 }));
    let server = Scripted::new(vec![
        frames(&[("entry", Some(7), entry(7, "YQ=="))]),
        frames(&[gap, ("entry", Some(1), entry(1, "Yg==")), ("entry", Some(2), entry(2, "Yw=="))]),
        frames(&[("closed", None, json!({ "reason": "ended", "last": 2 }))]),
    ]);
    let (ended, text) = server.ran(&["follow", "job", "talk"]).await;
    ended.unwrap();
    let expected = [
        "7  2013-01-01T00:00:00Z  eve#7  a",
        "1  2013-01-01T00:00:00Z  eve#1  b",
        "2  2013-01-01T00:00:00Z  eve#2  c",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    for (asked, after) in server.asked().iter().zip([0, 7, 2]) {
        asks(asked, "GET", &format!("{ENTRIES}?after={after}&as=ann"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_goes_on_with_what_the_host_calls_its_place_and_not_with_a_number() {
    let frames = |text: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{text}")
    };
    let entry = |id: &str, position, payload| {
        format!("id: {id}\nevent: entry\ndata: {}\n\n", entry(position, payload))
    };
    let ready = |id: &str| format!("id: {id}\nevent: ready\ndata: {{}}\n\n");
    let gap = "id: b.0\nevent: gap\ndata: {\"code\":\"cursor_foreign\",\"position\":0}\n\n";
    let lagged = "id: b.4\nevent: lagged\ndata: {\"resume_at\":5,\"missed\":3,\"behind\":0}\n\n";
    let server = Scripted::new(vec![
        frames(&ready("a.1")),
        frames(&[ready("a.1"), entry("a.2", 2, "YQ==")].concat()),
        frames(&[ready("b.0"), gap.to_owned(), entry("b.1", 1, "Yg==")].concat()),
        frames(&[ready("b.1"), lagged.to_owned()].concat()),
        frames("event: closed\ndata: {\"reason\":\"ended\",\"last\":4}\n\n"),
    ]);
    let (ended, text) = server.ran(&["follow", "job", "talk", "--after", "1"]).await;
    ended.unwrap();
    let expected = ["2  2013-01-01T00:00:00Z  eve#2  a", "1  2013-01-01T00:00:00Z  eve#1  b"];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let asked = server.asked();
    assert_eq!(asked.len(), 5);
    for (asked, after) in asked.iter().zip(["1", "a.1", "a.2", "b.1", "b.4"]) {
        asks(asked, "GET", &format!("{ENTRIES}?after={after}&as=ann"));
        assert!(asked.head.contains(&format!("last-event-id: {after}\r\n")), "{}", asked.head);
    }
    let refused = Cli::try_parse_from(["millrace", "channel", "follow", "job", "talk", "--after", "there"]);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("it is neither a position nor a cursor of a channel"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_tries_nothing_again_that_would_be_the_same() {
    let over = frames(&[("closed", None, json!({ "reason": "ended", "last": 1 }))]);
    let server = Scripted::new(vec![frames(&[("entry", None, entry(1, "YQ=="))]), over.clone()]);
    let error = server.ran(&["follow", "job", "talk"]).await.0.unwrap_err();
    assert_eq!((error.exit(), server.asked().len()), (Exit::Failure, 1), "{error}");
    // The host's own trouble passes.
    let trouble = ("error", None, json!({ "status": 503, "code": "disk_low", "title": "no" }));
    let server = Scripted::new(vec![frames(&[trouble]), over]);
    server.ran(&["follow", "job", "talk"]).await.0.unwrap();
    assert_eq!(server.asked().len(), 2);
}

// Send.

#[tokio::test(flavor = "multi_thread")]
async fn send_appends_each_text_and_says_where_it_lies() {
    let server = Scripted::new(vec![fine(appended(1..=3))]);
    let arguments = ["send", "job", "talk", "a", "", "c d", "--sequence", "1", "--reply-to", "9"];
    let (ended, text) = server.ran(&arguments).await;
    ended.unwrap();
    let expected = ["position 1  sequence 1  was there", "position 2  sequence 2", "position 3  sequence 3"];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let asked = &server.asked()[0];
    asks(asked, "POST", &format!("{ENTRIES}?as=ann"));
    let sent = |n: u64, text: &str| json!({ "sequence": n, "inreplyto": 9, "text": text });
    assert_eq!(asked.body, json!([sent(1, "a"), sent(2, ""), sent(3, "c d")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn send_writes_types_and_formats_as_the_host_reads_them() {
    for (arguments, expected) in [
        (&["--type", "end"][..], json!({ "type": "end" })),
        (&["--type", "end", "bye"], json!({ "type": "end", "text": "bye" })),
        (&["--type", "error", "the model is gone"], json!({ "type": "error", "error": "the model is gone" })),
        (&["--format", "base64", "/w=="], json!({ "payload": "/w==" })),
    ] {
        let server = Scripted::new(vec![fine(appended(2..=2))]);
        let (ended, text) = server.ran(&[&["send", "job", "talk", "--json"][..], arguments].concat()).await;
        ended.unwrap();
        let one: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(one["position"], 2);
        assert_eq!(server.asked()[0].body, json!([expected]), "{arguments:?}");
    }
    let server = Scripted::new(vec![fine(appended(2..=2)), fine(appended(3..=3))]);
    let large = "{\"n\":9007199254740993}";
    server.ran(&["send", "job", "talk", "--format", "json", large, "--end"]).await.0.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].body[0]["json"]["n"], 9_007_199_254_740_993_u64, "no digit is lost");
    assert_eq!(asked[1].body, json!([{ "type": "end" }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn send_waits_where_the_host_says_that_it_is_too_fast() {
    let body = json!({ "status": 429, "code": "channel_rate_limited", "title": "too fast" });
    let slow = answer("429 Too Many Requests", "retry-after: 0\r\n", &body);
    let server = Scripted::new(vec![slow.clone(), slow, fine(appended(2..=3))]);
    let (ended, text) = server.ran(&["send", "job", "talk", "a", "b"]).await;
    ended.unwrap();
    assert_eq!(text.lines().count(), 2);
    let bodies: Vec<Value> = server.asked().into_iter().map(|asked| asked.body).collect();
    assert!(bodies.len() == 3 && bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn send_repeats_what_may_be_lost_only_where_it_is_numbered() {
    let server = Scripted::new(vec![String::new(), fine(appended(2..=2))]);
    let error = server.ran(&["send", "job", "talk", "a"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable, "{error}");
    assert!(error.next_step().contains("--sequence"), "{error}");
    assert_eq!(server.asked().len(), 1, "it might be there twice");

    let server = Scripted::new(vec![String::new(), problem(503, "disk_low"), fine(appended(7..=8))]);
    let (ended, text) = server.ran(&["send", "job", "talk", "a", "b", "--sequence", "7"]).await;
    ended.unwrap();
    assert_eq!(text.lines().count(), 2);
    for asked in server.asked() {
        let sent = [json!({ "sequence": 7, "text": "a" }), json!({ "sequence": 8, "text": "b" })];
        assert_eq!(asked.body, json!(sent));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn send_goes_in_parts_and_says_how_far_it_came() {
    let texts: Vec<String> = (1..=150).map(|n| format!("t{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let server = Scripted::new(vec![fine(appended(1..=100)), problem(409, "channel_full")]);
    let (ended, text) = server.ran(&[&["send", "job", "talk"][..], &texts].concat()).await;
    let error = ended.unwrap_err();
    assert_eq!((error.exit(), text.lines().count()), (Exit::Refused, 100));
    assert!(error.sentence().contains("100 entries had been taken"), "{error}");
    let parts: Vec<usize> = server.asked().iter().map(|asked| asked.body.as_array().unwrap().len()).collect();
    assert_eq!(parts, [100, 50]);
}

#[tokio::test(flavor = "multi_thread")]
async fn send_makes_what_is_missing_and_nothing_else() {
    let (channel, process) = ("/v1/processes/job/channels/talk?as=ann", "/v1/processes/job?as=ann");
    let unknown = || problem(404, "channel_unknown");
    let sent = || fine(appended(2..=2));
    let arguments = ["send", "job", "talk", "a", "--create", "--executor", "eve"];

    let server = Scripted::new(vec![fine(json!({})), sent()]);
    server.ran(&arguments).await.0.unwrap();
    asks(&server.asked()[0], "GET", channel);
    assert_eq!(server.asked().len(), 2, "it is there");

    let server = Scripted::new(vec![unknown(), fine(json!({})), sent()]);
    server.ran(&arguments).await.0.unwrap();
    asks(&server.asked()[1], "PUT", channel);
    assert_eq!((server.asked()[1].body.clone(), server.asked().len()), (json!({}), 3));

    let server = Scripted::new(vec![unknown(), unknown(), fine(json!({})), sent()]);
    server.ran(&arguments).await.0.unwrap();
    asks(&server.asked()[2], "PUT", process);
    assert_eq!(server.asked()[2].body, json!({ "channels": ["talk"], "executor": "eve" }));
    assert_eq!(server.asked().len(), 4);

    let server = Scripted::new(vec![unknown(), problem(403, "channel_forbidden")]);
    let error = server.ran(&arguments).await.0.unwrap_err();
    assert_eq!((error.exit(), error.next_step()), (Exit::Denied, "do so"));
}

// Read and list.

#[tokio::test(flavor = "multi_thread")]
async fn read_goes_from_page_to_page_and_waits_for_the_first_only() {
    let page = |entries: Vec<Value>, next: u64, missed: u64| {
        fine(json!({ "entries": entries, "next": next, "oldest": 4, "newest": 6, "missed": missed }))
    };
    let mut last = entry(6, "Yw==");
    last["type"] = json!("error");
    last["error"] = json!("gone\u{1b}[2J");
    last["inreplyto"] = json!(2);
    let server = Scripted::new(vec![
        page(vec![entry(4, "YQ=="), entry(5, "Yg==")], 5, 3),
        page(vec![last], 6, 0),
        page(vec![], 6, 0),
    ]);
    let (ended, text) = server.ran(&["read", "job", "talk", "--wait-ms", "5000"]).await;
    ended.unwrap();
    let expected = [
        "4  2013-01-01T00:00:00Z  eve#4  a",
        "5  2013-01-01T00:00:00Z  eve#5  b",
        "6  2013-01-01T00:00:00Z  eve#6 re 2  error  gone\\u{1b}[2J  c",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    for (asked, (after, wait)) in server.asked().iter().zip([(0, 5_000), (5, 0), (6, 0)]) {
        asks(asked, "GET", &format!("{ENTRIES}?after={after}&limit=1000&wait_ms={wait}&as=ann"));
    }
    let place = |next: &str| {
        fine(json!({ "entries": [entry(4, "YQ==")], "next": next, "oldest": 1, "newest": 5, "missed": 0 }))
    };
    let server = Scripted::new(vec![place("a.4"), page(vec![], 4, 0)]);
    server.ran(&["read", "job", "talk", "--after", "a.3"]).await.0.unwrap();
    for (asked, after) in server.asked().iter().zip(["a.3", "a.4"]) {
        asks(asked, "GET", &format!("{ENTRIES}?after={after}&limit=1000&wait_ms=0&as=ann"));
    }
    let server = Scripted::new(vec![page(vec![entry(4, "YQ==")], 4, 0)]);
    let (ended, text) = server.ran(&["read", "job", "talk", "--after", "3", "-n", "1", "--json"]).await;
    ended.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), entry(4, "YQ=="));
    asks(&server.asked()[0], "GET", &format!("{ENTRIES}?after=3&limit=1&wait_ms=0&as=ann"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ls_shows_every_page_of_processes_by_their_names() {
    let process = |name: &str, executor: Value, closed: Value| {
        json!({
            "process": name, "submitter": "ann", "executor": executor, "epoch": 1, "observers": [],
            "created_at": "2013-01-01T00:00:00Z", "closed": closed, "role": "submitter",
        })
    };
    let closed = json!({ "at": "2013-01-01T00:00:00Z", "outcome": "cancelled", "reason": "" });
    let server = Scripted::new(vec![
        fine(json!({ "processes": [process("job", json!("eve"), Value::Null)], "next": "job" })),
        fine(json!({ "processes": [], "next": "june" })),
        fine(json!({ "processes": [process("late", json!("bob"), closed)], "next": null })),
    ]);
    let (ended, text) = server.ran(&["ls"]).await;
    ended.unwrap();
    let expected = [
        &["PROCESS", "SUBMITTER", "EXECUTOR", "STATE"][..],
        &["job", "ann", "eve", "open"],
        &["late", "ann", "bob", "cancelled"],
    ];
    assert_eq!(cells(&text), expected);
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    for (asked, query) in asked.iter().zip(["as=ann", "after=job&as=ann", "after=june&as=ann"]) {
        asks(asked, "GET", &format!("/v1/processes?{query}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ls_shows_the_channels_of_a_process_by_their_names() {
    let talk = json!({
        "id": "job_talk", "process": "job", "channel": "talk", "executor": "eve", "epoch": 1, "newest": 9, "oldest": 4,
        "hot": 4, "entries": 6, "bytes": 120, "archive_bytes": 0, "dropped": 3, "closed": null, "subscribers": 0,
    });
    let server = Scripted::new(vec![fine(json!({ "process": "job", "closed": null, "channels": [talk] }))]);
    let (ended, text) = server.ran(&["ls", "job"]).await;
    ended.unwrap();
    let expected = [
        ["CHANNEL", "EXECUTOR", "ENTRIES", "BYTES", "OLDEST", "NEWEST"],
        ["talk", "eve", "6", "120", "4", "9"],
    ];
    assert_eq!(cells(&text), expected);
    asks(&server.asked()[0], "GET", "/v1/processes/job?as=ann");
}

/// A table's words, line by line.
fn cells(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_and_silence_are_said_in_a_sentence_with_a_next_step() {
    let nobody = Scripted::new(Vec::new());
    for (arguments, exit) in [
        (&["send", "job", "talk", "--type", "end", "a", "b"][..], Exit::Usage),
        (&["send", "job", "talk", "--format", "json", "{"], Exit::Usage),
        (&["send", "job", "talk", "a"], Exit::Unreachable),
        (&["send", "job", "talk", "a", "--create"], Exit::Unreachable),
        (&["send", "job", "talk", "a", "--sequence", "1", "--give-up-after", "0"], Exit::Unreachable),
        (&["read", "job", "talk"], Exit::Unreachable),
        (&["follow", "job", "talk", "--give-up-after", "0"], Exit::Unreachable),
        (&["ls"], Exit::Unreachable),
        (&["ls", "job"], Exit::Unreachable),
    ] {
        let (ended, text) = nobody.ran(arguments).await;
        let error = ended.unwrap_err();
        assert_eq!((error.exit(), text.as_str()), (exit, ""), "{arguments:?}: {error}");
        assert!(!error.sentence().contains('\n') && !error.sentence().ends_with('.'), "{error}");
        assert!(!error.next_step().is_empty(), "{arguments:?}");
    }
}

// Against a host.

async fn channel(url: &str, who: &str, arguments: &[&str]) -> String {
    let (ended, text) = ran(&[&["channel"][..], arguments, &["--as", who, "--url", url]].concat()).await;
    ended.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_commands_make_send_read_and_follow_on_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let host = start(&config).await;
    config.serve.bind = host.addr();
    let url = format!("http://{}", host.addr());
    channel(&url, "ann", &["send", "job", "talk", "Q1", "--create", "--executor", "eve"]).await;
    channel(&url, "eve", &["send", "job", "talk", "A1", "--reply-to", "1", "--create"]).await;
    let read = channel(&url, "ann", &["read", "job", "talk", "--json"]).await;
    let read: Vec<Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of =
        |entry: &Value| (entry["senderid"].clone(), entry["sequence"].clone(), entry["inreplyto"].clone());
    assert_eq!(of(&read[0]), (json!("ann"), json!(1), Value::Null));
    assert_eq!(of(&read[1]), (json!("eve"), json!(1), json!(1)));
    let shown = channel(&url, "ann", &["read", "job", "talk", "--after", "1"]).await;
    assert!(shown.trim_end().ends_with("eve#1 re 1  A1"), "{shown}");
    assert_eq!(cells(&channel(&url, "ann", &["ls"]).await)[1], ["job", "ann", "eve", "open"]);
    assert_eq!(cells(&channel(&url, "ann", &["ls", "job"]).await)[1][..3], ["talk", "eve", "2"]);

    // It outlives the host, and a follower does not notice more than that.
    let written = Written::default();
    let arguments =
        ["channel", "follow", "job", "talk", "--after", "1", "--json", "--as", "ann", "--url", url.as_str()];
    let following = run(&arguments, &written);
    until(|| written.text().lines().count() == 1).await;
    host.shutdown().await;
    let host = start(&config).await;
    channel(&url, "ann", &["send", "job", "talk", "--type", "end"]).await;
    channel(&url, "eve", &["send", "job", "talk", "--type", "error", "the model is gone"]).await;
    following.await.unwrap().unwrap();
    let text = written.text();
    let positions = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].clone());
    assert_eq!(positions.collect::<Vec<_>>(), [json!(2), json!(3), json!(4)], "{text}");
    host.shutdown().await;
}
