//! Reading pages over HTTP: by position, waiting, and in the order of the senders.

use serde_json::{Value, json};

use super::{ENTRIES, JOB, append, good, job, next, positions, rig, say, send};
use crate::gateway::rig::Rig;

async fn page(rig: &Rig, query: &str) -> Value {
    good(&send(rig, "GET", &format!("{ENTRIES}?{query}"), "eve", "").await, 200)
}

#[tokio::test]
async fn a_reader_goes_on_after_what_it_has_read() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "question").await;
    say(&rig, "sam", 2, "more").await;
    good(&append(&rig, "eve", &json!({ "sequence": 1, "inreplyto": 1, "text": "answer" })).await, 201);
    assert_eq!(positions(&page(&rig, "").await), [1, 2, 3]);
    let rest = page(&rig, "after=1").await;
    assert_eq!((positions(&rest), next(&rest)), (vec![2, 3], Some(3)));
    let senders: Vec<_> = rest["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|e| (&e["senderid"], &e["sequence"]))
        .collect();
    assert_eq!(senders, [(&json!("sam"), &json!(2)), (&json!("eve"), &json!(1))]);
    let some = page(&rig, "limit=2").await;
    assert_eq!((positions(&some), next(&some), &some["newest"]), (vec![1, 2], Some(2), &json!(3)));
    for query in ["after=100", "after=newest", "after=9007199254740991"] {
        assert_eq!(positions(&page(&rig, query).await), [0_u64; 0], "{query}");
    }
    for query in ["limit=0", "after=oldest", "after=0&limit=100000", "order=log", "payload=base64&wait_ms=0"]
    {
        assert_eq!(positions(&page(&rig, query).await), [1, 2, 3], "{query}");
    }
    for (query, code) in [
        ("after=-1", "parameter_invalid"),
        ("after=1.5x", "parameter_invalid"),
        ("after=x.5", "parameter_invalid"),
        ("after=9007199254740992", "parameter_invalid"),
        ("after=18446744073709551615", "parameter_invalid"),
        ("after=18446744073709551616", "parameter_invalid"),
        ("limit=-1", "parameter_invalid"),
        ("wait_ms=soon", "parameter_invalid"),
        ("wait_ms=30001", "channel_option_invalid"),
        ("order=random", "parameter_invalid"),
        ("payload=xml", "parameter_invalid"),
        ("afterseq=1", "parameter_unknown"),
    ] {
        let answer = send(&rig, "GET", &format!("{ENTRIES}?{query}"), "eve", "").await;
        answer.is_problem(400, code);
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_order_of_the_senders_is_a_view_and_moves_no_entry() {
    let rig = rig().await;
    job(&rig, &json!({ "name": "chat", "gaps": "arrival" })).await;
    for (who, sequence) in [("sam", 1), ("sam", 2), ("eve", 2), ("eve", 1)] {
        say(&rig, who, sequence, "x").await;
    }
    assert_eq!(positions(&page(&rig, "").await), [1, 2, 3, 4]);
    assert_eq!(positions(&page(&rig, "order=senders").await), [1, 2, 4, 3]);
    assert_eq!(positions(&page(&rig, "order=senders&after=2").await), [4, 3]);
    assert_eq!(next(&page(&rig, "order=senders&after=2").await), Some(4));
    assert_eq!(positions(&page(&rig, "after=3").await), [4], "who has read three entries gets the fourth");
    rig.stop().await;
}

#[tokio::test]
async fn a_read_that_waits_is_answered_by_the_next_entry_or_with_nothing_at_its_end() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    assert_eq!(positions(&page(&rig, "after=1&wait_ms=50").await), [0_u64; 0]);
    assert_eq!(positions(&page(&rig, "wait_ms=30000").await), [1], "what is there is not waited for");
    let came = async {
        // Its connection came first: the read waits when this is answered.
        good(&send(&rig, "GET", JOB, "sam", "").await, 200);
        say(&rig, "sam", 2, "x").await
    };
    // It would wait for longer than the test does.
    let (read, _) = tokio::join!(page(&rig, "after=1&wait_ms=30000"), came);
    assert_eq!((positions(&read), &read["closed"]), (vec![2], &Value::Null));
    rig.stop().await;
}

#[tokio::test]
async fn a_read_that_waits_ends_when_nothing_can_come_and_says_why() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    say(&rig, "sam", 2, "x").await;
    let closed = async {
        good(&send(&rig, "GET", JOB, "sam", "").await, 200);
        good(&send(&rig, "POST", &format!("{JOB}/close"), "sam", "{\"outcome\":\"cancelled\"}").await, 200)
    };
    let (read, _) = tokio::join!(page(&rig, "after=2&wait_ms=30000"), closed);
    assert_eq!((positions(&read), &read["closed"]), (vec![], &json!("cancelled")));
    // Nobody had looked at this one before: what is known of it comes from the store.
    good(&send(&rig, "PUT", "/v1/processes/done", "sam", "{\"channels\":[\"chat\"]}").await, 201);
    good(&send(&rig, "POST", "/v1/processes/done/close", "sam", "{\"outcome\":\"success\"}").await, 200);
    let path = "/v1/processes/done/channels/chat/entries?wait_ms=30000";
    assert_eq!(good(&send(&rig, "GET", path, "sam", "").await, 200)["closed"], "success");
    assert_eq!(page(&rig, "limit=1").await["closed"], Value::Null, "there is more to read before the end");
    assert_eq!(page(&rig, "after=1&limit=1").await["closed"], "cancelled");
    rig.stop().await;
}

