//! Clients that block and speak just enough of their protocols: what they cost is small beside what they measure, and
//! about the same on both sides of a comparison.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;

const WAIT_MAX: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 256 << 10;

/// A connection, and what has come over it and is not taken yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Connection {
    pub(super) fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        Ok(Self { stream, buffer: Vec::new(), filled: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    fn all(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Waits until more has come.
    fn fill(&mut self) -> Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize((2 * self.filled).max(BUFFER_BYTES), 0);
        }
        let read = self.stream.read(&mut self.buffer[self.filled..]).context("nothing came")?;
        ensure!(read > 0, "the other side has closed: {}", String::from_utf8_lossy(self.all()));
        self.filled += read;
        Ok(())
    }

    /// The first so many bytes are taken.
    fn take(&mut self, bytes: usize) {
        self.buffer.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }

    /// Waits until something has come. What came goes on to its end.
    pub(super) fn until(&mut self, wanted: &[u8]) -> Result<String> {
        loop {
            if let Some(at) = memmem::find(self.all(), wanted) {
                let end = at + wanted.len();
                let text = String::from_utf8_lossy(&self.all()[..end]).into_owned();
                self.take(end);
                return Ok(text);
            }
            self.fill()?;
        }
    }

    /// Keeps the connection alone: nothing more is read.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// A message over a WebSocket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message<'a> {
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

#[derive(Debug)]
pub(super) struct WebSocket(Connection);

impl WebSocket {
    pub(super) fn open(addr: SocketAddr) -> Result<Self> {
        let mut connection = Connection::open(addr)?;
        connection.write(
            b"GET /v1/channels/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nConnection: Upgrade\r\n\
              Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )?;
        let head = connection.until(b"\r\n\r\n")?;
        ensure!(head.starts_with("HTTP/1.1 101"), "no WebSocket: {head}");
        Ok(Self(connection))
    }

    /// Sends what [`frame`] has written.
    pub(super) fn send(&mut self, frames: &[u8]) -> Result<()> {
        self.0.write(frames)
    }

    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        let mut out = Vec::new();
        frame(&mut out, Message::Text(text.as_bytes()));
        self.send(&out)
    }

    /// Keeps the connection alone: nothing more is read.
    pub(super) fn into_stream(self) -> TcpStream {
        self.0.into_stream()
    }

    /// Hands over the messages that are here; where there is none, waits for the next.
    pub(super) fn take(&mut self, mut each: impl FnMut(Message<'_>) -> Result<()>) -> Result<()> {
        loop {
            let mut done = 0;
            while let Some((opcode, from, end)) = frame_at(&self.0.all()[done..]) {
                let payload = &self.0.all()[done + from..done + end];
                match opcode {
                    1 => each(Message::Text(payload))?,
                    2 => each(Message::Binary(payload))?,
                    8 => bail!("the host has closed: {}", String::from_utf8_lossy(payload)),
                    // A ping needs no answer while something else is said.
                    _ => {}
                }
                done += end;
            }
            self.0.take(done);
            if done > 0 {
                return Ok(());
            }
            self.0.fill()?;
        }
    }
}

/// Writes a message as a client does: what it sends must be masked, and a mask of zeros is one.
pub(super) fn frame(out: &mut Vec<u8>, message: Message<'_>) {
    let (opcode, payload) = match message {
        Message::Text(payload) => (1, payload),
        Message::Binary(payload) => (2, payload),
    };
    out.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => out.push(0x80 | length),
        (_, Ok(length)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Opcode, beginning and end of the payload of a server's frame, if all of it is here.
fn frame_at(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (opcode, short) = (bytes.first()? & 0x0f, bytes.get(1)? & 0x7f);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (from, length) = match short {
        126 => (4, number(bytes.get(2..4)?)),
        127 => (10, number(bytes.get(2..10)?)),
        short => (2, usize::from(short)),
    };
    (bytes.len() >= from + length).then_some((opcode, from, from + length))
}

/// HTTP over one connection, a request at a time.
#[derive(Debug)]
pub(super) struct Http(Connection);

impl Http {
    pub(super) fn open(addr: SocketAddr) -> Result<Self> {
        Connection::open(addr).map(Self)
    }

    /// Asks with a JSON body, and waits for the whole of an answer that is a success.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.0.write(request.as_bytes())?;
        let head = self.0.until(b"\r\n\r\n")?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then_some(value)
        });
        let length: usize = length.with_context(|| format!("an answer has a length: {head}"))?.parse()?;
        while self.0.filled < length {
            self.0.fill()?;
        }
        let good = head.starts_with("HTTP/1.1 20");
        ensure!(good, "{method} {path}: {head}{}", String::from_utf8_lossy(&self.0.all()[..length]));
        self.0.take(length);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Redis(Connection);

impl Redis {
    pub(super) fn open(port: u16) -> Result<Self> {
        Connection::open(([127, 0, 0, 1], port).into()).map(Self)
    }

    /// Sends what [`command`] has written.
    pub(super) fn send(&mut self, commands: &[u8]) -> Result<()> {
        self.0.write(commands)
    }

    /// Takes the answers that are here, and says how many; where there is none, waits for the next.
    pub(super) fn answers(&mut self) -> Result<u64> {
        loop {
            let (mut done, mut answers) = (0, 0);
            while let Some(end) = value_end(self.0.all(), done)? {
                done = end;
                answers += 1;
            }
            self.0.take(done);
            if answers > 0 {
                return Ok(answers);
            }
            self.0.fill()?;
        }
    }

    /// Waits for the answer to an XREAD of one stream. Hands over the last value of each entry, and answers how many
    /// entries there are and the id of the last.
    pub(super) fn entries(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<(u64, Option<String>)> {
        let end = loop {
            if let Some(end) = value_end(self.0.all(), 0)? {
                break end;
            }
            self.0.fill()?;
        };
        let (mut count, mut last) = (0, None);
        let mut rest = Values { bytes: &self.0.all()[..end], at: 0 };
        // No stream has something new, or one has: its name and its entries.
        if rest.list()? > 0 {
            ensure!(rest.list()? == 2, "a stream has a name and entries");
            rest.text()?;
            count = rest.list()?;
            for _ in 0..count {
                ensure!(rest.list()? == 2, "an entry has an id and fields");
                last = Some(rest.text()?);
                let mut value: &[u8] = &[];
                for _ in 0..rest.list()? {
                    value = rest.text()?;
                }
                each(value);
            }
        }
        let last = last.map(|id| String::from_utf8_lossy(id).into_owned());
        self.0.take(end);
        Ok((count, last))
    }
}

/// Writes a command.
pub(super) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    let number = |mark: u8, number: usize, out: &mut Vec<u8>| {
        out.push(mark);
        out.extend_from_slice(number.to_string().as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    number(b'*', words.len(), out);
    for word in words {
        number(b'$', word.len(), out);
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first byte of a line, the number behind it, and where the next line begins.
fn line(bytes: &[u8], at: usize) -> Result<Option<(u8, i64, usize)>> {
    let Some(end) = memmem::find(&bytes[at..], b"\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[at..at + end])?;
    match text.as_bytes().first() {
        Some(mark @ (b'*' | b'$' | b':')) => Ok(Some((*mark, text[1..].parse()?, at + end + 2))),
        Some(b'+') => Ok(Some((b'+', 0, at + end + 2))),
        _ => bail!("Redis says: {text}"),
    }
}

/// Where a value ends, if all of it is here.
fn value_end(bytes: &[u8], at: usize) -> Result<Option<usize>> {
    let Some((mark, number, mut next)) = line(bytes, at)? else { return Ok(None) };
    match mark {
        b'$' if number >= 0 => next += usize::try_from(number)? + 2,
        b'*' => {
            for _ in 0..number {
                match value_end(bytes, next)? {
                    Some(end) => next = end,
                    None => return Ok(None),
                }
            }
        }
        _ => {}
    }
    Ok((next <= bytes.len()).then_some(next))
}

/// Values that are all here, one after the other.
struct Values<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Values<'a> {
    fn line(&mut self, wanted: u8) -> Result<u64> {
        let (mark, number, next) = line(self.bytes, self.at)?.context("it is whole")?;
        ensure!(mark == wanted, "a value is something else than expected");
        self.at = next;
        // A list that is not there is empty.
        Ok(u64::try_from(number).unwrap_or(0))
    }

    fn list(&mut self) -> Result<u64> {
        self.line(b'*')
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.line(b'$')?)?;
        let text = &self.bytes[self.at..self.at + length];
        self.at += length + 2;
        Ok(text)
    }
}
