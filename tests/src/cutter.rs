//! A proxy in front of a server that lets a request through and its answer not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Gone when dropped, with its connections.
#[derive(Debug)]
pub struct Cutter {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What the request has in it whose answer is withheld.
    needle: Mutex<Option<Vec<u8>>>,
    cuts: AtomicUsize,
    /// A cut closes the way, too.
    closing: AtomicBool,
    closed: watch::Sender<bool>,
}

impl Cutter {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        let known = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if *known.closed.borrow() {
                    continue;
                }
                connections.spawn(pass(client, port, Arc::clone(&known)));
            }
        });
        Self { addr, shared, _accepting: accepting }
    }

    /// The next request with these bytes in it reaches the server, which carries it out; then its connection is cut.
    pub fn cut_after(&self, needle: &str) {
        *self.shared.lock() = Some(needle.as_bytes().to_vec());
    }

    /// The same, and nobody gets through from then on.
    pub fn cut_and_close_after(&self, needle: &str) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.cut_after(needle);
    }

    /// Cuts every connection, and lets nobody through until it is opened.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    pub fn open(&self) {
        self.shared.closing.store(false, Ordering::SeqCst);
        self.shared.closed.send_replace(false);
    }

    /// How often it has cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.needle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, bytes: &[u8]) -> bool {
        let mut needle = self.lock();
        let found = needle.as_ref().is_some_and(|needle| memchr::memmem::find(bytes, needle).is_some());
        if found {
            *needle = None;
        }
        found
    }
}

async fn pass(mut client: TcpStream, port: u16, shared: Arc<Shared>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let mut closed = shared.closed.subscribe();
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            () = until_closed(&mut closed) => return,
            read = client.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let cut = shared.wants(&up[..read]);
                if server.write_all(&up[..read]).await.is_err() {
                    return;
                }
                if cut {
                    // The server's answer has come: the request is carried out. The client does not get it.
                    let _ = server.read(&mut down).await;
                    if shared.closing.load(Ordering::SeqCst) {
                        shared.closed.send_replace(true);
                    }
                    shared.cuts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn until_closed(closed: &mut watch::Receiver<bool>) {
    // Connections end with the proxy otherwise.
    let _ = closed.wait_for(|closed| *closed).await;
}
