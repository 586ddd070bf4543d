//! What streams show a client in Python, and what they leave out.

use millrace::streams::Retention;
use serde_json::{Value, json};

use super::super::scene::Scene;
use super::caller::{Caller, data};

const LOST: &str = "cursor beyond retention window";

/// What a stream says when its cursor cannot be gone on from, which is the end of it.
fn lost() -> [Value; 2] {
    let told = json!({ "kind": "stream", "event": "invalidate", "data": { "reason": LOST }, "cursor": null });
    [told, json!({ "end": true })]
}

fn cursor(event: &Value) -> &str {
    event["cursor"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r37_r38_r40_r46_r52_events_pass_with_kind_event_and_data_as_they_were() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    let channels = json!(["history", "context"]);
    caller.open("live", None, &json!({ "detail": "full", "entry_channels": channels }));
    assert_eq!(caller.until_live("live").len(), 1, "nothing comes before it");
    let conversation = json!({ "conversation": "c", "conversation_group": "g" });
    let summary = json!({
        "conversation": "c", "conversation_group": "g", "entry": "e", "entry_channel": "history",
        "entry_content_type": "history", "entry_role": "USER",
    });
    let full = json!({
        "id": "e", "conversationId": "c", "channel": "history", "contentType": "history",
        "content": [{ "role": "USER", "text": "é", "n": 9_007_199_254_740_993_u64 }],
    });
    let context = json!({
        "id": "k", "conversationId": "c", "channel": "context", "contentType": "context", "epoch": 1,
        "content": [{ "role": "AI", "text": "so far" }],
    });
    let archived = json!({ "id": "c", "conversationGroupId": "g", "archivedAt": "2026-01-02T03:04:05Z" });
    let response = json!({ "conversation": "c", "recording": "r", "status": "started" });
    let told = [
        ("conversation", "created", conversation.clone()),
        ("conversation", "updated", conversation),
        ("conversation", "updated", archived),
        ("conversation", "deleted", json!({ "conversation": "c", "members": ["u"] })),
        ("entry", "created", summary),
        ("entry", "created", full),
        ("entry", "created", context),
        ("membership", "created", json!({ "conversation_group": "g", "user": "u", "role": "reader" })),
        ("response", "created", response),
    ];
    for (kind, action, payload) in &told {
        scene.publish(kind, action, std::slice::from_ref(payload)).await;
    }
    let asked = json!({ "after_cursor": "start", "detail": "full", "entry_channels": channels });
    caller.open("replayed", None, &asked);
    let live = caller.events("live", told.len());
    let replayed = caller.until_live("replayed");
    assert_eq!(replayed[0]["data"], json!({ "phase": "replay" }));
    assert_eq!(replayed[1..=told.len()], live, "with the same cursors");
    for (event, (kind, action, payload)) in live.iter().zip(&told) {
        assert_eq!((&event["kind"], &event["event"]), (&json!(kind), &json!(action)));
        assert_eq!(&event["data"], payload);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_number_beyond_2_53_is_exact_in_a_stream() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    scene.publish("a", "b", &[json!({ "n": 9_007_199_254_740_993_u64 })]).await;
    caller.open("all", None, &json!({ "after_cursor": "start" }));
    assert_eq!(caller.events("all", 1)[0]["data"].to_string(), r#"{"n":9007199254740993}"#);
}

/// Each event of the live tail has a cursor to go on from, and each goes on with events as they were, whatever the detail.
#[tokio::test(flavor = "multi_thread")]
async fn r47_r48_streams_go_on_behind_each_cursor() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    caller.open("live", None, &json!({}));
    caller.until_live("live");
    let titles: Vec<_> = (0..6).map(|number| json!({ "id": "c", "title": number })).collect();
    scene.publish("conversation", "updated", &titles).await;
    let live = caller.events("live", titles.len());
    for (number, detail) in [(0, "full"), (1, "summary"), (2, ""), (3, "full"), (4, "full")] {
        caller.open("again", None, &json!({ "after_cursor": cursor(&live[number]), "detail": detail }));
        let again = caller.until_live("again");
        assert_eq!(again[0]["data"], json!({ "phase": "replay" }));
        assert_eq!(again[1..again.len() - 1], live[number + 1..], "behind the event {number}");
    }
    let told: Vec<&Value> = titles.iter().collect();
    assert_eq!(data(&live), told);
}

#[tokio::test(flavor = "multi_thread")]
async fn r43_r44_r45_r49_filters_leave_out_what_was_not_asked_for() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    let entry = |id: &str, channel: &str, content_type: &str, role: &str| {
        json!({
            "id": id, "conversationId": id, "channel": channel, "contentType": content_type,
            "content": [{ "role": role }],
        })
    };
    let entries = [
        entry("said", "history", "history", "USER"),
        entry("answered", "history", "history/lc4j", "AI"),
        entry("thought", "context", "history/lc4j", "AI"),
        entry("noted", "journal", "history", "USER"),
    ];
    scene.publish("entry", "created", &entries).await;
    for kind in ["conversation", "membership", "response"] {
        scene.publish(kind, "created", &[json!({ "id": kind, "conversation": "said" })]).await;
    }
    let others = ["conversation", "membership", "response"];
    let with_others = |ids: &[&'static str]| [ids, &others[..]].concat();
    for (mut asked, seen) in [
        (json!({}), with_others(&["said", "answered"])),
        (json!({ "kinds": ["response", "conversation"] }), vec!["conversation", "response"]),
        (json!({ "kinds": ["Response"] }), vec![]),
        (json!({ "entry_channels": ["Context", "journal"] }), with_others(&["thought", "noted"])),
        (json!({ "entry_channels": ["context"], "kinds": ["entry"] }), vec!["thought"]),
        (json!({ "entry_content_types": ["history/lc4j"] }), with_others(&["answered"])),
        (json!({ "entry_content_types": ["HISTORY"] }), with_others(&[])),
        (json!({ "entry_roles": ["user"] }), with_others(&["said"])),
        (json!({ "entry_content_types": ["history/lc4j"], "entry_roles": ["user"] }), with_others(&[])),
        (json!({ "conversation_ids": ["said"], "kinds": ["entry"] }), vec!["said"]),
    ] {
        asked["after_cursor"] = json!("start");
        caller.open("filtered", None, &asked);
        let mut said = caller.until_live("filtered");
        assert_eq!(said[0]["data"], json!({ "phase": "replay" }), "{asked}: what is about the stream passes");
        said.retain(|event| event["kind"] != "stream");
        let ids: Vec<_> = said.iter().map(|event| event["data"]["id"].as_str().unwrap()).collect();
        assert_eq!(ids, seen, "{asked}");
    }
    caller.open("lost", None, &json!({ "after_cursor": "abc", "kinds": ["response"] }));
    assert_eq!(caller.read_to_the_end("lost"), lost(), "this passes, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn r51_a_cursor_that_is_not_held_is_told_in_band() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    let numbers: Vec<_> = (0..10).map(|number| json!(number)).collect();
    scene.publish("a", "b", &numbers).await;
    caller.open("all", None, &json!({ "after_cursor": "start" }));
    let events = caller.events("all", 10);
    let (epoch, newest) = cursor(&events[9]).split_once('.').unwrap();
    let ahead = format!("{epoch}.{}", newest.parse::<u64>().unwrap() + 1);
    scene.host.host().log().trim(Retention { events: Some(3), age: None }).await.unwrap();
    for wrong in ["abc", "7", &ahead, &format!("x{epoch}.{newest}"), cursor(&events[0])] {
        caller.open("lost", None, &json!({ "after_cursor": wrong }));
        assert_eq!(caller.read_to_the_end("lost"), lost(), "{wrong}");
    }
    caller.open("oldest", None, &json!({ "after_cursor": "start" }));
    assert_eq!(data(&caller.events("oldest", 3)), [7, 8, 9]);
    // A reader that has everything has lost nothing.
    scene.host.host().log().trim(Retention { events: Some(0), age: None }).await.unwrap();
    caller.open("caught-up", None, &json!({ "after_cursor": cursor(&events[9]) }));
    caller.until_live("caught-up");
    scene.publish("a", "b", &[json!(10)]).await;
    assert_eq!(data(&caller.events("caught-up", 1)), [10]);
}

/// A client that is read slowly stands in the log like any other reader; what it has not come to may be gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn r51_a_stream_whose_rest_is_gone_is_told_in_its_midst() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 600_000).await;
    let mut caller = Caller::start(scene.port());
    // More in all than is written ahead of a client.
    let text = "x".repeat(50_000);
    for half in [0..100, 100..200] {
        let payloads: Vec<_> = half.map(|number| json!({ "number": number, "text": text })).collect();
        scene.publish("a", "b", &payloads).await;
    }
    caller.open("slow", None, &json!({ "after_cursor": "start" }));
    assert_eq!(caller.events("slow", 1)[0]["data"]["number"], 0);
    scene.host.host().log().trim(Retention { events: Some(0), age: None }).await.unwrap();
    let said = caller.read_to_the_end("slow");
    let (events, last) = said.split_at(said.len() - 2);
    assert_eq!(last, lost());
    assert!(events.len() < 199, "something was gone");
    for (event, number) in events.iter().zip(1..) {
        assert_eq!(event["data"]["number"], number, "what comes before is whole");
    }
}
