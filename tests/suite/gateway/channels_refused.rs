//! Claims about what is wrong with a request on `GET /v1/channels/ws`: as over HTTP, a clear answer each, and nothing is
//! lost. What no command can be, and whose rights end, is in `channels_socket`.

use std::time::Duration;

use millrace::channels::{Actor, ChannelLimits, ChannelOptions, Gaps};
use millrace::limits::{CHANNEL_PAYLOAD_BYTES_MAX, CHANNEL_SEQUENCE_MAX};
use millrace_tests::channel_socket::{BinaryAppend, ChannelSocket, base64};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::channels_scene::{Scene, channel, memory, process, unlimited};

/// To channel `out` of process `work`; the other members as they are written.
fn text(reference: u64, members: &str) -> Message {
    Message::text(format!(
        r#"{{"op":"append","ref":{reference},"process":"work","channel":"out",{members}}}"#
    ))
}

fn out(reference: u64) -> BinaryAppend<'static> {
    BinaryAppend { reference, process: "work", channel: "out", ..BinaryAppend::default() }
}

fn binary(append: &BinaryAppend<'_>) -> Message {
    Message::binary(append.to_bytes())
}

/// Sends it and hears what it is answered: its code, or its position.
async fn ask(socket: &mut ChannelSocket, message: Message) -> Value {
    socket.send(message).await;
    let answer = socket.next_of(&["appended", "error"]).await;
    let place = answer["appended"][0]["position"].clone();
    if place.is_null() { answer["code"].clone() } else { place }
}

async fn log(scene: &Scene) -> Vec<u64> {
    let page = scene.channels.read_after(&channel("work", "out"), &Actor::Host, 0, 0).await.expect("a page");
    page.entries.iter().map(|entry| entry.sequence).collect()
}

