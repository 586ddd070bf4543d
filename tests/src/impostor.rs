//! A proxy in front of a server that answers some commands itself: with an error, with something else, or not at all.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Gone when dropped, with its connections.
#[derive(Debug)]
pub struct Impostor {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    rule: Mutex<Option<Rule>>,
    silenced: AtomicUsize,
}

/// What becomes of commands with these bytes in them; without an answer their connection falls silent.
#[derive(Clone, Debug)]
struct Rule {
    needle: Vec<u8>,
    answer: Option<Vec<u8>>,
}

impl Impostor {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        let known = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, port, Arc::clone(&known)));
            }
        });
        Self { addr, shared, _accepting: accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// From now on each command with these bytes in it gets this answer, and does not reach the server.
    pub fn answer(&self, needle: &str, answer: &str) {
        self.set(Some(Rule { needle: needle.into(), answer: Some(answer.into()) }));
    }

    /// From now on a command with these bytes in it gets no answer, nor does what follows on its connection.
    pub fn keep_silent(&self, needle: &str) {
        self.set(Some(Rule { needle: needle.into(), answer: None }));
    }

    /// From now on everything is passed on.
    pub fn be_honest(&self) {
        self.set(None);
    }

    /// How many commands had no answer because of what they have in them.
    pub fn silenced(&self) -> usize {
        self.shared.silenced.load(Ordering::SeqCst)
    }

    fn set(&self, rule: Option<Rule>) {
        *self.shared.rule() = rule;
    }
}

impl Shared {
    fn rule(&self) -> MutexGuard<'_, Option<Rule>> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be done about a command.
    fn ruled(&self, command: &[u8]) -> Option<Rule> {
        let rule = self.rule().clone();
        rule.filter(|rule| memchr::memmem::find(command, &rule.needle).is_some())
    }
}

/// Ends with the connection.
async fn pass(client: TcpStream, port: u16, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
    let mut silent = false;
    while let Some(command) = value(&mut from_client).await {
        let answer = match shared.ruled(&command) {
            Some(Rule { answer: None, .. }) => {
                silent = true;
                shared.silenced.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            _ if silent => continue,
            Some(Rule { answer, .. }) => answer,
            None => match to_server.write_all(&command).await {
                Ok(()) => value(&mut from_server).await,
                Err(_) => None,
            },
        };
        let Some(answer) = answer else { return };
        if to_client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The bytes of one whole command or answer, with all that it contains; none when the connection has ended.
async fn value(from: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut left: usize = 1;
    while left > 0 {
        left -= 1;
        let begin = bytes.len();
        from.read_until(b'\n', &mut bytes).await.ok()?;
        let (kind, rest) = bytes.get(begin..)?.split_first()?;
        let number = || std::str::from_utf8(rest).ok()?.trim_end().parse::<usize>().ok();
        match (*kind, number()) {
            (b'*', Some(parts)) => left += parts,
            (b'$', Some(length)) => {
                let begin = bytes.len();
                bytes.resize(begin + length + 2, 0);
                from.read_exact(&mut bytes[begin..]).await.ok()?;
            }
            // A line of its own, or nothing: `$-1`.
            _ => {}
        }
    }
    Some(bytes)
}
