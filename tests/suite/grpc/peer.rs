//! Clients of another make: a processor in Python, and below what such a client sees, call by call.

mod bounds;
mod caller;
mod checkpoints;
mod events;
mod restarts;
mod who;

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use millrace::processors::source::{CheckpointClient as _, JsonText};
use serde_json::{Value, json};

use super::scene::{OPERATOR, Scene, TRACER, publish};

/// Starts a program of `tests/peer`, which is spoken to in lines.
fn python(program: &str, port: u16, more: &[&str]) -> Child {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer");
    let python = place.join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: `cargo xtask test` makes it", python.display());
    Command::new(python)
        .args(["-B", program, "--endpoint", &format!("127.0.0.1:{port}")])
        .args(more)
        .current_dir(place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// `tests/peer/client.py`, as the client `tracer`. Killed when dropped.
struct Processor {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Processor {
    fn start(scene: &Scene, more: &[&str]) -> Self {
        Self::at(scene.port(), &[&["--api-key", TRACER][..], more].concat())
    }

    fn at(port: u16, more: &[&str]) -> Self {
        let own = ["--client-id", "tracer", "--after-cursor", "start"];
        let mut child = python("client.py", port, &[&own[..], more].concat());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("it says something").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The numbers of the next events.
    fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let said = self.next();
            assert!(said.get("error").is_none(), "{said}");
            numbers.extend(said["data"]["number"].as_u64());
        }
        numbers
    }

    /// Ends it like a crash. Answers the numbers that it has said before.
    fn kill(mut self) -> Vec<u64> {
        self.child.kill().unwrap();
        let mut numbers = Vec::new();
        while let Some(Ok(line)) = self.lines.next() {
            // The last line may be cut off.
            let said: Value = serde_json::from_str(&line).unwrap_or_default();
            numbers.extend(said["data"]["number"].as_u64());
        }
        numbers
    }

    /// Ends it with a last put.
    fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn publish_numbers(scene: &Scene, numbers: std::ops::Range<u64>) {
    let payloads: Vec<_> = numbers.map(|number| json!({ "number": number })).collect();
    for some in payloads.chunks(500) {
        publish(&scene.http(Some(OPERATOR)), "response", "created", some).await;
    }
}

/// What it had not saved comes again, and nothing is missing.
fn nothing_is_missing(seen: &[u64], count: u64) {
    let mut sorted = seen.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, (0..count).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_of_another_make_misses_nothing_over_kills() {
    let scene = Scene::with_tokens().await;
    for (more, count) in [(&[][..], 300), (&["--better"][..], 5_000)] {
        let begin = if more.is_empty() { 0 } else { 300 };
        publish_numbers(&scene, begin..count / 2).await;
        let kinds = ["--kinds", "response"];
        let arguments = [more, &kinds[..]].concat();
        let mut processor = Processor::start(&scene, &arguments);
        let from = processor.next();
        assert_eq!(from["handled"], begin, "{from}");
        let part = usize::try_from((count / 2 - begin) / 3).unwrap();
        let mut seen = processor.numbers(part);
        seen.extend(processor.kill());
        publish_numbers(&scene, count / 2..count).await;
        let mut processor = Processor::start(&scene, &arguments);
        while seen.last() != Some(&(count - 1)) {
            seen.extend(processor.numbers(1));
        }
        processor.stop();
        seen.extend(0..begin);
        nothing_is_missing(&seen, count);
        let kept = scene.client("tracer", Some(TRACER)).get("tracer").await.unwrap().unwrap();
        assert_eq!(kept.content_type, "application/vnd.count+json;v=1");
        assert!(kept.value.value()["lastEventCursor"].is_string());
        // The next one counts from here, without what came twice.
        let path = "/v1/admin/checkpoints/tracer";
        let client = scene.http(Some(TRACER));
        let body = json!({
            "contentType": kept.content_type,
            "value": { "handled": count, "lastEventCursor": kept.value.value()["lastEventCursor"] },
        });
        let request = client.request(reqwest::Method::PUT, path).body(body.to_string());
        client.send(request).await.unwrap().ok().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_begins_with_a_dead_cursor_begins_anew() {
    let scene = Scene::with_tokens().await;
    publish_numbers(&scene, 0..10).await;
    let client = scene.client("tracer", Some(TRACER));
    let state = JsonText::from(&json!({ "handled": 0, "lastEventCursor": "old.7" }));
    client.put("tracer", "application/vnd.count+json;v=1", state).await.unwrap();
    let mut processor = Processor::start(&scene, &["--better"]);
    assert_eq!(processor.next()["from"], "old.7");
    let told = processor.next();
    assert_eq!(told["stream"], "invalidate", "{told}");
    assert_eq!(processor.numbers(10), (0..10).collect::<Vec<_>>());
    processor.stop();
}
