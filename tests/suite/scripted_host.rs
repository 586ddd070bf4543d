//! A server that says what it is told to, and keeps what it was asked.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Answers one connection after another, and keeps what it was asked. Then nobody is there any more.
pub(crate) struct Scripted {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A request: its first line, all of its head, and its body.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) head: String,
    /// Null of what is no JSON.
    pub(crate) body: Value,
    pub(crate) bytes: Vec<u8>,
}

impl Scripted {
    /// An empty answer breaks the connection.
    pub(crate) fn new(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let shared = Arc::clone(&asked);
        std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                shared.lock().unwrap().push(read_request(&stream));
                // A client that has seen enough may be gone.
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        Self { url, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let (mut head, mut bytes) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            bytes = length.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).unwrap();
    let (bytes, body) = (body.clone(), serde_json::from_slice(&body).unwrap_or_default());
    Asked { line: head.lines().next().unwrap_or_default().to_owned(), head: head.to_lowercase(), body, bytes }
}

pub(crate) fn answer(status: &str, more: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\
         {more}\r\n{body}"
    )
}

pub(crate) fn fine(body: Value) -> String {
    answer("200 OK", "", &body)
}

pub(crate) fn problem(status: u16, code: &str) -> String {
    let body = json!({ "status": status, "code": code, "title": "no", "detail": "it is so", "fix": "do so" });
    answer(&format!("{status} No"), "", &body)
}
