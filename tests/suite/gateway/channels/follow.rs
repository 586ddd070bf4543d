//! Following a channel as server-sent events.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use super::{ENTRIES, JOB, append, good, job, rig, say, send};
use crate::gateway::rig::{Client, Rig};

/// The end of an answer in chunks.
const END: &str = "\r\n0\r\n\r\n";

/// Somebody who reads a stream, and what has come so far.
pub(super) struct Following {
    client: Client,
    text: String,
}

#[derive(Debug, PartialEq)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: Value,
}

impl Event {
    /// What its id has behind the incarnation, which is there.
    fn place(&self) -> &str {
        let (incarnation, place) = self.id.split_once('.').expect("an incarnation");
        assert!(
            !incarnation.is_empty() && incarnation.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{}",
            self.id
        );
        place
    }
}

impl Following {
    /// Reads until something has come, and the rest of its event.
    pub(super) async fn until(&mut self, wanted: &str) {
        self.client.read_until(&mut self.text, wanted).await;
        let from = self.text.find(wanted).expect("it has come");
        let mut rest = self.text.split_off(from);
        self.client.read_until(&mut rest, "\n\n").await;
        self.text.push_str(&rest);
    }

    /// Reads until the answer is over.
    pub(super) async fn end(&mut self) {
        self.client.read_until(&mut self.text, END).await;
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn events(&self) -> Vec<Event> {
        let event = |block: &str| {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let data = serde_json::from_str(&line("data: ")?).ok()?;
            Some(Event { id: line("id: ").unwrap_or_default(), name: line("event: ")?, data })
        };
        self.text.split("\n\n").filter_map(event).collect()
    }

    /// The positions of the entries that came, which their ids end with.
    pub(super) fn positions(&self) -> Vec<u64> {
        let entries = self.events().into_iter().filter(|event| event.name == "entry");
        entries
            .map(|event| {
                assert_eq!(event.place(), event.data["position"].to_string());
                event.data["position"].as_u64().expect("a number")
            })
            .collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.events().into_iter().map(|event| event.name).collect()
    }

    pub(super) fn last(&self) -> Event {
        self.events().pop().expect("an event")
    }
}

pub(super) async fn follow(rig: &Rig, who: &str, query: &str, headers: &str) -> Following {
    let mut client = rig.connect().await;
    let head = format!(
        "GET {ENTRIES}{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\
         Authorization: Bearer token-of-{who}\r\n{headers}\r\n"
    );
    client.write(head.as_bytes()).await;
    Following { client, text: String::new() }
}

#[tokio::test]
async fn a_follower_gets_what_is_there_and_then_what_comes_each_once() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "before").await;
    let mut eve = follow(&rig, "eve", "", "").await;
    let mut late = follow(&rig, "oz", "?after=newest&payload=text", "").await;
    late.until("event: ready").await;
    eve.until("\"position\":1,").await;
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(eve.text.contains(header), "{header}: {}", eve.text);
    }
    good(&append(&rig, "eve", &json!({ "sequence": 1, "inreplyto": 1, "json": [1] })).await, 201);
    say(&rig, "sam", 2, "a\n\nb").await;
    eve.until("\"position\":3,").await;
    assert_eq!(eve.positions(), [1, 2, 3]);
    let events = eve.events();
    let ready = ("ready", "0", &json!({ "after": 0, "oldest": 1, "newest": 1 }));
    assert_eq!((events[0].name.as_str(), events[0].place(), &events[0].data), ready);
    let page = good(&send(&rig, "GET", ENTRIES, "eve", "").await, 200);
    let live: Vec<Value> = events.into_iter().skip(1).map(|event| event.data).collect();
    assert_eq!(page["entries"], json!(live), "replay, stream and page are the same");
    late.until("\"position\":3,").await;
    assert_eq!(late.positions(), [2, 3]);
    assert_eq!(late.last().data["text"], "a\n\nb", "one line, whatever it holds");
    rig.stop().await;
}

