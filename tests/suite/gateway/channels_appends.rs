//! Claims about appends on `GET /v1/channels/ws`: in their order, many under way at once, each answered, and bounded.

use std::time::Duration;

use millrace::channels::{ChannelLimits, ChannelOptions, EntryType, Gaps};
use millrace::limits::{
    CHANNEL_SOCKET_APPEND_BYTES, CHANNEL_SOCKET_APPENDS_MAX, CHANNEL_SOCKET_APPENDS_READ_MAX,
};
use millrace_tests::channel_socket::BinaryAppend;
use millrace_tests::gated_channels::Gate;
use millrace_tests::until;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::channels_scene::{Scene, channel, gated, gated_with, memory, unlimited};

/// An append to channel `slow`.
fn slow(reference: usize) -> Value {
    json!({ "op": "append", "ref": reference, "process": "work", "channel": "slow" })
}

#[tokio::test]
async fn appends_reach_the_log_in_the_order_in_which_they_were_sent_and_are_answered_so() {
    let scene = Scene::durable().await;
    scene.process("work", &["a", "b"]).await;
    let mut socket = scene.socket("sub").await;
    // In turns to two channels, and none of them waited for; no more than the store takes of one process at once.
    let count = 400;
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
async fn a_thousand_appends_that_wait_for_no_answer_are_all_answered_in_their_order() {
    let (scene, store) = gated(&[]).await;
    // Nothing but their order on the socket keeps the end behind its data here.
    let options = ChannelOptions { gaps: Gaps::Arrival, ..ChannelOptions::default() };
    scene.process_with("job", &["out"], options).await;
    store.shut("out", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    let append = |number: usize| json!({ "op": "append", "ref": number, "process": "job", "channel": "out" });
    let count = 1_000;
    for number in 1..=count {
        socket.say(&append(number)).await;
    }
    let mut end = append(count + 1);
    end["type"] = "end".into();
    socket.say(&end).await;
    until("the store has many", || store.waiting() == CHANNEL_SOCKET_APPENDS_MAX).await;
    store.open();
    for number in 1..=count + 1 {
        let answer = socket.next_of(&["appended", "error"]).await;
        let place = json!([{ "position": number, "sequence": number, "epoch": 0, "repeated": false }]);
        assert_eq!((&answer["ref"], &answer["appended"]), (&json!(number), &place), "{answer}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn what_the_store_does_not_take_yet_waits_in_its_order_and_all_else_is_heard_meanwhile() {
    let (scene, store) = gated(&["slow", "quick"]).await;
    scene.fill(&channel("work", "quick"), 5).await;
    store.shut("slow", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    socket.subscribe("a", "work", "quick", json!({ "credit": 0 })).await;
    let (max, read) = (CHANNEL_SOCKET_APPENDS_MAX, CHANNEL_SOCKET_APPENDS_READ_MAX);
    for number in 0..max + 10 {
        socket.say(&slow(number)).await;
    }
    until("as many are under way as may be", || store.waiting() == max).await;
    socket.give_credit("a", 5).await;
    socket.until_entries("a", 5).await;
    socket.say(&json!({ "op": "unsubscribe", "id": "a" })).await;
    assert_eq!(socket.until_closed("a").await, "unsubscribed");
    assert_eq!(socket.round_trip("heard").await, Vec::<Value>::new());
    // More than the host keeps: what comes behind them is read once some of them are answered.
    let count = read + 10;
    for number in max + 10..count {
        socket.say(&slow(number)).await;
    }
    socket.say(&json!({ "op": "ping", "nonce": "behind" })).await;
    store.open();
    let mut answered = 0;
    let mut at_ping = None;
    while answered < count || at_ping.is_none() {
        let message = socket.next_of(&["appended", "error", "heartbeat"]).await;
        if message["op"] != "heartbeat" {
            let told = (&message["ref"], &message["appended"][0]["position"]);
            assert_eq!(told, (&json!(answered), &json!(answered + 1)), "{message}");
            answered += 1;
        } else if message["nonce"] == "behind" {
            at_ping = Some(answered);
        }
    }
    assert!(at_ping > Some(count - read), "{at_ping:?}");
    assert_eq!(store.waiting_max(), max);
    scene.stop().await;
}

#[tokio::test]
async fn appends_under_way_are_bound_in_bytes_too() {
    let (scene, store) = gated(&["slow"]).await;
    store.shut("slow", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    let payload = vec![7; 1 << 20];
    let (fit, count) = (CHANNEL_SOCKET_APPEND_BYTES / payload.len(), 20);
    let send = async {
        for reference in 0..count {
            let out = BinaryAppend { process: "work", channel: "slow", ..BinaryAppend::default() };
            let append = BinaryAppend { reference, payload: Some(&payload), ..out };
            // It is not read by the host before others are answered.
            socket.send(Message::binary(append.to_bytes())).await;
        }
    };
    let open = async {
        until("as much is under way as may be", || store.waiting() == fit).await;
        store.open();
    };
    tokio::join!(send, open);
    for reference in 0..count {
        let answer = socket.next_of(&["appended", "error"]).await;
        assert_eq!((&answer["op"], &answer["ref"]), (&json!("appended"), &json!(reference)), "{answer}");
    }
    assert_eq!(store.waiting_max(), fit);
    scene.stop().await;
}

/// Its pings could not be answered: the answers would not be read.
#[tokio::test]
async fn a_client_that_is_not_read_from_is_not_given_up() {
    let (scene, store) = gated_with(&["slow"], |options| {
        options.sse_heartbeat = Duration::from_millis(20);
    })
    .await;
    store.shut("slow", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    let count = CHANNEL_SOCKET_APPENDS_READ_MAX;
    for number in 0..count {
        socket.say(&slow(number)).await;
    }
    until("as many are under way as may be", || store.waiting() == CHANNEL_SOCKET_APPENDS_MAX).await;
    // After two pings without an answer it would be, and there is one with each of these.
    for _ in 0..6 {
        socket.hear("heartbeat").await;
    }
    store.open();
    for number in 0..count {
        assert_eq!(socket.hear("appended").await["ref"], number);
    }
    assert_eq!(socket.round_trip("read again").await, Vec::<Value>::new());
    scene.stop().await;
}

#[tokio::test]
async fn an_entry_that_waits_for_its_forerunner_is_answered_in_its_place() {
    let limits = ChannelLimits { hold: Duration::from_secs(600), ..unlimited() };
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
