//! Bounds of channels over HTTP: at the bound it is taken, beyond it is refused by name.

use millrace::channels::ChannelLimits;
use millrace::gateway::Problem;
use serde_json::json;

use super::{ENTRIES, JOB, append, good, job, next, positions, rig, rig_with, say, send};

const MIB: usize = 1 << 20;

/// Base64 of so many zero bytes.
fn zeros(bytes: usize) -> String {
    let (whole, rest) = ("AAAA".repeat(bytes / 3), bytes % 3);
    whole + ["", "AA==", "AAA="][rest]
}

#[tokio::test]
async fn a_payload_of_ten_mebibytes_is_taken_and_one_byte_more_is_not() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let exact = format!("{{\"sequence\":1,\"payload\":\"{}\"}}", zeros(10 * MIB));
    assert_eq!(good(&send(&rig, "POST", ENTRIES, "sam", &exact).await, 201)["position"], 1);
    let text = format!("{{\"sequence\":2,\"text\":\"{}\"}}", "x".repeat(10 * MIB));
    assert_eq!(good(&send(&rig, "POST", ENTRIES, "sam", &text).await, 201)["position"], 2);
    for body in [
        format!("{{\"sequence\":3,\"payload\":\"{}\"}}", zeros(10 * MIB + 1)),
        format!("{{\"sequence\":3,\"text\":\"{}\"}}", "x".repeat(10 * MIB + 1)),
        format!("[{{\"sequence\":3,\"json\":\"{}\"}}]", "x".repeat(10 * MIB - 1)),
    ] {
        let problem = send(&rig, "POST", ENTRIES, "sam", &body).await;
        let problem = problem.is_problem(413, "channel_payload_bytes_max");
        assert_eq!((&problem["asked"], &problem["max"]), (&json!(10 * MIB + 1), &json!(10 * MIB)));
    }
    // Its size is told before anybody looks for the channel.
    let nowhere = "/v1/processes/none/channels/none/entries";
    let body = format!("{{\"payload\":\"{}\"}}", zeros(10 * MIB + 1));
    send(&rig, "POST", nowhere, "sam", &body).await.is_problem(413, "channel_payload_bytes_max");
    let body = format!("{{\"payload\":\"{}\"}}", zeros(18 * MIB));
    send(&rig, "POST", ENTRIES, "sam", &body).await.is_problem(413, "channel_body_bytes_max");
    let half = json!({ "payload": zeros(8 * MIB) }).to_string();
    let batch = format!("[{half},{half},{{\"text\":\"x\"}}]");
    let problem = send(&rig, "POST", ENTRIES, "sam", &batch).await;
    problem.is_problem(413, "channel_batch_bytes_max");
    // A page has one entry at least, whatever its size.
    let page = good(&send(&rig, "GET", ENTRIES, "eve", "").await, 200);
    assert_eq!((positions(&page), next(&page)), (vec![1], Some(1)));
    assert_eq!(page["entries"][0]["payload"].as_str().map(str::len), Some(zeros(10 * MIB).len()));
    let page = good(&send(&rig, "GET", &format!("{ENTRIES}?after=1&payload=text"), "eve", "").await, 200);
    assert_eq!(page["entries"][0]["text"].as_str().map(str::len), Some(10 * MIB));
    assert_eq!((positions(&page), &page["newest"]), (vec![2], &json!(2)));
    rig.stop().await;
}

#[tokio::test]
async fn an_append_has_so_many_entries_however_small_they_are() {
    let limits = ChannelLimits { batch_entries_max: 3, ..ChannelLimits::default() };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    assert_eq!(good(&append(&rig, "sam", &json!([{}, {}, {}])).await, 201)["appended"][2]["position"], 3);
    let many = format!("[{}{{}}]", "{},".repeat(1_000_000));
    let problem = send(&rig, "POST", ENTRIES, "sam", &many).await;
    let problem = problem.is_problem(413, "channel_batch_entries_max");
    assert_eq!((&problem["asked"], &problem["max"]), (&json!(1_000_001), &json!(3)));
    rig.stop().await;
}

