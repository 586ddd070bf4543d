//! Appending over HTTP: what is taken, in which forms, and what is refused.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::channels::ChannelLimits;
use serde_json::{Value, json};

use super::super::rig::{PATIENCE, Rig};
use super::{ENTRIES, JOB, append, good, job, positions, rig, rig_with, say, send};

#[tokio::test]
async fn an_entry_is_answered_with_its_place_and_a_repeat_with_the_first_one() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let entry = json!({ "sequence": 1, "payload": "aGVsbG8=" });
    let answer = good(&append(&rig, "sam", &entry).await, 201);
    assert_eq!(answer, json!({ "position": 1, "sequence": 1, "epoch": 0, "repeated": false }));
    let answer = good(&append(&rig, "eve", &json!({ "text": "hi", "inreplyto": 1 })).await, 201);
    assert_eq!(answer, json!({ "position": 2, "sequence": 1, "epoch": 1, "repeated": false }));
    let again = good(&append(&rig, "sam", &entry).await, 200);
    assert_eq!(again, json!({ "position": 1, "sequence": 1, "epoch": 0, "repeated": true }));
    let batch =
        json!([{ "sequence": 1, "text": "hello" }, { "sequence": 2 }, { "sequence": 3, "type": "end" }]);
    let answer = good(&append(&rig, "sam", &batch).await, 201);
    let appended = answer["appended"].as_array().expect("answers");
    let places: Vec<_> =
        appended.iter().map(|one| (one["position"].as_u64(), one["repeated"].as_bool())).collect();
    assert_eq!(places, [(Some(1), Some(true)), (Some(3), Some(false)), (Some(4), Some(false))]);
    assert_eq!(good(&append(&rig, "sam", &batch).await, 200)["appended"][2]["repeated"], true);
    assert_eq!(good(&append(&rig, "sam", &json!([])).await, 200), json!({ "appended": [] }));
    let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
    assert_eq!(positions(&page), [1, 2, 3, 4]);
    rig.stop().await;
}

#[tokio::test]
async fn an_entry_is_written_as_it_always_was() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    for (who, entry) in [
        ("sam", "{\"sequence\":1,\"payload\":\"AP8=\",\"type\":\"\"}"),
        ("eve", "{\"sequence\":1,\"inreplyto\":1,\"payload\":\"\",\"error\":\"\"}"),
        (
            "eve",
            "{\"sequence\":2,\"inreplyto\":0,\"payload\":null,\"type\":\"error\",\"error\":\"no \\\"ink\\\"\"}",
        ),
        ("sam", "{\"sequence\":2,\"type\":\"end\",\"text\":\"\\u00e9\\n\"}"),
    ] {
        good(&send(&rig, "POST", ENTRIES, who, entry).await, 201);
    }
    let text = send(&rig, "GET", ENTRIES, "sam", "").await.text();
    let page: Value = serde_json::from_str(&text).expect("JSON");
    let next = page["next"].as_str().expect("a cursor");
    assert!(next.ends_with(".4"), "{next}");
    let at = "2013-01-01T12:00:00Z";
    let expected = format!(
        "{{\"entries\":[\
         {{\"position\":1,\"senderid\":\"sam\",\"epoch\":0,\"sequence\":1,\"timestamp\":\"{at}\",\"type\":\"data\",\"payload\":\"AP8=\"}},\
         {{\"position\":2,\"senderid\":\"eve\",\"epoch\":1,\"sequence\":1,\"inreplyto\":1,\"timestamp\":\"{at}\",\"type\":\"data\",\"payload\":\"\"}},\
         {{\"position\":3,\"senderid\":\"eve\",\"epoch\":1,\"sequence\":2,\"timestamp\":\"{at}\",\"type\":\"error\",\"error\":\"no \\\"ink\\\"\",\"payload\":null}},\
         {{\"position\":4,\"senderid\":\"sam\",\"epoch\":0,\"sequence\":2,\"timestamp\":\"{at}\",\"type\":\"end\",\"payload\":\"w6kK\"}}\
         ],\"next\":\"{next}\",\"oldest\":1,\"newest\":4,\"missed\":0,\"closed\":\"ended\"}}"
    );
    assert_eq!(text, expected);
    rig.stop().await;
}

