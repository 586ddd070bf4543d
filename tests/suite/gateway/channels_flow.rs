//! Claims about how entries and appends flow on `GET /v1/channels/ws`: whole, in order, with credit, and side by side.

use std::sync::Arc;

use millrace::channels::{ChannelLimits, ChannelOptions, EntryType, Gaps, WhenFull};
use millrace::limits::{
    CHANNEL_SOCKET_APPENDS_MAX, CHANNEL_SOCKET_READS_MAX, CHANNEL_SOCKET_SUBSCRIPTIONS_MAX,
};
use millrace_tests::channel_socket::{BinaryAppend, CREDIT, ChannelSocket};
use millrace_tests::gated_channels::{Gate, GatedChannels};
use millrace_tests::until;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::channels_scene::{Scene, channel, memory, process, unlimited};

/// A gateway over a store that can be held up, with process `work`.
async fn gated(channels: &[&str]) -> (Scene, GatedChannels) {
    let store = GatedChannels::new(memory(unlimited()));
    let scene = Scene::over(Arc::new(store.clone()), |_| {}).await;
    scene.process("work", channels).await;
    (scene, store)
}

fn payloads(socket: &mut ChannelSocket, id: &str) -> Vec<String> {
    let entries = &socket.follow(id).entries;
    entries.iter().map(|entry| entry["payload"].as_str().expect("a payload").to_owned()).collect()
}

/// Followers that begin at different places while others append have the same in the end, each entry once.
async fn replay_meets_what_comes(scene: &Scene, count: usize) {
    let out = channel("work", "out");
    scene.process("work", &["out"]).await;
    scene.fill(&out, count / 2).await;
    let appends = async {
        for number in 0..count / 2 {
            let text = number.to_string();
            scene.append(&out, if number % 3 == 0 { "exe" } else { "sub" }, &[&text]).await;
            tokio::task::yield_now().await;
        }
    };
    let follows = async {
        let mut sockets = Vec::new();
        for number in 0..12 {
            let mut socket = scene.socket("obs").await;
            let with = json!({ "after": number * 10, "credit": count, "binary": number % 2 == 0 });
            socket.subscribe("a", "work", "out", with).await;
            // Some have read little when others begin.
            socket.until_entries("a", number * 5).await;
            sockets.push(socket);
        }
        sockets
    };
    let ((), mut sockets) = tokio::join!(appends, follows);
    for socket in &mut sockets {
        // The client fails where one is missing or comes twice.
        socket.until("a", |follow| follow.last == count as u64).await;
    }
    let (first, second) = sockets.split_at_mut(1);
    let whole = first[0].follow("a").entries.clone();
    assert_eq!(whole.len(), count);
    assert_eq!(second[0].follow("a").entries, whole[10..], "the same for everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_and_what_comes_meet_without_hole_or_repeat() {
    let scene = Scene::start().await;
    replay_meets_what_comes(&scene, 2_000).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_and_what_comes_meet_in_the_durable_store() {
    // Within what the store's own bounds let one process append at once.
    let scene = Scene::durable().await;
    replay_meets_what_comes(&scene, 400).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_subscription_is_sent_its_credit_and_not_one_entry_more() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let out = channel("work", "out");
    scene.fill(&out, 300).await;
    let mut socket = scene.socket("sub").await;
    // The client fails when more comes than there is credit.
    socket.subscribe("none", "work", "out", json!({ "credit": 0 })).await;
    socket.subscribe("some", "work", "out", json!({ "credit": 3 })).await;
    socket.subscribe("usual", "work", "out", json!({})).await;
    socket.until_entries("some", 3).await;
    socket.until_entries("usual", usize::try_from(CREDIT).expect("small")).await;
    scene.append(&out, "exe", &["live"]).await;
    assert_eq!(socket.round_trip("one").await, Vec::<Value>::new());
    let counts = |socket: &mut ChannelSocket| {
        ["none", "some", "usual"].map(|id| socket.follow(id).entries.len() as u64)
    };
    assert_eq!(counts(&mut socket), [0, 3, CREDIT]);
    for (id, add) in [("none", 1), ("some", 5), ("usual", 1_000)] {
        socket.give_credit(id, add).await;
    }
    socket.until_entries("none", 1).await;
    socket.until_entries("some", 8).await;
    socket.until_entries("usual", 301).await;
    assert_eq!(socket.round_trip("two").await, Vec::<Value>::new());
    assert_eq!(counts(&mut socket), [1, 8, 301]);
    // Too much is refused, and changes nothing.
    for (id, add) in [("some", 1_000_001), ("usual", 999_500)] {
        socket.say(&json!({ "op": "credit", "id": id, "add": add })).await;
        let error = socket.hear("error").await;
        assert_eq!((&error["code"], &error["id"]), (&json!("channel_credit_max"), &json!(id)), "{error}");
    }
    socket.give_credit("some", 1).await;
    socket.until_entries("some", 9).await;
    assert_eq!(socket.round_trip("three").await, Vec::<Value>::new());
    assert_eq!(counts(&mut socket), [1, 9, 301]);
    scene.stop().await;
}

#[tokio::test]
async fn what_has_no_credit_is_kept_until_it_has_and_the_end_comes_behind_it() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    scene.fill(&channel("work", "out"), 5).await;
    let mut socket = scene.socket("exe").await;
    socket.subscribe("a", "work", "out", json!({ "credit": 2 })).await;
    socket.until_entries("a", 2).await;
    scene.close("work").await;
    assert_eq!(socket.round_trip("one").await, Vec::<Value>::new());
    assert_eq!(socket.follow("a").closed, None, "three entries come before it");
    socket.give_credit("a", 3).await;
    assert_eq!(socket.until_closed("a").await, "success");
    assert_eq!(socket.follow("a").entries.len(), 5);
    // Who has everything needs no credit to learn that nothing more comes.
    socket.subscribe("b", "work", "out", json!({ "after": 5, "credit": 0 })).await;
    assert_eq!(socket.until_closed("b").await, "success");
    scene.stop().await;
}

#[tokio::test]
async fn a_follower_that_was_cut_off_goes_on_after_its_last_entry() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let out = channel("work", "out");
    scene.fill(&out, 100).await;
    let mut had = Vec::new();
    let mut after = 0;
    for round in 0..5 {
        let mut socket = scene.socket("obs").await;
        socket.subscribe("a", "work", "out", json!({ "after": after, "credit": 1_000 })).await;
        scene.fill(&out, 10).await;
        socket.until_entries("a", 17 + round).await;
        // Whatever else was sent is lost with the socket.
        had.extend(socket.follow("a").entries.iter().take(17 + round).cloned());
        after = had.last().expect("an entry")["position"].as_u64().expect("a position");
    }
    let positions: Vec<u64> = had.iter().map(|entry| entry["position"].as_u64().expect("one")).collect();
    assert_eq!(positions, (1..=95).collect::<Vec<_>>());
    scene.stop().await;
}

