//! Claims about appends on `GET /v1/channels/ws`: in their order, many under way at once, each answered, and bounded.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::channels::{Actor, ChannelLimits, ChannelOptions, EntryType, Gaps};
use millrace::limits::{
    CHANNEL_SOCKET_APPEND_BYTES, CHANNEL_SOCKET_APPENDS_MAX, CHANNEL_SOCKET_APPENDS_READ_MAX,
};
use millrace_tests::channel_socket::BinaryAppend;
use millrace_tests::gated_channels::Gate;
use millrace_tests::until;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
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
    let page = scene.channels.read_after(&channel("work", "out"), &Actor::Host, 0, 0).await;
    let types: Vec<_> = page.expect("a page").entries.iter().map(|entry| entry.entry_type).collect();
    assert_eq!(types, [EntryType::Data, EntryType::End]);
    scene.stop().await;
}

#[tokio::test]
async fn appends_that_come_together_are_answered_together() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut reader = scene.socket("exe").await;
    reader.subscribe("a", "work", "out", json!({ "binary": true })).await;
    let mut socket = scene.socket("sub").await;
    let writes = || {
        let text = handle.render();
        let line = text.lines().find_map(|line| line.strip_prefix("millrace_channel_socket_writes_total "));
        line.map_or(0, |number| number.parse::<u64>().expect("a number"))
    };
    let (before, count) = (writes(), 60);
    let mut appends = Vec::new();
    for reference in 1..=count {
        let out = BinaryAppend { process: "work", channel: "out", ..BinaryAppend::default() };
        let append = BinaryAppend { reference, sequence: reference, payload: Some(b"x"), ..out }.to_bytes();
        // Masked with zeros, and short.
        let length = u8::try_from(append.len()).ok().filter(|length| *length < 126).expect("short");
        appends.extend_from_slice(&[0x82, 0x80 | length, 0, 0, 0, 0]);
        appends.extend_from_slice(&append);
    }
    socket.socket.get_mut().write_all(&appends).await.expect("the gateway reads");
    for number in 1..=count {
        let answer = socket.hear("appended").await;
        let place = json!([{ "position": number, "sequence": number, "epoch": 0, "repeated": false }]);
        assert_eq!((&answer["ref"], &answer["appended"]), (&json!(number), &place), "{answer}");
    }
    reader.until_entries("a", usize::try_from(count).expect("small")).await;
    // One for each answer and one for each entry, otherwise.
    let written = writes() - before;
    assert!(written < count / 2, "{written} writes");
    scene.stop().await;
}

#[tokio::test]
async fn each_append_goes_where_it_says_wherever_the_last_one_went() {
    let scene = Scene::start().await;
    scene.process("work", &["a", "b"]).await;
    scene.process("job", &["a"]).await;
    let places = [
        ("work", "a", Some("sub")),
        ("work", "a", Some("exe")),
        ("work", "b", Some("exe")),
        ("job", "a", Some("exe")),
        ("work", "a", None),
        ("work", "a", Some("root")),
        ("work", "none", Some("sub")),
        ("work", "a", Some("sub")),
    ];
    let mut socket = scene.socket("root").await;
    for (reference, (process, channel, party)) in places.into_iter().enumerate() {
        // Twice, so that the second one goes where the last one went.
        for _ in 0..2 {
            let mut append = json!({ "op": "append", "ref": reference, "process": process, "channel": channel,
                "text": "x" });
            if let Some(party) = party {
                append["as"] = party.into();
            }
            socket.say(&append).await;
            let answer = socket.next_of(&["appended", "error"]).await;
            let code = match (channel, party) {
                ("none", _) => json!("channel_unknown"),
                (_, None | Some("root")) => json!("channel_forbidden"),
                _ => Value::Null,
            };
            assert_eq!((&answer["ref"], &answer["code"]), (&json!(reference), &code), "{answer}");
        }
    }
    for (process, name, wanted) in [
        ("work", "a", ["sub", "sub", "exe", "exe", "sub", "sub"].as_slice()),
        ("work", "b", &["exe", "exe"]),
        ("job", "a", &["exe", "exe"]),
    ] {
        let page = scene.channels.read_after(&channel(process, name), &Actor::Host, 0, 0).await;
        let entries = page.expect("a page").entries;
        let senders: Vec<_> = entries.iter().map(|entry| entry.sender.as_str()).collect();
        assert_eq!(senders, wanted, "{process} {name}");
    }
    scene.stop().await;
}

/// Its rate is asked once, however often it is tried.
#[tokio::test]
async fn an_entry_that_waits_for_its_forerunner_costs_what_one_costs_that_does_not() {
    let limits = ChannelLimits {
        hold: Duration::from_secs(600),
        rate_limited: true,
        sender_burst: 2.0,
        sender_rate: 0.0,
        ..ChannelLimits::default()
    };
    let scene = Scene::over(memory(limits), |_| {}).await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("exe").await;
    for (reference, sequence) in [(1, 2), (2, 1), (3, 3)] {
        let append = json!({ "op": "append", "ref": reference, "process": "work", "channel": "out",
            "sequence": sequence });
        socket.say(&append).await;
    }
    for (reference, position) in [(1, 2), (2, 1)] {
        let answer = socket.next_of(&["appended"]).await;
        let told = (&answer["ref"], &answer["appended"][0]["position"]);
        assert_eq!(told, (&json!(reference), &json!(position)), "{answer}");
    }
    let refused = socket.hear("error").await;
    assert_eq!((&refused["ref"], &refused["code"]), (&json!(3), &json!("channel_rate_limited")), "{refused}");
    scene.stop().await;
}
