//! Claims about what closes a sender's half on `GET /v1/channels/ws` while something before it may be refused.

use millrace::channels::{Actor, EntryType};
use millrace_tests::channel_socket::{BinaryAppend, ChannelSocket};
use millrace_tests::gated_channels::Gate;
use millrace_tests::until;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::channels_scene::{Scene, channel, gated};

const REFUSED: &str = "channel_end_after_refusal";

/// To channel `out` of process `work`, with other members of the command.
fn append(reference: u64, with: Value) -> Value {
    let mut command = json!({ "op": "append", "ref": reference, "process": "work", "channel": "out" });
    if let (Value::Object(command), Value::Object(with)) = (&mut command, with) {
        command.extend(with);
    }
    command
}

fn end(reference: u64) -> Value {
    append(reference, json!({ "type": "end" }))
}

/// Of the next answer: what it is about, and its code where it is a refusal.
async fn answer(socket: &mut ChannelSocket) -> (u64, Option<String>) {
    let answer = socket.next_of(&["appended", "error"]).await;
    let reference = answer["ref"].as_u64().unwrap_or_else(|| panic!("{answer}"));
    (reference, answer["code"].as_str().map(str::to_owned))
}

fn refused(reference: u64, code: &str) -> (u64, Option<String>) {
    (reference, Some(code.to_owned()))
}

async fn types(scene: &Scene, name: &str) -> Vec<EntryType> {
    let page = scene.channels.read_after(&channel("work", name), &Actor::Host, 0, 0).await.expect("a page");
    page.entries.iter().map(|entry| entry.entry_type).collect()
}

#[tokio::test]
async fn an_end_behind_a_refused_append_is_refused_until_it_is_repeated() {
    for durable in [false, true] {
        let scene = if durable { Scene::durable().await } else { Scene::start().await };
        scene.process("work", &["out"]).await;
        let mut socket = scene.socket("sub").await;
        // Nothing is waited for.
        for command in [
            append(1, json!({ "text": "first" })),
            append(2, json!({ "text": "lost", "inreplyto": 99 })),
            append(3, json!({ "text": "third" })),
            end(4),
        ] {
            socket.say(&command).await;
        }
        assert_eq!(answer(&mut socket).await, (1, None));
        assert_eq!(answer(&mut socket).await, refused(2, "channel_reply_unknown"));
        assert_eq!(answer(&mut socket).await, (3, None));
        let told = socket.next_of(&["appended", "error"]).await;
        assert_eq!((&told["ref"], &told["code"]), (&json!(4), &json!(REFUSED)), "{told}");
        assert!(told["detail"].as_str().is_some_and(|detail| detail.contains("append 2")), "{told}");
        assert_eq!(types(&scene, "out").await, [EntryType::Data; 2]);
        // The half is open, and whoever says it again means it.
        for (command, answered) in [
            (append(5, json!({ "text": "lost, in other words" })), (5, None)),
            (end(6), (6, None)),
            (end(7), refused(7, "channel_half_closed")),
        ] {
            socket.say(&command).await;
            assert_eq!(answer(&mut socket).await, answered, "{command}");
        }
        assert_eq!(
            types(&scene, "out").await,
            [EntryType::Data, EntryType::Data, EntryType::Data, EntryType::End]
        );
        scene.stop().await;
    }
}

#[tokio::test]
async fn an_end_waits_for_the_answers_to_its_senders_other_appends_and_to_nobody_elses() {
    let (scene, store) = gated(&["out", "side"]).await;
    store.shut("out", Gate::AnswersWait);
    let mut socket = scene.socket("sub").await;
    let side = |reference: u64, with: Value| {
        let mut command = append(reference, with);
        command["channel"] = "side".into();
        command
    };
    for command in [
        append(1, json!({ "text": "lost", "inreplyto": 99 })),
        end(2),
        append(3, json!({ "text": "behind the end" })),
        side(4, json!({ "text": "x" })),
        side(5, json!({ "type": "end" })),
    ] {
        socket.say(&command).await;
    }
    assert_eq!(answer(&mut socket).await, (4, None));
    assert_eq!(answer(&mut socket).await, (5, None));
    until("the first one waits for its answer", || store.waiting() == 1).await;
    assert_eq!(store.appends(), 3, "neither the end nor what comes behind it is in the store");
    store.open();
    assert_eq!(answer(&mut socket).await, refused(1, "channel_reply_unknown"));
    assert_eq!(answer(&mut socket).await, refused(2, REFUSED));
    assert_eq!(answer(&mut socket).await, (3, None));
    assert_eq!(types(&scene, "out").await, [EntryType::Data]);
    assert_eq!(types(&scene, "side").await, [EntryType::Data, EntryType::End]);
    scene.stop().await;
}

#[tokio::test]
async fn what_could_not_be_read_was_refused_as_well() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("sub").await;
    let out = BinaryAppend { process: "work", channel: "out", ..BinaryAppend::default() };
    let binary = |reference: u64, entry_type: u8| {
        Message::binary(BinaryAppend { reference, entry_type, ..out.clone() }.to_bytes())
    };
    let text = |command: Value| Message::text(command.to_string());
    for (message, code) in [
        (text(append(1, json!({ "type": "done", "text": "x" }))), "channel_entry_invalid"),
        (text(end(2)), REFUSED),
        (text(append(3, json!({ "text": "x", "sequence": 0 }))), "channel_sequence_invalid"),
        (text(append(4, json!({ "type": "error", "error": "broken" }))), REFUSED),
        (binary(5, 3), "channel_frame_invalid"),
        (binary(6, 1), REFUSED),
    ] {
        socket.send(message).await;
        let (_, told) = answer(&mut socket).await;
        assert_eq!(told.as_deref(), Some(code));
    }
    assert!(types(&scene, "out").await.is_empty());
    socket.send(binary(7, 1)).await;
    assert_eq!(answer(&mut socket).await, (7, None));
    scene.stop().await;
}

#[tokio::test]
async fn an_end_goes_through_where_nothing_is_missing() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    scene.process("job", &["out"]).await;
    let mut socket = scene.socket("root").await;
    let of = |party: &str, mut command: Value| {
        command["as"] = party.into();
        command
    };
    let mut job = of("sub", end(5));
    job["process"] = "job".into();
    let lost = json!({ "text": "lost", "inreplyto": 99 });
    for (command, answered) in [
        // What was refused is sent again under its own name.
        (of("sub", append(1, lost.clone())), refused(1, "channel_reply_unknown")),
        (of("sub", append(1, json!({ "text": "found" }))), (1, None)),
        (of("sub", end(2)), (2, None)),
        // What is refused to one is nothing to another, here or elsewhere.
        (of("exe", append(3, lost)), refused(3, "channel_reply_unknown")),
        (job, (5, None)),
        // With a sequence an end says itself what it comes behind.
        (of("exe", append(6, json!({ "type": "end", "sequence": 1 }))), (6, None)),
    ] {
        socket.say(&command).await;
        assert_eq!(answer(&mut socket).await, answered, "{command}");
    }
    scene.stop().await;
}