#[tokio::test]
async fn two_hundred_subscriptions_share_a_socket_and_each_has_its_own() {
    let scene = Scene::start().await;
    let names: Vec<String> = (0..100).map(|number| format!("out-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut socket = scene.socket("root").await;
    let mut all = Vec::new();
    for of in ["one", "two"] {
        scene.process(of, &names).await;
        for name in &names {
            let id = format!("{of}/{name}");
            socket.ask(&id, of, name, json!({ "binary": all.len() % 2 == 0 })).await;
            all.push((id, channel(of, name)));
        }
    }
    for (id, out) in &all {
        socket.until(id, |follow| follow.ready.is_some()).await;
        scene.append(out, "sub", &[id.as_str()]).await;
        scene.append(out, "exe", &["2"]).await;
    }
    for (id, out) in &all {
        socket.until_entries(id, 2).await;
        let own = millrace_tests::channel_socket::base64(id.as_bytes());
        assert_eq!(payloads(&mut socket, id), [own, "Mg==".to_owned()]);
        assert_eq!(scene.channels.subscriber_count(out), 1);
    }
    for (id, _) in &all[..150] {
        socket.say(&json!({ "op": "unsubscribe", "id": id })).await;
        assert_eq!(socket.until_closed(id).await, "unsubscribed");
    }
    let followers = || all.iter().map(|(_, out)| scene.channels.subscriber_count(out)).sum::<usize>();
    assert_eq!(followers(), 50);
    drop(socket);
    until("a lost client's are over", || followers() == 0).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_socket_has_as_many_subscriptions_as_it_may() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("sub").await;
    for number in 0..CHANNEL_SOCKET_SUBSCRIPTIONS_MAX {
        socket.ask(&number.to_string(), "work", "out", json!({})).await;
    }
    let more = json!({ "op": "subscribe", "id": "more", "process": "work", "channel": "out" });
    socket.say(&more).await;
    let error = socket.hear("error").await;
    assert_eq!((&error["code"], &error["id"]), (&json!("channel_socket_subscriptions_max"), &json!("more")));
    socket.say(&json!({ "op": "subscribe", "id": "7", "process": "work", "channel": "out" })).await;
    assert_eq!(socket.hear("error").await["code"], "subscription_taken");
    scene.append(&channel("work", "out"), "sub", &["x"]).await;
    for number in 0..CHANNEL_SOCKET_SUBSCRIPTIONS_MAX {
        socket.until_entries(&number.to_string(), 1).await;
    }
    socket.say(&json!({ "op": "unsubscribe", "id": "7" })).await;
    socket.until_closed("7").await;
    socket.subscribe("more", "work", "out", json!({})).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let out = channel("work", "out");
    let mut slow = scene.socket("obs").await;
    slow.subscribe("a", "work", "out", json!({ "credit": 1_000 })).await;
    let mut quick = scene.socket("exe").await;
    quick.subscribe("a", "work", "out", json!({ "credit": 1_000 })).await;
    // More than any socket's buffers hold, of which one reads nothing.
    let large = "x".repeat(1 << 20);
    for number in 1..=24 {
        scene.append(&out, "sub", &[&large]).await;
        quick.until_entries("a", number).await;
    }
    slow.until_entries("a", 24).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_log_that_is_slow_or_fails_holds_up_no_other_subscription_of_the_socket() {
    let slow: Vec<String> =
        (0..CHANNEL_SOCKET_READS_MAX + 2).map(|number| format!("slow-{number}")).collect();
    let mut names: Vec<&str> = slow.iter().map(String::as_str).collect();
    names.extend(["quick", "broken"]);
    let (scene, store) = gated(&names).await;
    for name in &names {
        scene.fill(&channel("work", name), 5).await;
    }
    for name in &slow {
        store.shut(name, Gate::ReadsWait);
    }
    store.shut("broken", Gate::ReadsFail);
    let mut socket = scene.socket("exe").await;
    socket.subscribe("broken", "work", "broken", json!({})).await;
    let error = socket.hear("error").await;
    assert_eq!((&error["code"], &error["id"]), (&json!("storage_failed"), &json!("broken")));
    assert_eq!(socket.until_closed("broken").await, "interrupted");
    for name in &slow {
        socket.subscribe(name, "work", name, json!({})).await;
    }
    // All places of reads are taken: what is in memory needs none.
    socket.subscribe("quick", "work", "quick", json!({ "after": 5 })).await;
    scene.append(&channel("work", "quick"), "sub", &["x"]).await;
    socket.until_entries("quick", 1).await;
    // And one that waits for its read can be ended.
    for name in &slow[..2] {
        socket.say(&json!({ "op": "unsubscribe", "id": name })).await;
        assert_eq!(socket.until_closed(name).await, "unsubscribed");
    }
    store.open();
    for name in &slow[2..] {
        socket.until_entries(name, 5).await;
    }
    assert!(slow[..2].iter().all(|name| socket.follows[name].entries.is_empty()));
    scene.stop().await;
}

#[tokio::test]
async fn whoever_waits_for_a_read_has_its_turn_when_those_before_it_need_none() {
    let names: Vec<String> =
        (0..3 * CHANNEL_SOCKET_READS_MAX).map(|number| format!("out-{number}")).collect();
    // The first ones read; as many wait and will have nothing to read; the others wait behind them.
    let (gone, stay) = names.split_at(2 * CHANNEL_SOCKET_READS_MAX);
    let (scene, store) = gated(&[]).await;
    let mut socket = scene.socket("exe").await;
    for (of, names) in [("gone", gone), ("stay", stay)] {
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        scene.process(of, &all).await;
        for name in names {
            scene.fill(&channel(of, name), 5).await;
            store.shut(name, Gate::ReadsWait);
            socket.subscribe(name, of, name, json!({})).await;
        }
    }
    assert!(scene.channels.cleanup_process(&process("gone")).await.expect("removed"));
    store.open();
    for name in stay {
        socket.until_entries(name, 5).await;
    }
    for name in gone {
        assert_eq!(socket.until_closed(name).await, "removed");
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_follower_that_missed_something_is_told_how_much() {
    let scene = Scene::start().await;
    let options = ChannelOptions { full: WhenFull::DropOldest, entries_max: 5, ..ChannelOptions::default() };
    scene.process_with("work", &["out"], options).await;
    let mut socket = scene.socket("exe").await;
    socket.subscribe("a", "work", "out", json!({ "credit": 0 })).await;
    for number in 1..=20 {
        scene.append(&channel("work", "out"), "sub", &[&number.to_string()]).await;
    }
    socket.give_credit("a", 5).await;
    socket.until_entries("a", 5).await;
    let lagged = json!([{ "op": "lagged", "id": "a", "resume_at": 16, "missed": 15, "behind": 5 }]);
    assert_eq!(json!(socket.follow("a").lagged), lagged);
    scene.stop().await;
}

#[tokio::test]
async fn appends_reach_the_log_in_the_order_in_which_they_were_sent_and_are_answered_so() {
    let scene = Scene::durable().await;
    scene.process("work", &["a", "b"]).await;
    let mut socket = scene.socket("sub").await;
    // As many as may be under way at once, in turns to two channels, and none of them waited for.
    let count = CHANNEL_SOCKET_APPENDS_MAX as u64;
    for number in 0..count {
        let channel = ["a", "b"][usize::try_from(number % 2).expect("small")];
        if number % 5 == 0 {
            let payload = number.to_string();
            let append = BinaryAppend {
                reference: number,
                process: "work",
                channel,
                payload: Some(payload.as_bytes()),
                ..BinaryAppend::default()
            };
            socket.send(Message::binary(append.to_bytes())).await;
        } else {
            let text = number.to_string();
            let append =
                json!({ "op": "append", "ref": number, "process": "work", "channel": channel, "text": text });
            socket.say(&append).await;
        }
    }
    let mut next = [0, 1];
    for _ in 0..count {
        let answer = socket.hear("appended").await;
        let number = answer["ref"].as_u64().expect("a number");
        let lane = usize::try_from(number % 2).expect("small");
        assert_eq!(number, next[lane], "answers of one channel come in order");
        next[lane] += 2;
        assert_eq!(answer["appended"][0]["position"], number / 2 + 1, "{answer}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn an_answer_waits_for_those_before_it_of_its_sender_and_channel_only() {
    let (scene, store) = gated(&["slow", "quick"]).await;
    store.shut("slow", Gate::AnswersWait);
    let mut socket = scene.socket("root").await;
    let append = |reference: u64, channel: &str, party: &str| json!({ "op": "append", "ref": reference, "process": "work", "channel": channel, "as": party, "text": "x" });
    for (reference, channel, party) in
        [(1, "slow", "sub"), (2, "slow", "sub"), (3, "quick", "sub"), (4, "slow", "exe")]
    {
        socket.say(&append(reference, channel, party)).await;
    }
    // The store has all of them, and has answered one.
    assert_eq!(socket.hear("appended").await["ref"], 3);
    until("the others are there, too", || store.waiting() == 3).await;
    // What is refused at once waits for nobody, what the log refuses does.
    socket.say(&json!({ "op": "append", "ref": 5, "process": "work", "channel": "none", "as": "sub" })).await;
    assert_eq!(socket.hear("error").await["ref"], 5);
    store.open();
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(socket.hear("appended").await["ref"].as_u64().expect("a number"));
    }
    order.retain(|reference| *reference != 4);
    assert_eq!(order, [1, 2]);
    scene.stop().await;
}

#[tokio::test]
async fn no_more_appends_are_under_way_than_may_be_and_all_else_is_heard_meanwhile() {
    let (scene, store) = gated(&["slow", "quick"]).await;
    scene.fill(&channel("work", "quick"), 5).await;
    store.shut("slow", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    socket.subscribe("a", "work", "quick", json!({ "credit": 0 })).await;
    let append =
        |number: usize| json!({ "op": "append", "ref": number, "process": "work", "channel": "slow" });
    let max = CHANNEL_SOCKET_APPENDS_MAX;
    for number in 0..max + 10 {
        socket.say(&append(number)).await;
    }
    for number in max..max + 10 {
        let error = socket.hear("error").await;
        let told = (&error["code"], &error["ref"], &error["max"]);
        assert_eq!(told, (&json!("channel_socket_appends_max"), &json!(number), &json!(max)), "{error}");
    }
    until("as many are under way as may be", || store.waiting() == max).await;
    socket.give_credit("a", 5).await;
    socket.until_entries("a", 5).await;
    socket.say(&json!({ "op": "unsubscribe", "id": "a" })).await;
    assert_eq!(socket.until_closed("a").await, "unsubscribed");
    assert_eq!(socket.round_trip("heard").await, Vec::<Value>::new());
    store.open();
    for number in 0..max {
        assert_eq!(socket.hear("appended").await["ref"], number);
    }
    assert_eq!(store.waiting_max(), max);
    // Then there is room again, and what was refused was not appended.
    socket.say(&append(max)).await;
    let answer = socket.hear("appended").await;
    assert_eq!(answer["appended"][0]["position"], max + 1, "{answer}");
    scene.stop().await;
}

#[tokio::test]
async fn an_entry_that_waits_for_its_forerunner_is_answered_in_its_place() {
    let limits = ChannelLimits { hold: std::time::Duration::from_secs(600), ..unlimited() };
    let scene = Scene::over(memory(limits), |_| {}).await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("exe").await;
    let append = |reference: u64, sequence: u64| json!({ "op": "append", "ref": reference, "process": "work", "channel": "out", "sequence": sequence });
    for (reference, sequence) in [(1, 3), (2, 2), (3, 1)] {
        socket.say(&append(reference, sequence)).await;
    }
    for (reference, position) in [(1, 3), (2, 2), (3, 1)] {
        let answer = socket.hear("appended").await;
        assert_eq!(
            (&answer["ref"], &answer["appended"][0]["position"]),
            (&json!(reference), &json!(position))
        );
    }
    scene.stop().await;
}

#[tokio::test]
async fn what_the_log_refuses_is_answered_in_its_place_and_stops_nothing() {
    let scene = Scene::start().await;
    let options = ChannelOptions { gaps: Gaps::Report, ..ChannelOptions::default() };
    scene.process_with("work", &["out"], options).await;
    let mut socket = scene.socket("exe").await;
    let append = |reference: u64, with: Value| {
        let mut command = json!({ "op": "append", "ref": reference, "process": "work", "channel": "out" });
        command.as_object_mut().expect("an object").extend(with.as_object().cloned().unwrap_or_default());
        command
    };
    for (reference, with) in [
        (1, json!({ "sequence": 1 })),
        (2, json!({ "sequence": 3 })),
        (3, json!({ "sequence": 1 })),
        (4, json!({ "sequence": 1, "text": "another" })),
        (5, json!({ "sequence": 2, "type": "end" })),
        (6, json!({ "text": "late" })),
    ] {
        socket.say(&append(reference, with)).await;
    }
    let errors = [(2, "channel_sequence_gap"), (4, "channel_sequence_taken"), (6, "channel_half_closed")];
    for (reference, code) in errors {
        let error = socket.hear("error").await;
        assert_eq!((&error["ref"], &error["code"]), (&json!(reference), &json!(code)), "{error}");
    }
    for (reference, repeated) in [(1, false), (3, true), (5, false)] {
        let answer = socket.hear("appended").await;
        assert_eq!(
            (&answer["ref"], &answer["appended"][0]["repeated"]),
            (&json!(reference), &json!(repeated))
        );
    }
    let page =
        scene.channels.read_after(&channel("work", "out"), &millrace::channels::Actor::Host, 0, 0).await;
    let types: Vec<_> = page.expect("a page").entries.iter().map(|entry| entry.entry_type).collect();
    assert_eq!(types, [EntryType::Data, EntryType::End]);
    scene.stop().await;
}
