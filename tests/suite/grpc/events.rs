//! Streams of events: what they show, from where, and to whom.

use millrace::config::Config;
use millrace::event::Position;
use millrace::memory_v1::{EventScope, SubscribeEventsRequest};
use millrace::streams::Retention;
use serde_json::{Value, json};
use tonic::Code;

use super::scene::{
    AUDITOR, Caller, FOREIGN, OPERATOR, Scene, Shown, TRACER, WRITER, after, data, publish, tokens,
};

const LOST: &str = "cursor beyond retention window";

fn entry(id: &str, channel: &str, role: &str) -> Value {
    json!({
        "id": id, "conversationId": "c", "conversationGroupId": "g", "channel": channel,
        "contentType": channel, "content": [{ "role": role, "text": "hello" }],
    })
}

/// The ids in the data of what a stream shows, up to an event of the kind `end`.
async fn ids(shown: &mut Shown) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let event = shown.event().await;
        if event.kind == "end" {
            return ids;
        }
        ids.push(data(&event)["id"].as_str().unwrap().to_owned());
    }
}

async fn end(scene: &Scene) {
    scene.publish("end", "reached", &[json!({})]).await;
}

/// An entry of the channel `context` as a whole conversation brings it when it is taken over.
fn context_entry() -> Value {
    let mut entry = entry("k", "context", "AI");
    entry["epoch"] = 1.into();
    entry
}

/// Nothing is changed over gRPC here (40): what was published over HTTP is shown.
#[tokio::test(flavor = "multi_thread")]
async fn r37_r38_r40_r46_events_pass_with_kind_event_and_data_as_they_were() {
    let scene = Scene::open().await;
    let asked = |cursor: &str| {
        let entry_channels = vec!["history".into(), "context".into()];
        SubscribeEventsRequest { entry_channels, ..after(cursor) }
    };
    let mut live = scene.caller(&[]).subscribe(asked("")).await.unwrap();
    live.until_live().await;
    let conversation = json!({ "conversation": "c", "conversation_group": "g" });
    let archived = json!({ "id": "c", "conversationGroupId": "g", "archivedAt": "2026-01-02T03:04:05Z" });
    let summary = json!({
        "conversation": "c", "conversation_group": "g", "entry": "e", "entry_channel": "history",
        "entry_content_type": "history", "entry_role": "USER",
    });
    let told = [
        ("conversation", "created", conversation.clone()),
        ("conversation", "updated", conversation.clone()),
        ("conversation", "updated", archived),
        ("conversation", "deleted", json!({ "conversation": "c", "members": ["u"] })),
        ("entry", "created", summary),
        ("entry", "created", entry("e", "history", "USER")),
        ("entry", "created", context_entry()),
        ("membership", "created", json!({ "conversation_group": "g", "user": "u", "role": "reader" })),
    ];
    for (kind, action, payload) in &told {
        scene.publish(kind, action, std::slice::from_ref(payload)).await;
    }
    let mut replayed = scene.caller(&[]).subscribe(asked("start")).await.unwrap();
    for shown in [&mut live, &mut replayed] {
        for (kind, action, payload) in &told {
            let event = shown.event().await;
            assert_eq!((event.kind.as_str(), event.event.as_str()), (*kind, *action));
            assert_eq!(&data(&event), payload);
        }
    }
    // Where no channel is asked for it is left out, and nothing else is.
    let mut usual = scene.caller(&[]).after("start").await;
    for (kind, action, payload) in told.iter().filter(|(_, _, payload)| payload["channel"] != "context") {
        let event = usual.event().await;
        assert_eq!((event.kind.as_str(), event.event.as_str(), &data(&event)), (*kind, *action, payload));
    }
}

