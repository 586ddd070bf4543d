//! Claims about how entries flow on `GET /v1/channels/ws`: whole, in order, with credit, and side by side. How appends do
//! is in `channels_appends`.

use millrace::channels::{ChannelOptions, WhenFull};
use millrace::limits::{
    CHANNEL_SOCKET_OPENS_MAX, CHANNEL_SOCKET_READS_MAX, CHANNEL_SOCKET_SUBSCRIPTIONS_MAX,
};
use millrace_tests::channel_socket::{CREDIT, ChannelSocket};
use millrace_tests::gated_channels::Gate;
use millrace_tests::until;
use serde_json::{Value, json};

use super::channels_scene::{Scene, channel, gated, process};

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
    let mut lagged = socket.follow("a").lagged.clone();
    let cursor = lagged[0]["cursor"].take();
    assert!(cursor.as_str().is_some_and(|cursor| cursor.ends_with(".15")), "{cursor}");
    let told =
        json!([{ "op": "lagged", "id": "a", "resume_at": 16, "cursor": null, "missed": 15, "behind": 5 }]);
    assert_eq!(json!(lagged), told);
    scene.stop().await;
}

#[tokio::test]
async fn subscriptions_that_are_being_opened_hold_up_nothing_else() {
    let slow: Vec<String> =
        (0..CHANNEL_SOCKET_OPENS_MAX + 2).map(|number| format!("slow-{number}")).collect();
    let mut names: Vec<&str> = slow.iter().map(String::as_str).collect();
    names.push("quick");
    let (scene, store) = gated(&names).await;
    scene.fill(&channel("work", "quick"), 5).await;
    let mut socket = scene.socket("sub").await;
    socket.subscribe("a", "work", "quick", json!({ "credit": 0 })).await;
    for name in &slow {
        store.shut(name, Gate::HeadsWait);
        socket.ask(name, "work", name, json!({})).await;
    }
    // All that is said behind them is heard.
    socket.give_credit("a", 5).await;
    socket.until_entries("a", 5).await;
    socket
        .say(&json!({ "op": "append", "ref": 1, "process": "work", "channel": "quick", "text": "x" }))
        .await;
    assert_eq!(socket.hear("appended").await["appended"][0]["position"], 6);
    assert_eq!(socket.round_trip("heard").await, Vec::<Value>::new());
    // One that is being opened and one that waits for that can be ended.
    let (first, last) = (&slow[0], &slow[slow.len() - 1]);
    for name in [first, last] {
        socket.say(&json!({ "op": "unsubscribe", "id": name })).await;
        assert_eq!(socket.until_closed(name).await, "unsubscribed");
    }
    store.open();
    for name in &slow[1..slow.len() - 1] {
        socket.until(name, |follow| follow.ready.is_some()).await;
    }
    for name in [first, last] {
        let left = || scene.channels.subscriber_count(&channel("work", name)) == 0;
        until("nobody follows what was ended", left).await;
        assert_eq!(socket.follow(name).ready, None);
        socket.subscribe(name, "work", name, json!({})).await;
    }
    scene.stop().await;
}

/// The client reads nothing before both were asked for, and the large log is more than what lies between it and the host.
/// So both have something to say all the time, whoever is quicker.
#[tokio::test]
async fn subscriptions_of_a_socket_take_turns() {
    let scene = Scene::start().await;
    scene.process("work", &["large", "small"]).await;
    let (large, count) = ("x".repeat(1 << 20), 32);
    for _ in 0..count {
        scene.append(&channel("work", "large"), "sub", &[&large]).await;
    }
    // More than one turn gives.
    scene.fill(&channel("work", "small"), 600).await;
    for binary in [false, true] {
        let mut socket = scene.socket("obs").await;
        for id in ["large", "small"] {
            socket.ask(id, "work", id, json!({ "credit": 1_000, "binary": binary })).await;
        }
        socket.until_entries("small", 600).await;
        let sent = socket.follow("large").entries.len();
        assert!(sent < count, "the small one had to wait for the whole of the large one");
        // Nor does a small one have all turns.
        socket.until_entries("large", count).await;
    }
    // With credit for one entry at a time, each is given one in turn.
    let mut socket = scene.socket("obs").await;
    for id in ["large", "small"] {
        socket.subscribe(id, "work", id, json!({ "credit": 0 })).await;
    }
    for round in 1..=5 {
        for id in ["large", "small"] {
            socket.give_credit(id, 1).await;
        }
        for id in ["large", "small"] {
            socket.until_entries(id, round).await;
        }
    }
    scene.stop().await;
}
