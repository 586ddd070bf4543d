//! Both ends of a log: who appends and who follows, over one connection each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use millrace_tests::channel_socket::{BinaryAppend, base64};
use millrace_tests::redis_server::RedisServer;

use super::wire::{Message, Redis, WebSocket, command, frame};
use super::{CHANNEL, EXECUTOR, PAYLOAD_BYTES, SUBMITTER, Server};

/// Who appends without waiting for each answer.
pub(super) trait Append: Send {
    /// Writes what appends an entry, numbered from 0 on.
    fn write(&self, number: u64, payload: &[u8], out: &mut Vec<u8>);
    fn send(&mut self, written: &[u8]) -> Result<()>;
    /// Waits until some are acknowledged, and says how many.
    fn acknowledged(&mut self) -> Result<u64>;
}

/// Who follows the same log from its beginning.
pub(super) trait Follow: Send {
    /// Waits until there is something; hands over payloads, where they are told as they are, and says how many entries
    /// it was.
    fn take(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<u64>;
}

/// How entries go over a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Binary,
    Json,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Entries(u64),
    /// So long.
    Span(Duration),
}

pub(super) fn payload() -> Vec<u8> {
    vec![b'x'; PAYLOAD_BYTES]
}

/// Appends with so many under way at a time. Answers how many were acknowledged.
pub(super) fn flood(append: &mut dyn Append, in_flight: u64, until: Until) -> Result<u64> {
    let (payload, begin) = (payload(), Instant::now());
    let (mut sent, mut acknowledged, mut out) = (0, 0, Vec::new());
    loop {
        let wanted = match until {
            Until::Entries(entries) => entries,
            Until::Span(span) if begin.elapsed() < span => u64::MAX,
            Until::Span(_) => sent,
        };
        out.clear();
        while sent < wanted && sent - acknowledged < in_flight {
            append.write(sent, &payload, &mut out);
            sent += 1;
        }
        append.send(&out)?;
        if acknowledged == sent {
            return Ok(acknowledged);
        }
        acknowledged += append.acknowledged()?;
        ensure!(acknowledged <= sent, "{acknowledged} of {sent} are acknowledged");
    }
}

#[derive(Debug)]
pub(super) struct SocketEnd {
    socket: WebSocket,
    process: String,
    form: Form,
}

impl SocketEnd {
    /// Who appends to a process's channel.
    pub(super) fn append(server: &Server, process: &str, form: Form) -> Result<Self> {
        let socket = WebSocket::open(server.addr())?;
        Ok(Self { socket, process: process.to_owned(), form })
    }

    /// Who follows it, and has been told so.
    pub(super) fn follow(server: &Server, process: &str, form: Form) -> Result<Self> {
        let mut end = Self::append(server, process, form)?;
        let binary = form == Form::Binary;
        end.socket.say(&format!(
            "{{\"op\":\"subscribe\",\"id\":\"a\",\"process\":\"{process}\",\"channel\":\"{CHANNEL}\",\
             \"as\":\"{EXECUTOR}\",\"credit\":1000000,\"binary\":{binary}}}"
        ))?;
        let mut is_ready = false;
        while !is_ready {
            end.socket.take(|message| {
                refuse_errors(message)?;
                is_ready |= has(message, b"\"op\":\"ready\"");
                Ok(())
            })?;
        }
        Ok(end)
    }

    /// Writes what appends an entry under the sender's next number, as binary.
    pub(super) fn write_unnumbered(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.write_binary(0, 0, payload, out);
    }

    fn write_binary(&self, reference: u64, sequence: u64, payload: &[u8], out: &mut Vec<u8>) {
        let append = BinaryAppend {
            reference,
            process: &self.process,
            channel: CHANNEL,
            party: SUBMITTER,
            sequence,
            payload: Some(payload),
            ..BinaryAppend::default()
        };
        frame(out, Message::Binary(&append.to_bytes()));
    }