#[tokio::test]
async fn a_number_that_no_entry_can_have_is_refused_and_the_next_one_is_taken() {
    // What is too far ahead is waited for, and refused then, or refused at once.
    for gaps in [Gaps::Hold, Gaps::Report] {
        let limits = ChannelLimits { hold: Duration::from_millis(10), ..unlimited() };
        let scene = Scene::over(memory(limits), |_| {}).await;
        scene.process_with("work", &["out"], ChannelOptions { gaps, ..ChannelOptions::default() }).await;
        let mut socket = scene.socket("sub").await;
        let (wrong, gap) = ("channel_sequence_invalid", "channel_sequence_gap");
        for (number, code) in [
            ("0", wrong),
            ("-1", wrong),
            ("-9223372036854775809", wrong),
            ("9007199254740992", wrong),
            ("18446744073709551616", wrong),
            ("\"1\"", wrong),
            ("9007199254740991", gap),
            ("2", gap),
        ] {
            let message = text(1, &format!(r#""sequence":{number},"text":"x""#));
            assert_eq!(ask(&mut socket, message).await, code, "{number} {gaps:?}");
        }
        for (sequence, code) in
            [(CHANNEL_SEQUENCE_MAX + 1, wrong), (u64::MAX, wrong), (CHANNEL_SEQUENCE_MAX, gap), (2, gap)]
        {
            let message = binary(&BinaryAppend { sequence, ..out(1) });
            assert_eq!(ask(&mut socket, message).await, code, "{sequence} {gaps:?}");
        }
        assert_eq!(ask(&mut socket, text(2, r#""sequence":1,"text":"first""#)).await, 1);
        let second = BinaryAppend { sequence: 2, payload: Some(b"second"), ..out(3) };
        assert_eq!(ask(&mut socket, binary(&second)).await, 2);
        // Said again it is where it was, and another one under its number is none.
        assert_eq!(ask(&mut socket, binary(&second)).await, 2);
        assert_eq!(
            ask(&mut socket, binary(&BinaryAppend { payload: Some(b"other"), ..second })).await,
            "channel_sequence_taken"
        );
        assert_eq!(log(&scene).await, [1, 2], "{gaps:?}");
        scene.stop().await;
    }
}

#[tokio::test]
async fn an_answer_to_nothing_is_refused_and_the_next_one_is_taken() {
    let scene = Scene::start().await;
    scene.process("work", &["out", "side"]).await;
    scene.append(&channel("work", "out"), "exe", &["question"]).await;
    scene.append(&channel("work", "side"), "exe", &["another", "question"]).await;
    let mut socket = scene.socket("sub").await;
    let (wrong, unknown) = ("channel_sequence_invalid", "channel_reply_unknown");
    for (number, code) in
        [("2", unknown), ("9007199254740991", unknown), ("-1", wrong), ("1.5", wrong), ("\"1\"", wrong)]
    {
        let message = text(1, &format!(r#""sequence":1,"inreplyto":{number},"text":"x""#));
        assert_eq!(ask(&mut socket, message).await, code, "{number}");
    }
    for in_reply_to in [2, CHANNEL_SEQUENCE_MAX, u64::MAX] {
        let code = ask(&mut socket, binary(&BinaryAppend { sequence: 1, in_reply_to, ..out(1) })).await;
        assert_eq!(code, unknown, "{in_reply_to}");
    }
    assert_eq!(ask(&mut socket, text(2, r#""sequence":1,"inreplyto":1,"text":"answer""#)).await, 2);
    // Nobody answers its own.
    assert_eq!(ask(&mut socket, text(3, r#""sequence":2,"inreplyto":2,"text":"x""#)).await, unknown);
    assert_eq!(log(&scene).await, [1, 1]);
    scene.stop().await;
}

#[tokio::test]
async fn a_payload_at_the_bound_is_taken_and_one_byte_more_is_refused() {
    for max in [1_000, CHANNEL_PAYLOAD_BYTES_MAX] {
        let limits = ChannelLimits { payload_bytes_max: max, ..unlimited() };
        let scene = Scene::over(memory(limits), |_| {}).await;
        scene.process("work", &["out"]).await;
        let mut socket = scene.socket("sub").await;
        let mut sequence = 0;
        for (bytes, taken) in [(max + 1, false), (max, true), (max + 1, false)] {
            let payload = vec![b'x'; bytes];
            let letters = "x".repeat(bytes);
            let mut messages = vec![
                binary(&BinaryAppend { payload: Some(&payload), ..out(1) }),
                text(1, &format!(r#""text":"{letters}""#)),
            ];
            if max == 1_000 {
                messages.push(text(1, &format!(r#""payload":"{}""#, base64(&payload))));
                messages.push(text(1, &format!(r#""json":"{}""#, &letters[2..])));
            }
            for message in messages {
                let answer = ask(&mut socket, message).await;
                if taken {
                    sequence += 1;
                    assert_eq!(answer, sequence, "{bytes}");
                } else {
                    assert_eq!(answer, "channel_payload_bytes_max", "{bytes}");
                }
            }
        }
        assert_eq!(socket.round_trip("still there").await, Vec::<Value>::new());
        assert_eq!(scene.channels.log_size(&channel("work", "out")).await.expect("it is there"), sequence);
        scene.stop().await;
    }
}

/// Whether it is over for everybody, for its senders, or for who asks.
#[tokio::test]
async fn who_subscribes_when_all_is_over_is_given_what_there_is_and_told_why() {
    let scene = Scene::start().await;
    for name in ["done", "closed", "gone", "given"] {
        scene.process(name, &["out"]).await;
        scene.append(&channel(name, "out"), "exe", &["a", "b"]).await;
    }
    scene.end(&channel("done", "out"), "sub").await;
    scene.end(&channel("done", "out"), "exe").await;
    scene.close("closed").await;
    assert!(scene.channels.cleanup_process(&process("gone")).await.expect("removed"));
    scene.assign("given", "other").await;
    let mut socket = scene.socket("exe").await;
    for (name, count, reason) in [("done", 4_u64, "ended"), ("closed", 2, "success")] {
        for after in 0..=count {
            let id = format!("{name} after {after}");
            socket.ask(&id, name, "out", json!({ "after": after })).await;
            assert_eq!(socket.until_closed(&id).await, reason, "{id}");
            let entries = socket.follow(&id).entries.len() as u64;
            assert_eq!((entries, socket.follow(&id).last), (count - after, count), "{id}");
        }
    }
    let append = |process: &str| json!({ "op": "append", "ref": 1, "process": process, "channel": "out", "text": "late" });
    let subscribe = |process: &str, after: u64| json!({ "op": "subscribe", "id": "late", "process": process, "channel": "out", "after": after });
    for (command, code) in [
        (subscribe("done", 5), "channel_option_invalid"),
        (subscribe("closed", 3), "channel_option_invalid"),
        (subscribe("gone", 0), "channel_unknown"),
        (subscribe("given", 0), "channel_access_revoked"),
        (append("done"), "channel_half_closed"),
        (append("closed"), "process_closed"),
        (append("gone"), "channel_unknown"),
        (append("given"), "channel_access_revoked"),
    ] {
        socket.say(&command).await;
        assert_eq!(socket.hear("error").await["code"], code, "{command}");
    }
    // With that the id is free.
    scene.process("next", &["out"]).await;
    socket.subscribe("late", "next", "out", json!({})).await;
    for (name, count) in [("done", 4), ("closed", 2), ("given", 2)] {
        let size = scene.channels.log_size(&channel(name, "out")).await.expect("it is there");
        assert_eq!(size, count, "{name}");
    }
    scene.stop().await;
}
