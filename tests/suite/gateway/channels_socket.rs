//! Claims about `GET /v1/channels/ws`: what is said on it, who may say it, and how it ends. How entries and appends flow
//! is in `channels_flow` and `channels_appends`.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::channels::{ChannelLimits, NewProcess};
use millrace_tests::channel_socket::{BinaryAppend, ChannelSocket, base64};
use millrace_tests::until;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::channels_scene::{Scene, channel, memory, party, process, unlimited};
use super::issuer::{Signer, claims_with, later, now, rig_of, set};
use super::rig::Rig;

#[tokio::test]
async fn every_command_is_answered() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("exe").await;
    socket.subscribe("a", "work", "out", json!({})).await;
    let ready = socket.follow("a").ready.clone().expect("it is ready");
    assert_eq!(
        ready,
        json!({ "op": "ready", "id": "a", "number": ready["number"], "role": "executor",
            "after": 0, "cursor": ready["cursor"], "oldest": 1, "newest": 0 })
    );
    socket
        .say(&json!({ "op": "append", "ref": "r1", "process": "work", "channel": "out", "text": "hi" }))
        .await;
    let appended = json!([{ "position": 1, "sequence": 1, "epoch": 1, "repeated": false }]);
    assert_eq!(socket.hear("appended").await, json!({ "op": "appended", "ref": "r1", "appended": appended }));
    socket.until_entries("a", 1).await;
    let entry = socket.follow("a").entries[0].clone();
    assert_eq!((&entry["senderid"], &entry["payload"]), (&json!("exe"), &json!("aGk=")), "{entry}");
    // A repeat answers the first position; several at once are answered in their order.
    let entries = json!([{ "sequence": 1, "text": "hi" }, { "sequence": 2, "json": [1, 2] }]);
    socket
        .say(&json!({ "op": "append", "ref": 7, "process": "work", "channel": "out", "entries": entries }))
        .await;
    let answer = socket.hear("appended").await;
    assert_eq!(answer["ref"], 7);
    assert_eq!(
        answer["appended"],
        json!([{ "position": 1, "sequence": 1, "epoch": 1, "repeated": true },
            { "position": 2, "sequence": 2, "epoch": 1, "repeated": false }])
    );
    socket.until_entries("a", 2).await;
    socket.say(&json!({ "op": "ping", "nonce": "n" })).await;
    assert_eq!(socket.hear("heartbeat").await, json!({ "op": "heartbeat", "nonce": "n" }));
    socket.say(&json!({ "op": "unsubscribe", "id": "a" })).await;
    assert_eq!(socket.until_closed("a").await, "unsubscribed");
    until("its place is free", || scene.channels.subscriber_count(&channel("work", "out")) == 0).await;
    // The id is, too.
    socket.subscribe("a", "work", "out", json!({ "after": 1 })).await;
    socket.until_entries("a", 1).await;
    scene.stop().await;
}