#[tokio::test]
async fn who_comes_back_gets_what_was_missed_without_hole_or_repeat() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    for sequence in 1..=3 {
        say(&rig, "sam", sequence, "x").await;
    }
    let mut first = follow(&rig, "eve", "", "").await;
    first.until("\"position\":2,").await;
    let cursor = first.last().id;
    drop(first);
    say(&rig, "sam", 4, "x").await;
    let (seen, asked, after) = (
        format!("Last-Event-ID: {cursor}\r\n"),
        format!("?last_event_id={cursor}"),
        format!("?after={cursor}"),
    );
    for (query, headers) in [
        ("", seen.as_str()),
        (asked.as_str(), ""),
        (after.as_str(), ""),
        ("?after=0", seen.as_str()),
        ("", "Last-Event-ID: 2\r\n"),
        ("?last_event_id=2", ""),
        // An EventSource asks with the address that it was made with.
        ("?after=0", "Last-Event-ID: 2\r\n"),
        ("?after=newest", "Last-Event-ID: 2\r\n"),
        ("?after=2", ""),
        ("?after=2", "Last-Event-ID: \r\n"),
    ] {
        let mut again = follow(&rig, "eve", query, headers).await;
        again.until("\"position\":4,").await;
        assert_eq!(again.positions(), [3, 4], "{query} {headers}");
        assert_eq!(again.names(), ["ready", "entry", "entry"], "{query} {headers}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_id_that_means_nothing_here_is_told_and_everything_follows() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    for (id, code) in [
        ("7", "position_ahead"),
        ("7.end", "position_ahead"),
        ("01ARZ.4", "cursor_invalid"),
        ("-1", "cursor_invalid"),
    ] {
        let mut follower = follow(&rig, "eve", "", &format!("Last-Event-ID: {id}\r\n")).await;
        follower.until("\"position\":1,").await;
        assert_eq!(follower.names(), ["ready", "gap", "entry"], "{id}: {}", follower.text);
        assert_eq!(follower.events()[1].data, json!({ "code": code, "position": 0 }));
    }
    let accept = [("Authorization", "Bearer token-of-eve"), ("Accept", "text/event-stream")];
    for (query, code) in [
        ("?after=2", "channel_option_invalid"),
        ("?after=x", "parameter_invalid"),
        ("?limit=1", "parameter_invalid"),
        ("?wait_ms=1", "parameter_invalid"),
        ("?order=senders", "parameter_invalid"),
    ] {
        rig.send("GET", &format!("{ENTRIES}{query}"), &accept, b"").await.is_problem(400, code);
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_last_event_says_why_and_whoever_has_seen_it_is_told_to_stay_away() {
    let rig = rig().await;
    for (outcome, body) in
        [("success", "{\"outcome\":\"success\"}"), ("failed", "{\"outcome\":\"failed\",\"reason\":\"x\"}")]
    {
        job(&rig, &json!("chat")).await;
        say(&rig, "sam", 1, "x").await;
        let mut follower = follow(&rig, "oz", "", "").await;
        follower.until("\"position\":1,").await;
        good(&send(&rig, "POST", &format!("{JOB}/close"), "eve", body).await, 200);
        follower.end().await;
        let (last, data) = (follower.last(), json!({ "reason": outcome, "last": 1 }));
        assert_eq!((last.name.as_str(), last.place(), &last.data), ("closed", "1.end", &data));
        assert_eq!(follower.names(), ["ready", "entry", "closed"]);
        let answer = async |id: &str| {
            let accept = [("Authorization", "Bearer token-of-oz"), ("Accept", "text/event-stream")];
            rig.send("GET", ENTRIES, &[&accept[..], &[("Last-Event-ID", id)]].concat(), b"").await
        };
        for id in ["1.end", last.id.as_str()] {
            assert_eq!(answer(id).await.status, 204, "{id}");
        }
        for id in ["0", "1", "0.end"] {
            let answer = answer(id).await;
            assert!(answer.text().contains("event: closed"), "{id} has not seen it: {}", answer.text());
        }
        assert_eq!(send(&rig, "DELETE", JOB, "sam", "").await.status, 204);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_ends_when_both_sides_are_done_and_goes_on_with_another_executor() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let mut follower = follow(&rig, "oz", "", "").await;
    follower.until("event: ready").await;
    good(&append(&rig, "sam", &json!({ "type": "end" })).await, 201);
    let failed = json!({ "type": "error", "error": "out of paper" });
    good(&append(&rig, "eve", &failed).await, 201);
    follower.end().await;
    assert_eq!(follower.last().data, json!({ "reason": "ended", "last": 2 }));
    assert_eq!(follower.names(), ["ready", "entry", "entry", "closed"], "the end itself is an entry");
    good(&send(&rig, "POST", &format!("{JOB}/assign"), "sam", "{\"executor\":\"kim\"}").await, 200);
    let mut again = follow(&rig, "oz", "", "Last-Event-ID: 2.end\r\n").await;
    again.until("event: ready").await;
    say(&rig, "kim", 1, "it goes on").await;
    again.until("\"position\":3,").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_follower_is_told_that_its_rights_or_the_process_are_gone() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    let mut eve = follow(&rig, "eve", "", "").await;
    let mut oz = follow(&rig, "oz", "", "").await;
    let mut boss = follow(&rig, "boss", "", "").await;
    for follower in [&mut eve, &mut oz, &mut boss] {
        follower.until("\"position\":1,").await;
    }
    // The same party in another epoch is another executor.
    good(&send(&rig, "POST", &format!("{JOB}/assign"), "sam", "{\"executor\":\"eve\"}").await, 200);
    eve.end().await;
    assert_eq!(eve.last().data, json!({ "reason": "revoked", "last": 1 }));
    say(&rig, "sam", 2, "not for the former one").await;
    assert!(!eve.text.contains("\"position\":2"), "{}", eve.text);
    good(&send(&rig, "POST", &format!("{JOB}/observers"), "sam", "{\"observers\":[]}").await, 200);
    oz.end().await;
    assert_eq!(oz.last().data["reason"], "revoked");
    let back = [("Authorization", "Bearer token-of-oz"), ("Accept", "text/event-stream")];
    rig.send("GET", ENTRIES, &back, b"").await.is_problem(403, "channel_forbidden");
    boss.until("\"position\":2,").await;
    assert_eq!(send(&rig, "DELETE", JOB, "sam", "").await.status, 204);
    boss.end().await;
    assert_eq!(boss.last().data, json!({ "reason": "removed", "last": 2 }));
    // Another process of the name is another log.
    job(&rig, &json!("chat")).await;
    let mut boss = follow(&rig, "boss", "", "Last-Event-ID: 2.end\r\n").await;
    say(&rig, "sam", 1, "new").await;
    boss.until("\"position\":1,").await;
    assert!(boss.text.contains("event: gap"), "{}", boss.text);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_channel_has_dropped_is_told_before_what_it_has() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle).await;
    let body =
        json!({ "channels": [{ "name": "chat", "full": "drop_oldest", "entries_max": 2 }] }).to_string();
    good(&rig.send("PUT", JOB, &[], body.as_bytes()).await, 201);
    for _ in 0..5 {
        good(&rig.send("POST", ENTRIES, &[], b"{\"text\":\"x\"}").await, 201);
    }
    let mut follower = follow(&rig, "nobody", "?after=1", "").await;
    follower.until("\"position\":5,").await;
    assert_eq!(follower.names(), ["ready", "lagged", "entry", "entry"], "{}", follower.text);
    let lagged = &follower.events()[1];
    assert_eq!((lagged.place(), &lagged.data), ("3", &json!({ "resume_at": 4, "missed": 2, "behind": 2 })));
    assert_eq!(follower.positions(), [4, 5]);
    let metrics = rig.get("/metrics").await.text();
    for line in [
        "millrace_channel_followers 1\n",
        "millrace_channel_lagged_total 1\n",
        "millrace_channel_missed_entries_total 2\n",
        "millrace_sse_clients 1\n",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_credential_and_with_the_host_and_lives_meanwhile() {
    let rig = Rig::with(|options| {
        options.auth = super::parties();
        options.sse_heartbeat = Duration::from_millis(20);
    })
    .await;
    job(&rig, &json!("chat")).await;
    let mut oz = follow(&rig, "oz", "", "").await;
    oz.until(": \n\n").await;
    good(&send(&rig, "POST", "/v1/auth/revoke", "boss", "{\"name\":\"oz\"}").await, 200);
    oz.end().await;
    let error = oz.last();
    assert_eq!((error.name.as_str(), &error.data["code"]), ("error", &json!("token_revoked")));
    say(&rig, "sam", 1, "x").await;
    let mut eve = follow(&rig, "eve", "", "").await;
    eve.until("\"position\":1,").await;
    rig.cancel();
    eve.end().await;
    assert_eq!((eve.last().name.as_str(), &eve.last().data["code"]), ("closing", &json!("host_stopping")));
    rig.stop().await;
}

#[tokio::test]
async fn a_ticket_opens_the_stream_of_a_channel_and_nothing_else_of_it() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    let ticket = async || {
        let made = good(&send(&rig, "POST", "/v1/session", "oz", "{\"ticket\":true}").await, 200);
        made["ticket"].as_str().expect("a ticket").to_owned()
    };
    let accept = [("Accept", "text/event-stream")];
    for path in [ENTRIES, JOB] {
        let path = format!("{path}?ticket={}", ticket().await);
        let headers: &[(&str, &str)] = if path.starts_with(ENTRIES) { &[] } else { &accept };
        rig.send("GET", &path, headers, b"").await.is_problem(403, "ticket_refused");
    }
    let mut client = rig.connect().await;
    let head = format!(
        "GET {ENTRIES}?ticket={}&payload=text HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        ticket().await
    );
    client.write(head.as_bytes()).await;
    client.read_until(&mut String::new(), "\"text\":\"x\"").await;
    rig.stop().await;
}

/// A channel's log is there for whoever is behind: nobody is thrown out and nothing is left out.
#[tokio::test]
async fn a_slow_follower_gets_everything_in_the_end() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let mut slow = follow(&rig, "oz", "?payload=text", "").await;
    slow.until("event: ready").await;
    // More than the sockets' buffers hold, and than is kept in memory for those who keep up.
    let large = "x".repeat(500_000);
    for sequence in 1..=40 {
        say(&rig, "sam", sequence, &large).await;
    }
    say(&rig, "eve", 1, "the last one").await;
    slow.until("the last one").await;
    assert_eq!(slow.positions(), (1..=41).collect::<Vec<u64>>());
    rig.stop().await;
}