/// What would change a conversation is no method of ours, and nothing is published for it.
#[tokio::test(flavor = "multi_thread")]
async fn r40_no_method_changes_anything_but_a_checkpoint() {
    let scene = Scene::open().await;
    let mut shown = scene.caller(&[]).after("").await;
    shown.until_live().await;
    for path in [
        "/memory.v1.ConversationsService/CreateConversation",
        "/memory.v1.EntriesService/AppendEntry",
        "/memory.v1.ConversationMembershipsService/ShareConversation",
    ] {
        let refused: Result<(), _> = scene.caller(&[]).ask(path, ()).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    scene.publish("conversation", "created", &[json!({ "conversation": "c" })]).await;
    assert_eq!(data(&shown.event().await), json!({ "conversation": "c" }), "the first that is shown");
}

/// An event that came from elsewhere keeps the kind that it had there.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_its_own_counts_before_the_aggregate() {
    let scene = Scene::open().await;
    let line = |kind: &str, event_type: &str, id: &str| {
        let event = json!({
            "aggregate": "flight", "agg_id": id, "version": 1, "type": event_type, "kind": kind, "payload": {},
        });
        format!("{event}\n")
    };
    let lines = [line("entry", "entry.created", "1"), line("", "flight.left", "2"), line("", "left", "3")];
    scene.host.client.publish(lines.concat()).await.unwrap();
    let mut shown = scene.caller(&[]).after("start").await;
    let events = shown.events(3).await;
    let names: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.event.as_str())).collect();
    assert_eq!(names, [("entry", "created"), ("flight", "left"), ("flight", "left")]);
}

/// Whoever may publish could otherwise have every reader of the tenant begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_cannot_speak_about_a_stream() {
    let scene = Scene::open().await;
    let line = |aggregate: &str, kind: &str, event_type: &str, id: &str| {
        let event = json!({
            "aggregate": aggregate, "agg_id": id, "version": 1, "type": event_type, "kind": kind,
            "payload": { "reason": LOST },
        });
        format!("{event}\n")
    };
    let lines = [
        line("stream", "", "stream.invalidate", "1"),
        line("flight", "stream", "stream.evicted", "2"),
        line("flight", "", "flight.left", "3"),
    ];
    scene.host.client.publish(lines.concat()).await.unwrap();
    let mut shown = scene.caller(&[]).after("start").await;
    assert_eq!(shown.about().await.1, json!({ "phase": "replay" }));
    for (kind, event) in [("event", "stream.invalidate"), ("event", "stream.evicted"), ("flight", "left")] {
        let next = shown.next().await.unwrap().unwrap();
        assert_eq!((next.kind.as_str(), next.event.as_str()), (kind, event));
    }
    let asked = SubscribeEventsRequest { kinds: vec!["event".into()], ..after("start") };
    let found = scene.caller(&[]).subscribe(asked).await.unwrap().events(2).await;
    assert!(found.iter().all(|event| event.kind == "event"), "a filter knows them by this name");
}

/// The newest cursor that is told about the stream itself, once it is this position.
async fn marked(shown: &mut Shown, position: Position) -> String {
    loop {
        let (_, data, cursor) = shown.about().await;
        let cursor = cursor.unwrap_or_else(|| panic!("{data} has no cursor"));
        if cursor.ends_with(&format!(".{position}")) {
            return cursor;
        }
    }
}