#[tokio::test]
async fn binary_messages_say_the_same_as_text() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("root").await;
    let bytes: Vec<u8> = (0..=255).collect();
    let out = BinaryAppend { process: "work", channel: "out", ..BinaryAppend::default() };
    let appends = [
        BinaryAppend { reference: 1, party: "sub", sequence: 1, payload: Some(&bytes), ..out.clone() },
        BinaryAppend { reference: 2, party: "sub", payload: Some(b""), ..out.clone() },
        BinaryAppend { reference: 3, party: "exe", epoch: Some(1), in_reply_to: 2, ..out.clone() },
        BinaryAppend {
            reference: u64::MAX,
            party: "exe",
            entry_type: 2,
            error: "it broke",
            payload: Some(b"x"),
            ..out.clone()
        },
    ];
    for append in &appends {
        socket.send(Message::binary(append.to_bytes())).await;
        let answer = socket.hear("appended").await;
        assert_eq!(answer["ref"], append.reference, "{answer}");
    }
    socket.subscribe("text", "work", "out", json!({})).await;
    socket.subscribe("binary", "work", "out", json!({ "binary": true })).await;
    for id in ["text", "binary"] {
        socket.until_entries(id, 4).await;
    }
    // Live ones, too, and those that came as text.
    socket
        .say(&json!({ "op": "append", "ref": 5, "process": "work", "channel": "out", "as": "sub",
            "type": "end", "payload": base64(&bytes) }))
        .await;
    assert_eq!(socket.until_closed("text").await, "ended");
    assert_eq!(socket.until_closed("binary").await, "ended");
    let entries = socket.follow("binary").entries.clone();
    assert_eq!(entries, socket.follow("text").entries);
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[0]["payload"], base64(&bytes));
    assert_eq!((&entries[1]["payload"], &entries[2]["payload"]), (&json!(""), &Value::Null));
    assert_eq!((&entries[2]["inreplyto"], &entries[2]["epoch"]), (&json!(2), &json!(1)));
    assert_eq!((&entries[3]["type"], &entries[3]["error"]), (&json!("error"), &json!("it broke")));
    let role =
        |socket: &mut ChannelSocket, id| socket.follow(id).ready.clone().expect("ready")["role"].clone();
    assert_eq!(role(&mut socket, "text"), "admin");
    scene.stop().await;
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_answered_with_a_code_and_the_socket_goes_on() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("sub").await;
    socket.subscribe("open", "work", "out", json!({})).await;
    let long = "x".repeat(65);
    let bomb = format!(r#"{{"op":"ping","nonce":{}1{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    let to =
        |members: &str| format!(r#"{{"op":"append","ref":1,"process":"work","channel":"out",{members}}}"#);
    let subscribe = |members: &str| format!(r#"{{"op":"subscribe","id":"s",{members}}}"#);
    let (none, one, s) = (json!({}), json!({ "ref": 1 }), json!({ "id": "s" }));
    let empty = json!({ "id": "" });
    let cases: Vec<(String, &str, &Value)> = vec![
        ("nonsense".into(), "json_malformed", &none),
        (String::new(), "json_malformed", &none),
        (bomb, "command_invalid", &none),
        (r#"{"op":"ping""#.into(), "json_malformed", &none),
        ("[]".into(), "command_invalid", &none),
        ("null".into(), "command_invalid", &none),
        ("{}".into(), "command_invalid", &none),
        (r#"{"op":7}"#.into(), "command_invalid", &none),
        (r#"{"op":"dance","id":"s"}"#.into(), "action_unknown", &s),
        (r#"{"op":"ping","nonce":1}"#.into(), "command_invalid", &none),
        (json!({ "op": "ping", "nonce": long }).to_string(), "command_invalid", &none),
        (r#"{"op":"subscribe","process":"work","channel":"out"}"#.into(), "command_invalid", &none),
        (r#"{"op":"subscribe","id":"","process":"work","channel":"out"}"#.into(), "command_invalid", &empty),
        (json!({ "op": "unsubscribe", "id": long }).to_string(), "command_invalid", &none),
        (subscribe(r#""process":"work""#), "command_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","limit":1"#), "command_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","after":-1"#), "command_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","after":9"#), "channel_option_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","after":"oldest""#), "cursor_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","after":"ab.""#), "cursor_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","after":"ab.0""#), "cursor_foreign", &s),
        (subscribe(r#""process":"work","channel":"out","after":[1]"#), "command_invalid", &s),
        (subscribe(r#""process":"work","channel":"out","credit":1000001"#), "channel_credit_max", &s),
        (subscribe(r#""process":"wo_rk","channel":"out""#), "channel_name_invalid", &s),
        (subscribe(r#""process":"none","channel":"out""#), "channel_unknown", &s),
        (subscribe(r#""process":"work","channel":"none""#), "channel_unknown", &s),
        (r#"{"op":"credit","id":"s","add":1}"#.into(), "subscription_unknown", &s),
        (r#"{"op":"credit","id":"s"}"#.into(), "command_invalid", &s),
        (r#"{"op":"unsubscribe","id":"s"}"#.into(), "subscription_unknown", &s),
        (r#"{"op":"append","process":"work","channel":"out"}"#.into(), "command_invalid", &none),
        (r#"{"op":"append","ref":-1,"process":"work","channel":"out"}"#.into(), "command_invalid", &none),
        (r#"{"op":"append","ref":1,"channel":"out"}"#.into(), "command_invalid", &one),
        (to(r#""id":"s""#), "command_invalid", &one),
        (to(r#""sequence":0"#), "channel_sequence_invalid", &one),
        (to(r#""sequence":1.5"#), "channel_sequence_invalid", &one),
        (to(r#""type":"middle""#), "channel_entry_invalid", &one),
        (to(r#""payload":"?""#), "channel_entry_invalid", &one),
        (to(r#""payload":"","text":"""#), "channel_entry_invalid", &one),
        (to(r#""error":"for no reason""#), "channel_entry_invalid", &one),
        (to(r#""inreplyto":3"#), "channel_reply_unknown", &one),
        (to(r#""tenant":"alpha""#), "tenant_in_body", &one),
        (to(r#""senderid":"exe""#), "channel_entry_invalid", &one),
        (to(r#""entries":{}"#), "command_invalid", &one),
        (to(r#""entries":null"#), "command_invalid", &one),
        (to(r#""entries":null,"text":"hi""#), "command_invalid", &one),
        (to(r#""entries":7"#), "command_invalid", &one),
        (to(r#""entries":[],"text":"hi""#), "command_invalid", &one),
        (to(r#""entries":[7]"#), "channel_entry_invalid", &one),
        (to(r#""epoch":4,"text":"hi""#), "channel_access_revoked", &one),
    ];
    for (text, code, about) in cases {
        socket.send(Message::text(text.clone())).await;
        let error = socket.hear("error").await;
        let text: String = text.chars().take(80).collect();
        assert_eq!(error["code"], code, "{text}: {error}");
        assert_eq!((&error["id"], &error["ref"]), (&about["id"], &about["ref"]), "{text}: {error}");
        for member in ["title", "detail", "fix", "blame"] {
            assert!(error[member].as_str().is_some_and(|said| !said.is_empty()), "{member}: {error}");
        }
    }
    let whole = BinaryAppend { reference: 1, process: "work", channel: "out", ..BinaryAppend::default() };
    let whole = whole.to_bytes();
    let with = |at: usize, value: u8| {
        let mut changed = whole.clone();
        changed[at] = value;
        changed
    };
    let binary: [(Vec<u8>, &Value); 8] = [
        (vec![], &none),
        (vec![1, 0, 0], &none),
        (with(0, 2), &one),
        (with(9, 32), &one),
        (with(9, 3), &one),
        (with(30, 255), &one),
        (with(31, 0xff), &one),
        (whole[..whole.len() - 1].to_vec(), &one),
    ];
    for (bytes, about) in binary {
        socket.send(Message::binary(bytes.clone())).await;
        let error = socket.hear("error").await;
        assert_eq!(error["code"], "channel_frame_invalid", "{bytes:?}: {error}");
        assert_eq!(error["ref"], about["ref"], "{bytes:?}: {error}");
    }
    // Nothing of it was appended, and what was open is.
    assert_eq!(socket.round_trip("still there").await, Vec::<Value>::new());
    scene.append(&channel("work", "out"), "exe", &["first"]).await;
    socket.until_entries("open", 1).await;
    scene.stop().await;
}

#[tokio::test]
async fn what_is_no_message_or_too_large_ends_a_socket_with_a_code() {
    let limits = ChannelLimits { batch_bytes_max: 1_000, batch_entries_max: 1, ..unlimited() };
    let scene = Scene::over(memory(limits), |options| {
        options.live_first_command_wait_max = Duration::from_secs(600);
    })
    .await;
    let ends = async |socket: &mut ChannelSocket, code: &str, close: u16| {
        let closing = socket.hear("closing").await;
        assert_eq!(closing["code"], code, "{closing}");
        assert!(closing["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{closing}");
        assert_eq!(socket.closed().await, close);
    };
    let mut socket = scene.socket("sub").await;
    socket.send(Message::text("x".repeat(10_000))).await;
    ends(&mut socket, "channel_message_bytes_max", 1009).await;
    let mut socket = scene.socket("sub").await;
    socket.send(Message::binary(vec![0; 10_000])).await;
    ends(&mut socket, "channel_message_bytes_max", 1009).await;
    // A client's frames must be masked; and this has no known opcode.
    let mut socket = scene.socket("sub").await;
    socket.socket.get_mut().write_all(&[0x83, 0x00]).await.expect("sent");
    ends(&mut socket, "websocket_malformed", 1002).await;
    let mut socket = scene.socket("sub").await;
    socket.socket.get_mut().write_all(&[0x81, 0x81, 0, 0, 0, 0, 0xff]).await.expect("sent");
    ends(&mut socket, "message_not_utf8", 1007).await;
    scene.stop().await;
}

#[tokio::test]
async fn rights_roles_and_tenants_are_those_of_requests() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let append = |with: Value| {
        let mut command =
            json!({ "op": "append", "ref": 1, "process": "work", "channel": "out", "text": "x" });
        command.as_object_mut().expect("an object").extend(with.as_object().cloned().unwrap_or_default());
        command
    };
    let subscribe = |with: Value| {
        let mut command = json!({ "op": "subscribe", "id": "a", "process": "work", "channel": "out" });
        command.as_object_mut().expect("an object").extend(with.as_object().cloned().unwrap_or_default());
        command
    };
    for (who, command, code) in [
        ("obs", append(json!({})), "right_missing"),
        ("mute", subscribe(json!({})), "right_missing"),
        ("sub", append(json!({ "as": "exe" })), "right_missing"),
        ("sub", subscribe(json!({ "as": "sub" })), "right_missing"),
        ("other", subscribe(json!({})), "channel_forbidden"),
        ("other", append(json!({})), "channel_forbidden"),
        ("root", subscribe(json!({ "as": "other" })), "channel_forbidden"),
        ("root", subscribe(json!({ "as": "" })), "channel_name_invalid"),
        ("root", append(json!({})), "channel_forbidden"),
        ("root", append(json!({ "as": "obs" })), "channel_forbidden"),
        ("far", subscribe(json!({})), "channel_unknown"),
        ("far", append(json!({ "as": "sub" })), "channel_unknown"),
    ] {
        let mut socket = scene.socket(who).await;
        socket.say(&command).await;
        let error = socket.hear("error").await;
        assert_eq!(error["code"], code, "{who} {command}: {error}");
    }
    assert_eq!(scene.channels.log_size(&channel("work", "out")).await.expect("it is there"), 0);
    for (who, with, role) in [
        ("sub", json!({}), "submitter"),
        ("exe", json!({}), "executor"),
        ("obs", json!({}), "observer"),
        ("root", json!({}), "admin"),
        ("root", json!({ "as": "exe" }), "executor"),
    ] {
        let mut socket = scene.socket(who).await;
        socket.subscribe("a", "work", "out", with).await;
        let ready = socket.follow("a").ready.clone().expect("it is ready");
        assert_eq!(ready["role"], role, "{who}");
    }
    let mut socket = scene.socket("root").await;
    socket.say(&append(json!({ "as": "sub" }))).await;
    assert_eq!(socket.hear("appended").await["appended"][0]["position"], 1);
    scene.stop().await;
}

#[tokio::test]
async fn a_socket_is_for_who_may_read_or_publish_and_for_pages_of_this_host() {
    let scene = Scene::start().await;
    let refused = async |path: &str, headers: &[(&'static str, &str)], status: u16| {
        let answer = ChannelSocket::open_at(scene.address, path, headers).await.err();
        let Some(Error::Http(response)) = answer else { panic!("{headers:?}: {answer:?}") };
        assert_eq!(response.status(), status, "{path} {headers:?}");
    };
    let (path, token) = ("/v1/channels/ws", ("authorization", "Bearer token-sub"));
    refused(path, &[], 401).await;
    refused(path, &[("authorization", "Bearer junk")], 401).await;
    refused(path, &[token, ("origin", "https://evil.example")], 403).await;
    refused(path, &[token, ("origin", "null")], 403).await;
    refused("/v1/channels/ws?ticket=junk", &[], 401).await;
    refused("/v1/channels/ws?after=1", &[token], 400).await;
    let own = format!("http://localhost:{}", scene.address.port());
    ChannelSocket::open(scene.address, &[token, ("origin", &own)]).await.expect("its own page");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(format!("http://{}{path}", scene.address)).bearer_auth("token-sub").send().await;
    assert_eq!(answer.expect("an answer").status(), 426);
    let session = client.post(format!("http://{}/v1/session", scene.address)).bearer_auth("token-sub");
    let ticket: Value =
        session.body(r#"{"ticket":true}"#).send().await.expect("sent").json().await.expect("JSON");
    let with_ticket = format!("{path}?ticket={}", ticket["ticket"].as_str().expect("a ticket"));
    let mut socket = ChannelSocket::open_at(scene.address, &with_ticket, &[]).await.expect("a WebSocket");
    assert_eq!(socket.round_trip("in").await, Vec::<Value>::new());
    refused(&with_ticket, &[], 401).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_subscription_that_ends_is_told_why_and_where_to_go_on() {
    let scene = Scene::start().await;
    for name in ["done", "closed", "gone", "given"] {
        scene.process(name, &["out"]).await;
        scene.append(&channel(name, "out"), "exe", &["x"]).await;
    }
    let mut socket = scene.socket("exe").await;
    for name in ["done", "closed", "gone", "given"] {
        socket.subscribe(name, name, "out", json!({})).await;
        socket.until_entries(name, 1).await;
    }
    scene.end(&channel("done", "out"), "sub").await;
    scene.end(&channel("done", "out"), "exe").await;
    assert_eq!(socket.until_closed("done").await, "ended");
    assert_eq!(socket.follow("done").last, 3);
    scene.close("closed").await;
    assert_eq!(socket.until_closed("closed").await, "success");
    assert!(scene.channels.cleanup_process(&process("gone")).await.expect("removed"));
    assert_eq!(socket.until_closed("gone").await, "removed");
    // An executor that is replaced reads and writes no more, whatever comes after it.
    scene.assign("given", "other").await;
    assert_eq!(socket.until_closed("given").await, "revoked");
    socket
        .say(&json!({ "op": "append", "ref": 1, "process": "given", "channel": "out", "text": "late" }))
        .await;
    assert_eq!(socket.hear("error").await["code"], "channel_access_revoked");
    scene.append(&channel("given", "out"), "other", &["new"]).await;
    assert_eq!(socket.round_trip("quiet").await, Vec::<Value>::new());
    assert_eq!(socket.follow("given").entries.len(), 1);
    // So does one without credit, where nothing is left that it could be given.
    scene.process("idle", &["out"]).await;
    socket.subscribe("idle", "idle", "out", json!({ "credit": 0 })).await;
    scene.assign("idle", "other").await;
    assert_eq!(socket.until_closed("idle").await, "revoked");
    scene.stop().await;
}

#[tokio::test]
async fn a_cursor_of_an_earlier_process_of_that_name_is_refused_and_not_taken_for_a_position() {
    let scene = Scene::start().await;
    let out = channel("work", "out");
    scene.process("work", &["out"]).await;
    scene.append(&out, "sub", &["1", "2", "3"]).await;
    let mut socket = scene.socket("exe").await;
    for (id, binary) in [("text", false), ("binary", true)] {
        socket.subscribe(id, "work", "out", json!({ "binary": binary })).await;
        socket.until_entries(id, 3).await;
        socket.say(&json!({ "op": "unsubscribe", "id": id })).await;
        socket.until_closed(id).await;
    }
    let cursor = socket.follow("text").cursor.clone();
    assert_eq!(socket.follow("binary").cursor, cursor, "the same place");
    // Whoever comes back with it goes on behind what it has.
    socket.subscribe("again", "work", "out", json!({ "after": cursor })).await;
    scene.append(&out, "sub", &["4"]).await;
    socket.until_entries("again", 1).await;
    assert_eq!(socket.follow("again").last, 4);
    assert!(scene.channels.cleanup_process(&process("work")).await.expect("removed"));
    assert_eq!(socket.until_closed("again").await, "removed");
    let last = socket.follow("again").cursor.clone();
    scene.process("work", &["out"]).await;
    // Whether the new log is shorter or longer by now.
    for entries in [&[][..], &["a", "b", "c", "d", "e"][..]] {
        if !entries.is_empty() {
            scene.append(&out, "sub", entries).await;
        }
        for after in [&cursor, &last] {
            let subscribe = json!({ "op": "subscribe", "id": "late", "process": "work", "channel": "out", "after": after });
            socket.say(&subscribe).await;
            let error = socket.hear("error").await;
            assert_eq!((&error["code"], &error["id"]), (&json!("cursor_foreign"), &json!("late")), "{error}");
        }
    }
    // A number is taken for what it is, as text, too: nobody can tell of which process it is.
    for (id, after) in [("number", json!(3)), ("digits", json!("3"))] {
        socket.subscribe(id, "work", "out", json!({ "after": after })).await;
        socket.until_entries(id, 2).await;
        socket.say(&json!({ "op": "unsubscribe", "id": id })).await;
        socket.until_closed(id).await;
        let of = |cursor: &str| cursor.split('.').next().map(str::to_owned);
        assert_ne!(of(&socket.follow(id).cursor), of(&last), "another life");
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_quiet_socket_is_told_that_the_host_is_there_and_one_that_does_not_answer_is_given_up() {
    let scene = Scene::over(memory(unlimited()), |options| {
        options.sse_heartbeat = Duration::from_millis(20);
    })
    .await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("sub").await;
    socket.subscribe("a", "work", "out", json!({})).await;
    // Reading answers pings; five of them are more than who does not answer would get.
    for _ in 0..5 {
        assert_eq!(socket.hear("heartbeat").await, json!({ "op": "heartbeat" }));
    }
    assert!(socket.pings >= 4, "{}", socket.pings);
    // Now nobody reads any more.
    until("it is given up", || scene.channels.subscriber_count(&channel("work", "out")) == 0).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_socket_ends_with_its_host_and_without_a_first_command() {
    let scene = Scene::start().await;
    scene.process("work", &["out"]).await;
    let mut socket = scene.socket("sub").await;
    socket.subscribe("a", "work", "out", json!({})).await;
    scene.cancel();
    let closing = socket.hear("closing").await;
    assert_eq!(closing["code"], "host_stopping");
    assert!(closing["retry_ms"].as_u64().is_some_and(|wait| wait >= 1_000), "{closing}");
    assert_eq!(socket.closed().await, 1001);
    scene.stop().await;
    let wait = Duration::from_millis(50);
    let scene = Scene::over(memory(unlimited()), |options| options.live_first_command_wait_max = wait).await;
    let mut socket = scene.socket("sub").await;
    socket.send(Message::text("nonsense")).await;
    assert_eq!(socket.hear("closing").await["code"], "live_first_command_wait_max");
    assert_eq!(socket.closed().await, 1008);
    scene.stop().await;
}

#[tokio::test]
async fn a_socket_ends_with_its_credential() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), |_| {}).await;
    let new = NewProcess {
        id: process("work"),
        submitter: party("ada"),
        executor: None,
        observers: vec![],
        channels: vec![],
    };
    let channels = rig.services().channels;
    channels.create_process(new).await.expect("it is made");
    let options = channels.limits().default_options();
    channels.create(&channel("work", "out"), options).await.expect("it is made");
    // With a fraction, so that the clock is looked at soon.
    #[expect(clippy::cast_precision_loss, reason = "a time of this century")]
    let soon = json!({ "exp": now() as f64 + 0.05 });
    let mut socket = ChannelSocket::connect(rig.address, &signer.token("k", &claims_with(&soon))).await;
    socket.subscribe("a", "work", "out", json!({})).await;
    later(&rig, 1);
    assert_eq!(socket.hear("closing").await["code"], "token_expired");
    assert_eq!(socket.closed().await, 1008);
    until("its subscription is over", || channels.subscriber_count(&channel("work", "out")) == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_socket_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle.clone()).await;
    let mut socket = ChannelSocket::open(rig.address, &[]).await.expect("a WebSocket");
    assert_eq!(socket.round_trip("in").await, Vec::<Value>::new());
    socket.send(Message::text("nonsense")).await;
    socket.hear("error").await;
    let counted = |line: &str| handle.render().lines().any(|found| found == line);
    assert!(counted("millrace_channel_sockets 1"), "{}", handle.render());
    assert!(counted("millrace_http_problems_total{code=\"json_malformed\"} 1"), "{}", handle.render());
    drop(socket);
    let line = "millrace_channel_socket_closes_total{cause=\"disconnected\"} 1";
    until("its end is counted", || counted(line)).await;
    assert!(counted("millrace_channel_sockets 0"), "{}", handle.render());
    rig.stop().await;
}