#[tokio::test]
async fn who_appends_too_fast_is_told_when_to_come_back() {
    let limits = ChannelLimits {
        burst: 3.0,
        rate: 0.001,
        sender_burst: 2.0,
        sender_rate: 0.001,
        ..ChannelLimits::default()
    };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    say(&rig, "sam", 2, "x").await;
    let answer = append(&rig, "sam", &json!({ "sequence": 3, "text": "x" })).await;
    let problem = answer.is_problem(429, "channel_rate_limited");
    assert_eq!((&problem["burst"], &problem["rate"]), (&json!(2.0), &json!(0.001)));
    let seconds: u64 = answer.header("retry-after").and_then(|text| text.parse().ok()).expect("a number");
    assert!((900..=1_000).contains(&seconds), "a thousand, without what has passed since: {seconds}");
    say(&rig, "eve", 1, "the process has one left").await;
    let answer = append(&rig, "eve", &json!({ "sequence": 2, "text": "x" })).await;
    assert_eq!(answer.is_problem(429, "channel_rate_limited")["burst"], 3.0);
    // Whoever may not append spends nothing, and is told so rather than to wait.
    append(&rig, "kim", &json!({ "text": "x" })).await.is_problem(403, "channel_forbidden");
    rig.stop().await;
    // Where nothing comes back there is no time to wait for.
    let limits = ChannelLimits { sender_burst: 1.0, sender_rate: 0.0, ..ChannelLimits::default() };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "x").await;
    let answer = append(&rig, "sam", &json!({ "sequence": 2, "text": "x" })).await;
    answer.is_problem(429, "channel_rate_limited");
    assert_eq!(answer.header("retry-after"), Some("86400"));
    rig.stop().await;
}