/// A reader that is shown nothing would otherwise fall out of what is held, although it is behind nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_moves_over_what_is_left_out() {
    let quick = |config: &mut Config| config.gateway.sse_heartbeat_ms = 20;
    let scene = Scene::with(quick).await;
    let log = scene.host.host().log();
    let numbers: Vec<_> = (0..10).map(|number| json!(number)).collect();
    scene.publish("left", "out", &numbers).await;
    let kept = || SubscribeEventsRequest { kinds: vec!["kept".into()], ..SubscribeEventsRequest::default() };
    let asked = SubscribeEventsRequest { after_cursor: Some("start".into()), ..kept() };
    let mut replayed = scene.caller(&[]).subscribe(asked).await.unwrap();
    let mut live = scene.caller(&[]).subscribe(kept()).await.unwrap();
    for shown in [&mut replayed, &mut live] {
        marked(shown, log.bounds().newest).await;
    }
    scene.publish("left", "out", &numbers).await;
    let newest = log.bounds().newest;
    let cursors = [marked(&mut replayed, newest).await, marked(&mut live, newest).await];
    log.trim(Retention { events: Some(0), age: None }).await.unwrap();
    for cursor in cursors {
        let asked = SubscribeEventsRequest { after_cursor: Some(cursor), ..kept() };
        scene.caller(&[]).subscribe(asked).await.unwrap().until_live().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_moves_over_what_is_another_tenants() {
    let scene = Scene::with(|config| {
        config.auth.tokens = tokens();
        config.gateway.sse_heartbeat_ms = 20;
    })
    .await;
    let mut shown = scene.keyed(TRACER).after("").await;
    shown.until_live().await;
    publish(&scene.http(Some(FOREIGN)), "a", "b", &[json!(1), json!(2)]).await;
    marked(&mut shown, scene.host.host().log().bounds().newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r39_a_sixth_stream_ends_the_first_with_its_cursor() {
    let scene = Scene::with_tokens().await;
    let caller = scene.keyed(AUDITOR);
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut shown = caller.after("").await;
        shown.until_live().await;
        streams.push(shown);
    }
    publish(&scene.http(Some(OPERATOR)), "a", "b", &[json!(1)]).await;
    for shown in &mut streams {
        shown.event().await;
    }
    let mut sixth = caller.after("").await;
    sixth.until_live().await;
    let (event, reason, cursor) = streams[0].about().await;
    assert_eq!((event.as_str(), reason), ("evicted", json!({ "reason": "too many connections" })));
    assert_eq!(streams[0].next().await.unwrap(), None, "a clean end");
    publish(&scene.http(Some(OPERATOR)), "a", "b", &[json!(2)]).await;
    for shown in streams[1..].iter_mut().chain([&mut sixth]) {
        assert_eq!(data(&shown.event().await), 2, "the others go on");
    }
    let mut resumed = caller.after(&cursor.unwrap()).await;
    assert_eq!(data(&resumed.event().await), 2, "its cursor is where it was");
    // Administrators are not counted.
    let mut many = Vec::new();
    for _ in 0..7 {
        let mut shown = scene.keyed(TRACER).after("").await;
        shown.until_live().await;
        many.push(shown);
    }
    publish(&scene.http(Some(OPERATOR)), "a", "b", &[json!(3)]).await;
    for shown in &mut many {
        assert_eq!(data(&shown.event().await), 3);
    }
}

/// Membership is a tenant's own here: its border is the tenant.
#[tokio::test(flavor = "multi_thread")]
async fn r41_r42_another_tenants_events_are_never_seen() {
    let scene = Scene::with_tokens().await;
    let mut live = scene.keyed(TRACER).after("").await;
    live.until_live().await;
    let http = |token| scene.http(Some(token));
    for number in 0..20 {
        publish(&http(FOREIGN), "membership", "created", &[json!({ "of": "foreign" })]).await;
        publish(&http(OPERATOR), "membership", "created", &[json!({ "number": number })]).await;
    }
    let mut replayed = scene.keyed(TRACER).after("start").await;
    for shown in [&mut live, &mut replayed] {
        for number in 0..20 {
            assert_eq!(data(&shown.event().await), json!({ "number": number }));
        }
    }
    let mut foreign = scene.keyed(FOREIGN).after("start").await;
    let seen = foreign.events(20).await;
    assert!(seen.iter().all(|event| data(event) == json!({ "of": "foreign" })));
}

/// What is said about the stream passes the filter, which it does not in the reference.
#[tokio::test(flavor = "multi_thread")]
async fn r43_a_filter_of_kinds_leaves_out_others_and_not_what_is_about_the_stream() {
    let scene = Scene::open().await;
    for kind in ["conversation", "entry", "response", "membership"] {
        scene.publish(kind, "created", &[json!({ "id": kind })]).await;
    }
    end(&scene).await;
    let kinds = || vec!["response".to_owned(), "conversation".into(), "end".into()];
    let asked = SubscribeEventsRequest { kinds: kinds(), ..after("start") };
    let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
    assert_eq!(shown.about().await.1, json!({ "phase": "replay" }));
    assert_eq!(ids(&mut shown).await, ["conversation", "response"]);
    assert_eq!(shown.about().await.1, json!({ "phase": "live" }));
    let asked = SubscribeEventsRequest { kinds: kinds(), ..after("abc") };
    let mut lost = scene.caller(&[]).subscribe(asked).await.unwrap();
    assert_eq!(lost.about().await.1, json!({ "reason": LOST }));
}

#[tokio::test(flavor = "multi_thread")]
async fn r44_entries_of_the_channel_history_are_shown_unless_others_are_asked_for() {
    let scene = Scene::open().await;
    let channels = ["history", "context", "journal"];
    let entries: Vec<_> = channels.iter().map(|channel| entry(channel, channel, "USER")).collect();
    scene.publish("entry", "created", &entries).await;
    end(&scene).await;
    for (asked, seen) in
        [(&[][..], &["history"][..]), (&["Context", "journal"][..], &["context", "journal"][..])]
    {
        let entry_channels = asked.iter().map(|&channel| channel.to_owned()).collect();
        let asked = SubscribeEventsRequest { entry_channels, ..after("start") };
        let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
        assert_eq!(ids(&mut shown).await, seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r45_content_type_and_role_must_both_be_met() {
    let scene = Scene::open().await;
    let of_type = |id: &str, content_type: &str, role: &str| {
        let mut entry = entry(id, "history", role);
        entry["contentType"] = content_type.into();
        entry
    };
    let entries = [
        of_type("both", "history/lc4j", "AI"),
        of_type("type", "history/lc4j", "USER"),
        of_type("role", "history", "AI"),
    ];
    scene.publish("entry", "created", &entries).await;
    scene.publish("response", "created", &[json!({ "id": "other" })]).await;
    end(&scene).await;
    let asked = SubscribeEventsRequest {
        entry_content_types: vec!["history/lc4j".into()],
        entry_roles: vec!["ai".into()],
        ..after("start")
    };
    let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
    assert_eq!(ids(&mut shown).await, ["both", "other"]);
}

/// Cursors are opaque; what counts is that each goes on behind its event.
#[tokio::test(flavor = "multi_thread")]
async fn r47_events_of_the_live_tail_have_cursors_to_go_on_from() {
    let scene = Scene::open().await;
    let mut live = scene.caller(&[]).after("").await;
    live.until_live().await;
    let numbers: Vec<_> = (0..10).map(|number| json!(number)).collect();
    scene.publish("a", "b", &numbers).await;
    let events = live.events(10).await;
    for (event, number) in events.iter().zip(0..9) {
        let mut resumed = scene.caller(&[]).after(event.cursor.as_ref().unwrap()).await;
        assert_eq!(resumed.about().await.1, json!({ "phase": "replay" }));
        assert_eq!(data(&resumed.event().await), number + 1);
    }
    let mut last = scene.caller(&[]).after(events[9].cursor.as_ref().unwrap()).await;
    last.until_live().await;
}

/// The reference shows what an entity is now; here an event is what it was.
#[tokio::test(flavor = "multi_thread")]
async fn r48_replay_after_a_cursor_has_each_event_as_it_was() {
    let scene = Scene::open().await;
    let titles = ["first", "second", "third"];
    let payloads: Vec<_> = titles.iter().map(|title| json!({ "id": "c", "title": title })).collect();
    scene.publish("conversation", "updated", &payloads).await;
    let first = scene.caller(&[]).after("start").await.event().await;
    for detail in ["full", "summary", ""] {
        let cursor = first.cursor.as_ref().unwrap();
        let asked = SubscribeEventsRequest { detail: Some(detail.into()), ..after(cursor) };
        let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
        let seen: Vec<_> = shown.events(2).await.iter().map(data).collect();
        assert_eq!(seen, payloads[1..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r49_replay_honours_the_filter_of_channels() {
    let scene = Scene::open().await;
    let entries = [entry("one", "history", "USER"), entry("two", "context", "USER")];
    scene.publish("entry", "created", &entries).await;
    end(&scene).await;
    let asked = SubscribeEventsRequest { entry_channels: vec!["context".into()], ..after("start") };
    let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
    assert_eq!(ids(&mut shown).await, ["two"], "exactly one");
}

#[tokio::test(flavor = "multi_thread")]
async fn r50_an_administrator_and_an_auditor_see_events_of_others() {
    let scene = Scene::with_tokens().await;
    publish(&scene.http(Some(OPERATOR)), "entry", "created", &[entry("e", "history", "USER")]).await;
    for token in [TRACER, AUDITOR] {
        for justification in [None, Some("audit 7".to_owned())] {
            for scope in [EventScope::Admin, EventScope::Authorized, EventScope::Unspecified] {
                let asked = SubscribeEventsRequest {
                    scope: Some(scope.into()),
                    justification: justification.clone(),
                    ..after("start")
                };
                let mut shown = scene.keyed(token).subscribe(asked).await.unwrap();
                assert_eq!(data(&shown.event().await)["id"], "e", "{token} {scope:?}");
            }
        }
    }
}

/// A stream that can only say that its cursor is lost.
async fn is_lost(caller: &Caller, cursor: &str) {
    let mut shown = caller.after(cursor).await;
    let (event, reason, none) = shown.about().await;
    assert_eq!((event.as_str(), reason, none), ("invalidate", json!({ "reason": LOST }), None), "{cursor}");
    assert_eq!(shown.next().await.unwrap(), None, "a clean end");
}

/// A reader that has everything is not told that it has lost anything, which it is in the reference.
#[tokio::test(flavor = "multi_thread")]
async fn r51_a_cursor_that_is_not_held_is_told_in_band() {
    let scene = Scene::open().await;
    let caller = scene.caller(&[]);
    let numbers: Vec<_> = (0..10).map(|number| json!(number)).collect();
    scene.publish("a", "b", &numbers).await;
    let events = caller.after("start").await.events(10).await;
    let cursors: Vec<_> = events.iter().map(|event| event.cursor.clone().unwrap()).collect();
    let (epoch, newest) = cursors[9].split_once('.').unwrap();
    let newest: u64 = newest.parse().unwrap();
    for wrong in ["abc", "7", "0", &format!("{epoch}.{}", newest + 1), &format!("x{epoch}.1"), "a.b.c"] {
        is_lost(&caller, wrong).await;
    }
    scene.host.host().log().trim(Retention { events: Some(3), age: None }).await.unwrap();
    is_lost(&caller, &cursors[0]).await;
    let mut oldest = caller.after("start").await;
    assert_eq!(data(&oldest.event().await), 7);
    scene.host.host().log().trim(Retention { events: Some(0), age: None }).await.unwrap();
    let mut caught_up = caller.after(&cursors[9]).await;
    caught_up.until_live().await;
    scene.publish("a", "b", &[json!(10)]).await;
    assert_eq!(data(&caught_up.event().await), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn r52_response_events_are_what_they_were() {
    let scene = Scene::open().await;
    let payload =
        json!({ "conversation": "c", "conversation_group": "g", "recording": "r", "status": "started" });
    scene.publish("response", "created", std::slice::from_ref(&payload)).await;
    let event = scene.caller(&[]).after("start").await.event().await;
    assert_eq!((event.kind.as_str(), event.event.as_str(), data(&event)), ("response", "created", payload));
}

#[tokio::test(flavor = "multi_thread")]
async fn r53_the_stream_of_a_refused_caller_carries_a_status_and_no_event() {
    let scene = Scene::with_tokens().await;
    publish(&scene.http(Some(OPERATOR)), "a", "b", &[json!(1)]).await;
    for (caller, code) in [
        (scene.caller(&[]), Code::Unauthenticated),
        (scene.keyed("nobodys-token"), Code::Unauthenticated),
        (scene.keyed(WRITER), Code::PermissionDenied),
    ] {
        let refused = caller.subscribe(after("start")).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    let status = scene.caller(&[]).subscribe(after("")).await.unwrap_err();
    assert_eq!(status.message(), "missing authorization");
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_that_are_asked_for_leave_others_out() {
    let scene = Scene::open().await;
    let of = |id: &str, conversation: &str| json!({ "id": id, "conversation": conversation });
    scene.publish("response", "created", &[of("1", "c"), of("2", "d"), json!({ "id": "3" })]).await;
    scene.publish("response", "created", &[of("4", "e"), of("5", "c")]).await;
    let asked = SubscribeEventsRequest { conversation_ids: vec!["c".into(), "e".into()], ..after("start") };
    let mut shown = scene.caller(&[]).subscribe(asked).await.unwrap();
    let seen: Vec<_> = shown.events(3).await.iter().map(|event| data(event)["id"].clone()).collect();
    assert_eq!(seen, ["1", "4", "5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_number_beyond_2_53_is_exact_in_a_stream() {
    let scene = Scene::open().await;
    let line =
        r#"{"aggregate":"a","agg_id":"1","version":1,"type":"a.b","payload":{ "n": 9007199254740993 }}"#;
    scene.host.client.publish(format!("{line}\n")).await.unwrap();
    let event = scene.caller(&[]).after("start").await.event().await;
    assert_eq!(event.data, br#"{ "n": 9007199254740993 }"#);
}
