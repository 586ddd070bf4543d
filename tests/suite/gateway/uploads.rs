//! NDJSON uploads.

use serde_json::{Value, json};

use super::rig::Rig;

fn line(version: u64) -> String {
    format!(
        "{{\"aggregate\":\"thing\",\"agg_id\":\"a\",\"version\":{version},\"type\":\"thing.made\",\"payload\":{{\"n\":{version}}}}}\n"
    )
}

const HEAD: &[u8] = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

fn place(answer: &Value) -> u64 {
    let cursor = answer["position"].as_str().unwrap_or_else(|| panic!("a position in {answer}"));
    cursor.split_once('.').and_then(|(_, place)| place.parse().ok()).expect("a cursor")
}

#[tokio::test]
async fn every_line_has_its_answer_in_order() {
    let rig = Rig::start().await;
    let body: String = (1..=5_000).map(line).collect();
    let answer = rig.post("application/x-ndjson", body.as_bytes()).await;
    let lines = answer.lines();
    assert_eq!(lines.len(), 5_000);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(place(line), index as u64 + 1);
        assert_eq!(line["repeated"], false);
    }
    // Without the last line break, and all of it once more.
    let again = rig.post("application/x-ndjson", body.trim_end().as_bytes()).await.lines();
    assert!(again.iter().zip(&lines).all(|(a, b)| a["position"] == b["position"] && a["repeated"] == true));
    assert_eq!(again.len(), 5_000);
    rig.stop().await;
}

#[tokio::test]
async fn a_malformed_line_answers_an_error_and_the_others_go_on() {
    let rig = Rig::start().await;
    let body = format!("{}not json\n\n{}{{\"aggregate\":\"x\"}}\r\n{}", line(1), line(2), line(3));
    let answer = rig.post("application/x-ndjson", body.as_bytes()).await;
    let lines = answer.lines();
    assert_eq!(lines.len(), 5, "{}", answer.text());
    assert_eq!(place(&lines[0]), 1);
    assert_eq!(lines[1]["error"]["code"], "json_malformed");
    assert_eq!(lines[1]["error"]["line"], 2);
    assert_eq!(place(&lines[2]), 2);
    assert_eq!(lines[3]["error"]["code"], "event_invalid");
    assert_eq!(lines[3]["error"]["line"], 5, "blank lines count");
    assert_eq!(place(&lines[4]), 3);
    rig.stop().await;
}

#[tokio::test]
async fn a_conflict_refuses_its_batch_whole_and_no_other() {
    let rig = Rig::start().await;
    assert_eq!(rig.post("application/x-ndjson", line(1500).as_bytes()).await.status, 200);
    let body: String = (1..=2_500)
        .map(|version| if version == 1_500 { line(1_500).replace("\"n\"", "\"m\"") } else { line(version) })
        .collect();
    // The whole upload is one piece, so that its batches are full ones.
    let answers = rig.post("application/x-ndjson", body.as_bytes()).await.lines();
    assert_eq!(answers.len(), 2_500);
    let taken: Vec<_> = answers.iter().filter(|a| a["error"]["code"] == "event_id_taken").collect();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0]["error"]["line"], 1_500);
    assert_eq!(answers[1_499]["error"]["code"], "event_id_taken");
    let refused: Vec<u64> = answers
        .iter()
        .filter(|a| a["error"]["code"] == "batch_refused")
        .map(|a| a["error"]["line"].as_u64().expect("a line number"))
        .collect();
    assert!(refused.len() < 1_000, "only the batch of the conflict is refused");
    // What was answered with a position is in the log, what was refused is not.
    let mut stored = Vec::new();
    let mut after = "oldest".to_owned();
    loop {
        let page = rig.get(&format!("/v1/streams/events?limit=4096&after={after}")).await.json();
        let events = page["events"].as_array().expect("events").clone();
        if events.is_empty() {
            break;
        }
        stored.extend(events.iter().map(|e| e["version"].as_u64().expect("a version")));
        after = page["next"].as_str().expect("a cursor").to_owned();
    }
    stored.sort_unstable();
    let accepted: Vec<u64> = (1..=2_500u64).filter(|v| *v == 1_500 || !refused.contains(v)).collect();
    assert_eq!(stored, accepted);
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_publisher_gets_each_answer_at_once() {
    let rig = Rig::start().await;
    let mut client = rig.connect().await;
    client.write(HEAD).await;
    let mut seen = String::new();
    for version in 1..=3 {
        client.write(&chunk(&line(version))).await;
        client.read_until(&mut seen, &format!(".{version}\"")).await;
    }
    // A line may come in pieces.
    let whole = line(4);
    let (first, second) = whole.split_at(30);
    client.write(&chunk(first)).await;
    client.write(&chunk(second)).await;
    client.read_until(&mut seen, ".4\"").await;
    client.write(b"0\r\n\r\n").await;
    client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_skipped_without_being_kept() {
    let rig = Rig::start().await;
    let body = format!("{}{}\n{}", line(1), "x".repeat(3 << 20), line(2));
    let answers = rig.post("application/x-ndjson", body.as_bytes()).await.lines();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1]["error"]["code"], "event_line_bytes_max");
    assert_eq!(answers[1]["error"]["line"], 2);
    assert_eq!(place(&answers[2]), 2);
    rig.stop().await;
}