#[tokio::test]
async fn payloads_are_sent_and_shown_as_base64_text_or_json() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    for entry in [
        "{\"text\":\"line\\none\"}",
        "{\"json\":{\"big\":9007199254740993,\r\n \"b\":1.10}}",
        "{\"json\":null}",
        "{\"payload\":\"\\/w==\"}",
        "{}",
    ] {
        good(&send(&rig, "POST", ENTRIES, "sam", entry).await, 201);
    }
    let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
    let payloads: Vec<_> =
        page["entries"].as_array().expect("entries").iter().map(|e| &e["payload"]).collect();
    assert_eq!(payloads[0], "bGluZQpvbmU=");
    assert_eq!((payloads[2], payloads[3], payloads[4]), (&json!("bnVsbA=="), &json!("/w=="), &Value::Null));
    let text = good(&send(&rig, "GET", &format!("{ENTRIES}?payload=text"), "sam", "").await, 200);
    assert_eq!(text["entries"][0]["text"], "line\none");
    assert_eq!(text["entries"][1]["text"], "{\"big\":9007199254740993,\r\n \"b\":1.10}", "byte for byte");
    assert_eq!(
        (&text["entries"][2]["text"], &text["entries"][3]["payload"]),
        (&json!("null"), &json!("/w=="))
    );
    assert!(text["entries"][3].get("text").is_none(), "{text}");
    let raw = send(&rig, "GET", &format!("{ENTRIES}?payload=json"), "sam", "").await;
    assert!(raw.text().contains("\"json\":{\"big\":9007199254740993,   \"b\":1.10}"), "{}", raw.text());
    let page = raw.json();
    assert_eq!(
        (&page["entries"][0]["payload"], &page["entries"][2]["json"]),
        (&json!("bGluZQpvbmU="), &Value::Null)
    );
    assert!(page["entries"][2].get("payload").is_none(), "{page}");
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_entry_is_refused_by_name_and_leaves_nothing() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let (sequence, entry, json) = ("channel_sequence_invalid", "channel_entry_invalid", "json_malformed");
    let long = json!({ "type": "error", "error": "x".repeat(4_097) }).to_string();
    for (body, status, code) in [
        ("", 400, json),
        ("{", 400, json),
        ("{}{}", 400, json),
        ("[{}] []", 400, json),
        ("7", 400, json),
        ("null", 400, json),
        ("\"text\"", 400, json),
        ("{\"text\":\"\u{1}\"}", 400, json),
        ("{\"sequence\":0}", 400, sequence),
        ("{\"sequence\":-1}", 400, sequence),
        ("{\"sequence\":1.0}", 400, sequence),
        ("{\"sequence\":1e3}", 400, sequence),
        ("{\"sequence\":\"1\"}", 400, sequence),
        ("{\"sequence\":true}", 400, sequence),
        ("{\"sequence\":[1]}", 400, sequence),
        ("{\"sequence\":9007199254740992}", 400, sequence),
        ("{\"sequence\":18446744073709551616}", 400, sequence),
        ("{\"sequence\":-170141183460469231731687303715884105729}", 400, sequence),
        ("{\"inreplyto\":-1}", 400, sequence),
        ("{\"inreplyto\":0.5}", 400, sequence),
        ("{\"type\":\"stop\"}", 400, entry),
        ("{\"type\":\"Data\"}", 400, entry),
        ("{\"type\":7}", 400, entry),
        ("{\"payload\":7}", 400, entry),
        ("{\"payload\":\"a\"}", 400, entry),
        ("{\"payload\":\"aGk\"}", 400, entry),
        ("{\"payload\":\"aGk=\\n\"}", 400, entry),
        ("{\"payload\":\"aGl=\"}", 400, entry),
        ("{\"payload\":\"-_==\"}", 400, entry),
        ("{\"payload\":\"====\"}", 400, entry),
        ("{\"payload\":\"\",\"text\":\"\"}", 400, entry),
        ("{\"text\":\"\",\"json\":null}", 400, entry),
        ("{\"error\":\"not of an error\"}", 400, entry),
        ("{\"position\":1}", 400, entry),
        ("{\"senderid\":\"eve\"}", 400, entry),
        ("{\"sequence\":1,\"sequence\":1}", 400, entry),
        ("{\"tenant\":\"beta\"}", 400, "tenant_in_body"),
        ("[[]]", 400, entry),
        ("[{},7]", 400, entry),
        (long.as_str(), 413, "channel_error_bytes_max"),
    ] {
        let problem = send(&rig, "POST", ENTRIES, "sam", body).await.is_problem(status, code);
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() < 500), "{problem}");
    }
    let body = "[{\"text\":\"good\"},{\"sequence\":0}]";
    let problem = send(&rig, "POST", ENTRIES, "sam", body).await.is_problem(400, sequence);
    assert_eq!((&problem["index"], &problem["member"]), (&json!(1), &json!("sequence")));
    let latin =
        rig.send("POST", ENTRIES, &[("Authorization", "Bearer token-of-sam")], b"{\"text\":\"\xe9\"}");
    latin.await.is_problem(400, json);
    for (query, code) in [("?epoch=-1", "parameter_invalid"), ("?after=1", "parameter_unknown")] {
        send(&rig, "POST", &format!("{ENTRIES}{query}"), "sam", "{}").await.is_problem(400, code);
    }
    let none = "/v1/processes/job-1/channels/none/entries";
    send(&rig, "POST", none, "sam", "{}").await.is_problem(404, "channel_unknown");
    let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
    assert_eq!(positions(&page), [0_u64; 0]);
    rig.stop().await;
}

