//! A client in Python that does what it is told, and tells what it saw.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout};

use serde_json::{Value, json};

use super::python;

/// `tests/peer/caller.py`. Killed when dropped. Who calls is a token, or nobody.
pub(super) struct Caller {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    pub(super) fn start(port: u16) -> Self {
        let mut child = python("caller.py", port, &[]);
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, lines }
    }

    /// Carries out a command of the program.
    #[track_caller]
    pub(super) fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.input, "{command}").unwrap();
        let line = self.lines.next().expect("it answers, or its standard error says why not").unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    pub(super) fn get(&mut self, who: Option<&str>, client: &str) -> Value {
        self.ask(&json!({ "do": "get", "headers": headers(who), "client": client }))
    }

    pub(super) fn put(&mut self, who: Option<&str>, client: &str, kind: &str, value: &Value) -> Value {
        self.ask(&json!({
            "do": "put", "headers": headers(who), "client": client, "content_type": kind, "value": value,
        }))
    }

    /// Opens a stream. What becomes of it is seen where it is read.
    pub(super) fn open(&mut self, stream: &str, who: Option<&str>, asked: &Value) {
        self.ask(&json!({ "do": "open", "stream": stream, "headers": headers(who), "asked": asked }));
    }

    /// The next so many messages, or fewer at an end.
    pub(super) fn messages(&mut self, stream: &str, count: usize) -> Vec<Value> {
        let answer = self.ask(&json!({ "do": "read", "stream": stream, "messages": count }));
        said(&answer)
    }

    /// The next so many events; what is said about the stream is passed over.
    #[track_caller]
    pub(super) fn events(&mut self, stream: &str, count: usize) -> Vec<Value> {
        let answer = self.ask(&json!({ "do": "read", "stream": stream, "events": count }));
        let mut events = said(&answer);
        events.retain(|event| event["kind"] != "stream");
        let is_event = |event: &Value| event["kind"].is_string();
        assert!(events.len() == count && events.iter().all(is_event), "{stream}: {events:?}");
        events
    }

    /// What a stream says until it is live; its own message of that is the last.
    #[track_caller]
    pub(super) fn until_live(&mut self, stream: &str) -> Vec<Value> {
        let answer = self.ask(&json!({ "do": "read", "stream": stream, "live": true }));
        let said = said(&answer);
        let last = said.last().unwrap();
        assert_eq!(last["data"], json!({ "phase": "live" }), "{stream}: {last}");
        said
    }

    pub(super) fn read_to_the_end(&mut self, stream: &str) -> Vec<Value> {
        let answer = self.ask(&json!({ "do": "read", "stream": stream }));
        said(&answer)
    }

    /// The status that a stream begins with.
    pub(super) fn refused(&mut self, who: Option<&str>, asked: &Value) -> Value {
        self.open("refused", who, asked);
        self.messages("refused", 1).remove(0)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn headers(who: Option<&str>) -> Value {
    who.map_or_else(|| json!([]), |token| json!([["x-api-key", token]]))
}

fn said(answer: &Value) -> Vec<Value> {
    answer["said"].as_array().unwrap().clone()
}

/// Code and details of what was refused.
pub(super) fn status(answer: &Value) -> (&str, &str) {
    (answer["code"].as_str().unwrap_or("OK"), answer["details"].as_str().unwrap_or_default())
}

/// What events say.
pub(super) fn data(events: &[Value]) -> Vec<&Value> {
    events.iter().map(|event| &event["data"]).collect()
}