#[tokio::test]
async fn three_gigabytes_are_refused_before_a_byte_is_read() {
    let rig = Rig::start().await;
    for content_type in ["application/x-ndjson", "application/json"] {
        let mut client = rig.connect().await;
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n\
             Connection: close\r\nContent-Length: 3221225472\r\n\r\n"
        );
        client.write(head.as_bytes()).await;
        let code = if content_type == "application/json" { "body_bytes_max" } else { "upload_bytes_max" };
        let problem = client.answer().await.is_problem(413, code);
        assert_eq!(problem["asked"], json!(3_221_225_472u64));
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_endless_upload_is_cut_at_the_limit_and_keeps_what_was_acknowledged() {
    let rig = Rig::with(|options| {
        options.upload_bytes_max = 200_000;
        options.body_bytes_max = 10_000;
    })
    .await;
    let mut client = rig.connect().await;
    client.write(HEAD).await;
    let mut version = 0;
    for _ in 0..40 {
        let mut lines = String::new();
        for _ in 0..100 {
            version += 1;
            lines.push_str(&line(version));
        }
        client.write(&chunk(&lines)).await;
    }
    let answers = client.answer().await.lines();
    let (last, acknowledged) = answers.split_last().expect("answers");
    assert_eq!(last["error"]["code"], "upload_bytes_max");
    assert!(acknowledged.len() > 1_000 && acknowledged.len() < 4_000, "{}", acknowledged.len());
    let newest = rig.store_newest();
    assert_eq!(newest, acknowledged.len() as u64, "acknowledged and stored are the same");

    let mut client = rig.connect().await;
    client.write(String::from_utf8_lossy(HEAD).replace("x-ndjson", "json").as_bytes()).await;
    for _ in 0..20 {
        client.write(&chunk(&" ".repeat(1_000))).await;
    }
    client.answer().await.is_problem(413, "body_bytes_max");
    rig.stop().await;
}

#[tokio::test]
async fn a_stuck_client_is_told_and_let_go() {
    let rig = Rig::with(|options| options.body_idle_max = std::time::Duration::from_millis(200)).await;
    // Nothing at all: a status.
    let mut client = rig.connect().await;
    client.write(HEAD).await;
    client.answer().await.is_problem(408, "body_idle_max");
    // After some lines: their answers, and an error line.
    let mut client = rig.connect().await;
    client.write(&[HEAD, &chunk(&format!("{}{{\"aggreg", line(1)))].concat()).await;
    let answers = client.answer().await.lines();
    assert_eq!(answers.len(), 2);
    assert_eq!(place(&answers[0]), 1);
    assert_eq!(answers[1]["error"]["code"], "body_idle_max");
    // A whole body that stops half way.
    let mut client = rig.connect().await;
    client
        .write(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        .await;
    client.answer().await.is_problem(408, "body_idle_max");
    rig.stop().await;
}

#[tokio::test]
async fn a_failing_store_ends_the_upload_and_nothing_acknowledged_is_lost() {
    let rig = Rig::start().await;
    rig.log.fail_after(2);
    let body: String = (1..=10_000).map(line).collect();
    let answers = rig.post("application/x-ndjson", body.as_bytes()).await.lines();
    let acknowledged = answers.iter().filter(|a| a["position"].is_string()).count();
    let refused: Vec<_> = answers.iter().filter(|a| a["error"].is_object()).collect();
    assert!(!refused.is_empty() && refused.iter().all(|a| a["error"]["code"] == "disk_full"));
    assert!(answers.len() < 10_000, "the rest has no answer");
    assert_eq!(rig.store_newest(), acknowledged as u64);
    rig.stop().await;
}

#[tokio::test]
async fn stopping_answers_what_was_read_and_says_that_it_stops() {
    let rig = Rig::start().await;
    let mut client = rig.connect().await;
    client.write(HEAD).await;
    client.write(&chunk(&line(1))).await;
    let mut seen = String::new();
    client.read_until(&mut seen, ".1\"").await;
    rig.cancel();
    client.read_until(&mut seen, "host_stopping").await;
    rig.stop().await;
}