#[tokio::test]
async fn what_the_log_refuses_says_what_is_missing_or_in_the_way() {
    let rig = rig().await;
    job(&rig, &json!({ "name": "chat", "gaps": "report" })).await;
    say(&rig, "sam", 1, "one").await;
    let gap = append(&rig, "sam", &json!({ "sequence": 4, "text": "x" })).await;
    let gap = gap.is_problem(409, "channel_sequence_gap");
    assert_eq!((&gap["expected"], &gap["sequence"], &gap["epoch"]), (&json!(2), &json!(4), &json!(0)));
    let taken = append(&rig, "sam", &json!({ "sequence": 1, "text": "other" })).await;
    assert_eq!(taken.is_problem(409, "channel_sequence_taken")["position"], 1);
    let unknown = append(&rig, "eve", &json!({ "inreplyto": 2, "text": "x" })).await;
    assert_eq!(unknown.is_problem(409, "channel_reply_unknown")["inreplyto"], 2);
    append(&rig, "sam", &json!({ "inreplyto": 1, "text": "x" }))
        .await
        .is_problem(409, "channel_reply_unknown");
    good(&append(&rig, "sam", &json!({ "sequence": 2, "type": "end" })).await, 201);
    let ended = append(&rig, "sam", &json!({ "sequence": 3, "text": "x" })).await;
    assert_eq!(ended.is_problem(409, "channel_half_closed")["ended_by"], "end");
    say(&rig, "eve", 1, "the other half is open").await;
    // All or nothing.
    let batch = json!([{ "sequence": 2, "text": "a" }, { "sequence": 4, "text": "b" }]);
    append(&rig, "eve", &batch).await.is_problem(409, "channel_sequence_gap");
    let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
    assert_eq!(positions(&page), [1, 2, 3]);
    rig.stop().await;
}

#[tokio::test]
async fn an_entry_waits_for_its_forerunner_and_no_longer_than_it_may() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle).await;
    let path = |who: &str| format!("{ENTRIES}?as={who}");
    let body = json!({ "executor": "eve", "channels": ["chat"] }).to_string();
    good(&rig.send("PUT", &format!("{JOB}?as=sam"), &[], body.as_bytes()).await, 201);
    let second_path = path("sam");
    let second = rig.send("POST", &second_path, &[], b"{\"sequence\":2,\"text\":\"two\"}");
    let first = async {
        let held = async {
            while !rig.get("/metrics").await.text().contains("millrace_channel_held_total 1\n") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, held).await.expect("it is held");
        rig.send("POST", &path("sam"), &[], b"{\"sequence\":1,\"text\":\"one\"}").await
    };
    let (second, first) = tokio::join!(second, first);
    assert_eq!((&good(&first, 201)["position"], &good(&second, 201)["position"]), (&json!(1), &json!(2)));
    let refused = rig.send("POST", &path("sam"), &[], b"{\"sequence\":1,\"text\":\"other\"}").await;
    refused.is_problem(409, "channel_sequence_taken");
    good(&rig.send("POST", &path("sam"), &[], b"{\"sequence\":1,\"text\":\"one\"}").await, 200);
    let metrics = rig.get("/metrics").await.text();
    for line in [
        "millrace_channel_entries_total 2\n",
        "millrace_channel_bytes_total 6\n",
        "millrace_channel_repeats_total 1\n",
        "millrace_channel_refused_total{code=\"channel_sequence_taken\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    rig.stop().await;
    let rig = rig_with(ChannelLimits { hold: Duration::from_millis(10), ..ChannelLimits::default() }).await;
    job(&rig, &json!("chat")).await;
    let late = append(&rig, "sam", &json!({ "sequence": 2, "text": "two" })).await;
    assert_eq!(late.is_problem(409, "channel_sequence_gap")["expected"], 1);
    rig.stop().await;
}

/// What is waited for may never come; who waits is let go when its credential ends.
#[tokio::test]
async fn an_append_that_waits_ends_with_its_credential() {
    let rig = rig_with(ChannelLimits { hold: Duration::from_secs(600), ..ChannelLimits::default() }).await;
    job(&rig, &json!("chat")).await;
    let entry = json!({ "sequence": 2, "text": "two" });
    let held = append(&rig, "sam", &entry);
    let revoked = async {
        // Its connection came first: it waits when this is answered.
        good(&send(&rig, "GET", JOB, "sam", "").await, 200);
        good(&send(&rig, "POST", "/v1/auth/revoke", "boss", "{\"name\":\"sam\"}").await, 200);
    };
    let (held, ()) = tokio::join!(held, revoked);
    held.is_problem(401, "token_revoked");
    rig.stop().await;
}
