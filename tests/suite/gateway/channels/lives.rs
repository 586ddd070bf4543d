//! A process that was removed and made again under its name: what was told of the former one means nothing for the next.

use millrace::channels::ChannelLimits;
use serde_json::{Value, json};

use super::follow::follow;
use super::{ENTRIES, JOB, good, job, next, positions, rig, rig_with, say, send};
use crate::gateway::rig::Rig;

async fn page(rig: &Rig, query: &str) -> Value {
    good(&send(rig, "GET", &format!("{ENTRIES}?{query}"), "sam", "").await, 200)
}

fn cursor(page: &Value) -> String {
    page["next"].as_str().expect("a cursor").to_owned()
}

/// Another process of the same name, with so many entries.
async fn again(rig: &Rig, entries: u64) {
    assert_eq!(send(rig, "DELETE", JOB, "sam", "").await.status, 204);
    job(rig, &json!("chat")).await;
    for sequence in 1..=entries {
        say(rig, "sam", sequence, "new").await;
    }
}

#[tokio::test]
async fn a_page_of_a_former_process_is_not_continued_in_the_next_one() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "old").await;
    say(&rig, "sam", 2, "old").await;
    let old = cursor(&page(&rig, "limit=1").await);
    assert_eq!(positions(&page(&rig, &format!("after={old}")).await), [2], "it is a place of this one");
    again(&rig, 3).await;
    for query in [format!("after={old}"), format!("after={old}&wait_ms=30000")] {
        let answer = send(&rig, "GET", &format!("{ENTRIES}?{query}"), "sam", "").await;
        answer.is_problem(410, "cursor_foreign");
    }
    // Nobody can tell of which process a number is: it is taken as it stands.
    assert_eq!(positions(&page(&rig, "after=1").await), [2, 3]);
    let newest = page(&rig, "after=newest").await;
    assert_eq!((positions(&newest), next(&newest)), (vec![], Some(3)));
    assert_ne!(
        cursor(&newest).split_once('.').expect("an incarnation").0,
        old.split_once('.').expect("an incarnation").0
    );
    assert_eq!(positions(&page(&rig, &format!("after={}", cursor(&newest))).await), [0_u64; 0]);
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_of_a_former_process_is_told_and_begins_with_the_next_one() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "old").await;
    let mut follower = follow(&rig, "eve", "", "").await;
    follower.until("\"position\":1,").await;
    let seen = follower.last().id;
    good(&send(&rig, "POST", &format!("{JOB}/close"), "sam", "{\"outcome\":\"success\"}").await, 200);
    follower.end().await;
    let ended = follower.last().id;
    assert!(ended.ends_with(".end"), "{ended}");
    again(&rig, 2).await;
    // The next one has an entry at each of these positions, and none of them was seen.
    for id in [seen.as_str(), ended.as_str()] {
        let mut back = follow(&rig, "eve", "", &format!("Last-Event-ID: {id}\r\n")).await;
        back.until("\"position\":2,").await;
        assert_eq!(back.names(), ["ready", "gap", "entry", "entry"], "{id}: {}", back.text());
        assert_eq!(back.events()[1].data, json!({ "code": "cursor_foreign", "position": 0 }));
        assert_eq!(back.positions(), [1, 2]);
    }
    // The end of the next one is not the end that was seen, wherever it is.
    good(&send(&rig, "POST", &format!("{JOB}/close"), "sam", "{\"outcome\":\"failed\"}").await, 200);
    let mut back = follow(&rig, "eve", "", &format!("Last-Event-ID: {ended}\r\n")).await;
    back.end().await;
    assert_eq!(back.names(), ["ready", "gap", "entry", "entry", "closed"]);
    assert_eq!(back.last().data["reason"], "failed");
    let accept = [("Authorization", "Bearer token-of-eve"), ("Accept", "text/event-stream")];
    let answer = rig.send("GET", &format!("{ENTRIES}?after={seen}"), &accept, b"").await;
    answer.is_problem(410, "cursor_foreign");
    rig.stop().await;
}