    /// Hands over what the host says, refusals too.
    pub(super) fn answers(&mut self, each: impl FnMut(Message<'_>) -> Result<()>) -> Result<()> {
        self.socket.take(each)
    }
}

pub(super) fn has(message: Message<'_>, wanted: &[u8]) -> bool {
    matches!(message, Message::Text(text) if memmem::find(text, wanted).is_some())
}

fn refuse_errors(message: Message<'_>) -> Result<()> {
    if let Message::Text(text) = message
        && (has(message, b"\"op\":\"error\"") || has(message, b"\"op\":\"clos"))
    {
        bail!("the host says {}", String::from_utf8_lossy(text));
    }
    Ok(())
}

impl Append for SocketEnd {
    fn write(&self, number: u64, payload: &[u8], out: &mut Vec<u8>) {
        match self.form {
            Form::Binary => self.write_binary(number, number + 1, payload, out),
            Form::Json => {
                let text = format!(
                    "{{\"op\":\"append\",\"ref\":{number},\"process\":\"{}\",\"channel\":\"{CHANNEL}\",\
                     \"as\":\"{SUBMITTER}\",\"sequence\":{},\"payload\":\"{}\"}}",
                    self.process,
                    number + 1,
                    base64(payload)
                );
                frame(out, Message::Text(text.as_bytes()));
            }
        }
    }

    fn send(&mut self, written: &[u8]) -> Result<()> {
        self.socket.send(written)
    }

    fn acknowledged(&mut self) -> Result<u64> {
        let mut count = 0;
        while count == 0 {
            self.socket.take(|message| {
                if has(message, b"\"op\":\"appended\"") {
                    count += 1;
                    return Ok(());
                }
                refuse_errors(message)
            })?;
        }
        Ok(count)
    }
}

impl Follow for SocketEnd {
    fn take(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<u64> {
        let mut count = 0;
        self.socket.take(|message| {
            match message {
                Message::Binary(entry) => {
                    // Behind its numbers come the lengths of two texts.
                    let sender = usize::from(*entry.get(43).context("an entry names its sender")?);
                    each(entry.get(46 + sender..).context("an entry has a payload")?);
                    count += 1;
                }
                Message::Text(text) => {
                    refuse_errors(message)?;
                    if has(message, b"\"op\":\"entries\"") {
                        count += memmem::find_iter(text, b"\"position\":").count() as u64;
                    }
                }
            }
            Ok(())
        })?;
        Ok(count)
    }
}

#[derive(Debug)]
pub(super) struct RedisEnd {
    redis: Redis,
    stream: String,
    /// The id of the last entry that was read.
    last: String,
}

impl RedisEnd {
    /// Either end of a stream.
    pub(super) fn of(server: &RedisServer, stream: &str) -> Result<Self> {
        Ok(Self { redis: Redis::open(server.port())?, stream: stream.to_owned(), last: "0".to_owned() })
    }
}

impl Append for RedisEnd {
    fn write(&self, number: u64, payload: &[u8], out: &mut Vec<u8>) {
        let sequence = (number + 1).to_string();
        let fields: [&[u8]; 8] = [
            b"senderid",
            SUBMITTER.as_bytes(),
            b"sequence",
            sequence.as_bytes(),
            b"type",
            b"data",
            b"payload",
            payload,
        ];
        let words: [&[u8]; 3] = [b"XADD", self.stream.as_bytes(), b"*"];
        command(out, &[&words[..], &fields[..]].concat());
    }

    fn send(&mut self, written: &[u8]) -> Result<()> {
        self.redis.send(written)
    }

    fn acknowledged(&mut self) -> Result<u64> {
        self.redis.answers()
    }
}

impl Follow for RedisEnd {
    fn take(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<u64> {
        let mut out = Vec::new();
        let words: [&[u8]; 8] = [
            b"XREAD",
            b"COUNT",
            b"1000",
            b"BLOCK",
            b"0",
            b"STREAMS",
            self.stream.as_bytes(),
            self.last.as_bytes(),
        ];
        command(&mut out, &words);
        self.redis.send(&out)?;
        let (count, last) = self.redis.entries(each)?;
        if let Some(last) = last {
            self.last = last;
        }
        Ok(count)
    }
}