#[tokio::test]
async fn a_read_that_waits_ends_with_the_rights_to_it() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let path = format!("{ENTRIES}?wait_ms=30000");
    let waits = |who: &'static str| send(&rig, "GET", &path, who, "");
    let then = async |method: &str, rest: &str, who: &str, body: &str| {
        good(&send(&rig, "GET", JOB, "sam", "").await, 200);
        send(&rig, method, rest, who, body).await.status
    };
    let assign = format!("{JOB}/assign");
    let (read, status) = tokio::join!(waits("eve"), then("POST", &assign, "sam", "{\"executor\":\"kim\"}"));
    assert_eq!(status, 200);
    read.is_problem(403, "channel_forbidden");
    let revoke = ("POST", "/v1/auth/revoke", "boss", "{\"name\":\"oz\"}");
    let (read, status) = tokio::join!(waits("oz"), then(revoke.0, revoke.1, revoke.2, revoke.3));
    assert_eq!(status, 200);
    read.is_problem(401, "token_revoked");
    let (read, status) = tokio::join!(waits("kim"), then("DELETE", JOB, "sam", ""));
    assert_eq!(status, 204);
    read.is_problem(404, "channel_unknown");
    good(&send(&rig, "PUT", JOB, "sam", "{\"channels\":[\"chat\"]}").await, 201);
    let stop = async {
        good(&send(&rig, "GET", JOB, "sam", "").await, 200);
        rig.cancel();
    };
    let (read, ()) = tokio::join!(waits("sam"), stop);
    read.is_problem(503, "host_stopping");
    rig.stop().await;
}

/// One laptop plays both sides, without a token: what the README shows.
#[tokio::test]
async fn without_tokens_whoever_is_there_plays_both_sides() {
    let rig = Rig::start().await;
    let ask = async |method: &str, path: &str, body: &str| rig.send(method, path, &[], body.as_bytes()).await;
    let body = "{\"executor\":\"worker\",\"channels\":[\"chat\"]}";
    let made = good(&ask("PUT", &format!("{JOB}?as=client"), body).await, 201);
    assert_eq!((&made["submitter"], &made["executor"]), (&json!("client"), &json!("worker")));
    let entry = "{\"sequence\":1,\"text\":\"how many?\"}";
    good(&ask("POST", &format!("{ENTRIES}?as=client"), entry).await, 201);
    let batch = "[{\"sequence\":1,\"inreplyto\":1,\"text\":\"42\"},{\"sequence\":2,\"type\":\"end\"}]";
    let answered = good(&ask("POST", &format!("{ENTRIES}?as=worker"), batch).await, 201);
    assert_eq!(answered["appended"][1]["position"], 3);
    let page = good(&ask("GET", &format!("{ENTRIES}?payload=text"), "").await, 200);
    let said: Vec<_> = page["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| (entry["senderid"].as_str(), entry["text"].as_str()))
        .collect();
    let (client, worker) = (Some("client"), Some("worker"));
    assert_eq!(said, [(client, Some("how many?")), (worker, Some("42")), (worker, None)]);
    // Without `as` it is nobody's part.
    ask("POST", ENTRIES, entry).await.is_problem(403, "channel_forbidden");
    ask("GET", &format!("{ENTRIES}?as=stranger"), "").await.is_problem(403, "channel_forbidden");
    let closed =
        good(&ask("POST", &format!("{JOB}/close?as=client"), "{\"outcome\":\"success\"}").await, 200);
    assert_eq!(closed["closed"]["outcome"], "success");
    good(&ask("PUT", "/v1/processes/own", "").await, 201);
    assert_eq!(good(&ask("GET", "/v1/processes/own", "").await, 200)["submitter"], "loopback");
    rig.stop().await;
}