#[tokio::test]
async fn a_process_is_made_again_by_what_the_request_names_whatever_the_defaults_are_now() {
    let rig = rig_with(ChannelLimits { entries_max: 50, ..ChannelLimits::default() }).await;
    let body = json!({ "executor": "eve", "channels": ["chat", { "name": "log", "gaps": "report", "entries_max": 50 }] });
    let made = good(&send(&rig, "PUT", JOB, "sam", &body.to_string()).await, 201);
    assert_eq!(made["channels"][0]["entries_max"], 50);
    good(&send(&rig, "POST", &format!("{JOB}/observers"), "sam", "{\"observers\":[\"oz\"]}").await, 200);
    // What a host with other defaults would take the same request for.
    let channel = |name: &str, more: Value| {
        let mut channel = json!({ "name": name });
        channel.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({ "channels": [channel] }).to_string()
    };
    for same in [
        body.to_string(),
        "{}".to_owned(),
        json!({ "observers": ["oz"] }).to_string(),
        channel("chat", json!({ "entries_max": 50 })),
        channel("log", json!({ "gaps": "report" })),
    ] {
        let found = good(&send(&rig, "PUT", JOB, "sam", &same).await, 200);
        assert_eq!(found["channels"].as_array().map(Vec::len), Some(2), "{same}");
    }
    for other in [
        json!({ "observers": [] }).to_string(),
        json!({ "executor": "kim" }).to_string(),
        json!({ "channels": ["other"] }).to_string(),
        channel("chat", json!({ "entries_max": 49 })),
        channel("log", json!({ "gaps": "hold" })),
    ] {
        send(&rig, "PUT", JOB, "sam", &other).await.is_problem(409, "process_exists");
    }
    send(&rig, "PUT", JOB, "kim", "{}").await.is_problem(409, "process_exists");
    rig.stop().await;
}

#[tokio::test]
async fn a_list_for_a_party_reads_so_many_processes_and_is_gone_on_with() {
    let rig = rig().await;
    let names: Vec<String> = (0..250).map(|number| format!("p{number:03}")).collect();
    for name in &names {
        good(
            &send(&rig, "PUT", &format!("/v1/processes/{name}"), "sam", "{\"channels\":[\"chat\"]}").await,
            201,
        );
    }
    let path = format!("/v1/processes/{}/channels/chat/assign", names[249]);
    good(&send(&rig, "POST", &path, "sam", "{\"executor\":\"eve\"}").await, 200);
    let (mut query, mut pages) = (String::new(), Vec::new());
    loop {
        let list = good(&send(&rig, "GET", &format!("/v1/processes{query}"), "eve", "").await, 200);
        pages.push(list["processes"].as_array().expect("a list").clone());
        let Some(next) = list["next"].as_str() else { break };
        query = format!("?after={next}");
    }
    let found: Vec<usize> = pages.iter().map(Vec::len).collect();
    assert_eq!(found, [0, 0, 1], "a hundred processes are read for a page");
    assert_eq!((&pages[2][0]["process"], &pages[2][0]["role"]), (&json!("p249"), &json!("executor")));
    rig.stop().await;
}

#[tokio::test]
async fn json_that_would_make_a_page_too_deep_is_shown_as_base64() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    for depth in [120, 121, 126, 127] {
        let body = format!("{{\"json\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        good(&send(&rig, "POST", ENTRIES, "sam", &body).await, 201);
    }
    let page = page(&rig, "payload=json").await;
    let shown: Vec<bool> =
        page["entries"].as_array().expect("entries").iter().map(|one| one["json"].is_array()).collect();
    assert_eq!(shown, [true, false, false, false]);
    assert!(page["entries"][1]["payload"].is_string(), "{page}");
    rig.stop().await;
}