/// A body that nobody could parse is not even looked at, and whoever has not been too fast is told what is wrong with it.
#[tokio::test]
async fn who_appends_too_fast_is_refused_before_its_body_is_read() {
    let limits = ChannelLimits { sender_burst: 2.0, sender_rate: 0.0, ..ChannelLimits::default() };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    send(&rig, "POST", ENTRIES, "sam", "{no JSON").await.is_problem(400, "json_malformed");
    say(&rig, "sam", 1, "x").await;
    send(&rig, "POST", ENTRIES, "sam", "{no JSON").await.is_problem(400, "json_malformed");
    say(&rig, "sam", 2, "x").await;
    for _ in 0..3 {
        send(&rig, "POST", ENTRIES, "sam", "{no JSON").await.is_problem(429, "channel_rate_limited");
    }
    // Others have not been too fast.
    send(&rig, "POST", ENTRIES, "eve", "{no JSON").await.is_problem(400, "json_malformed");
    say(&rig, "eve", 1, "x").await;
    append(&rig, "kim", &json!({ "text": "x" })).await.is_problem(403, "channel_forbidden");
    rig.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_missing_entry_is_bound_in_bytes() {
    let limits = ChannelLimits { hold_bytes_max: 1_000, ..ChannelLimits::default() };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    let early = json!({ "sequence": 2, "text": "x".repeat(1_000) });
    let problem = append(&rig, "sam", &early).await.is_problem(429, "channel_hold_bytes_max");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("channel_hold_bytes_max"), &json!(1_000)));
    say(&rig, "sam", 1, "x").await;
    assert_eq!(good(&append(&rig, "sam", &early).await, 201)["position"], 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_channel_takes_the_end_and_one_that_drops_says_what_is_missing() {
    let rig = rig().await;
    job(&rig, &json!({ "name": "chat", "entries_max": 2 })).await;
    say(&rig, "sam", 1, "one").await;
    say(&rig, "sam", 2, "two").await;
    let full =
        append(&rig, "sam", &json!({ "sequence": 3, "text": "x" })).await.is_problem(409, "channel_full");
    assert_eq!((&full["entries"], &full["entries_max"]), (&json!(2), &json!(2)));
    assert_eq!(
        good(&append(&rig, "sam", &json!({ "sequence": 3, "type": "end" })).await, 201)["position"],
        3
    );
    let path = format!("{JOB}/channels/ring");
    let body = json!({ "full": "drop_oldest", "entries_max": 2 }).to_string();
    good(&send(&rig, "PUT", &path, "sam", &body).await, 201);
    let entries = format!("{path}/entries");
    for sequence in 1..=5 {
        let entry = json!({ "sequence": sequence, "text": sequence.to_string() }).to_string();
        good(&send(&rig, "POST", &entries, "sam", &entry).await, 201);
    }
    let page = good(&send(&rig, "GET", &format!("{entries}?after=1"), "sam", "").await, 200);
    assert_eq!(positions(&page), [4, 5]);
    assert_eq!((&page["missed"], &page["oldest"], &page["newest"]), (&json!(2), &json!(4), &json!(5)));
    let forgotten = send(&rig, "POST", &entries, "sam", "{\"sequence\":1,\"text\":\"1\"}").await;
    assert_eq!(forgotten.is_problem(409, "channel_sequence_forgotten")["sequence"], 1);
    let seen = good(&send(&rig, "GET", &path, "sam", "").await, 200);
    assert_eq!((&seen["dropped"], &seen["entries"]), (&json!(3), &json!(2)));
    rig.stop().await;
}

#[tokio::test]
async fn a_tenant_and_a_process_have_so_much_and_no_more() {
    let limits = ChannelLimits {
        processes_max: 1,
        channels_max: 2,
        process_bytes_max: 10,
        subscribers_max: 1,
        ..ChannelLimits::default()
    };
    let rig = rig_with(limits).await;
    job(&rig, &json!("chat")).await;
    let more = send(&rig, "PUT", "/v1/processes/job-2", "kim", "").await.is_problem(409, "processes_max");
    assert_eq!((&more["asked"], &more["max"]), (&json!(2), &json!(1)));
    good(&send(&rig, "PUT", "/v1/processes/job-2", "rival", "").await, 201);
    good(&send(&rig, "PUT", &format!("{JOB}/channels/b"), "sam", "").await, 201);
    let more =
        send(&rig, "PUT", &format!("{JOB}/channels/c"), "sam", "").await.is_problem(409, "channels_max");
    assert_eq!((&more["limit"], &more["max"]), (&json!("channels_max"), &json!(2)));
    say(&rig, "sam", 1, "1234567890").await;
    append(&rig, "sam", &json!({ "sequence": 2, "text": "x" })).await.is_problem(409, "process_bytes_max");
    let mut follower = super::follow::follow(&rig, "eve", "", "").await;
    follower.until("event: ready").await;
    let accept = [("Authorization", "Bearer token-of-oz"), ("Accept", "text/event-stream")];
    let more = rig.send("GET", ENTRIES, &accept, b"").await.is_problem(429, "channel_subscribers_max");
    assert_eq!(more["max"], 1);
    rig.stop().await;
}

/// Every code of a channel's error has an entry of its own; one without it would be `internal`.
#[test]
fn every_refusal_of_a_channel_is_known_to_the_edge() {
    for code in [
        "process_unknown",
        "channel_unknown",
        "channel_forbidden",
        "channel_access_revoked",
        "process_exists",
        "channel_exists",
        "channel_rate_limited",
        "channel_payload_bytes_max",
        "channel_full",
        "channels_max",
        "processes_max",
        "process_observers_max",
        "process_epochs_max",
        "process_bytes_max",
        "channel_error_bytes_max",
        "channel_batch_entries_max",
        "channel_batch_bytes_max",
        "channel_subscribers_max",
        "channel_hold_bytes_max",
        "channel_hold_host_bytes_max",
        "channel_sequence_invalid",
        "channel_sequence_gap",
        "channel_sequence_taken",
        "channel_sequence_forgotten",
        "channel_reply_unknown",
        "channel_half_closed",
        "process_closed",
        "channel_entry_invalid",
        "channel_name_invalid",
        "channel_option_invalid",
    ] {
        assert_eq!(Problem::new(code, "of a test").code(), code);
    }
}
