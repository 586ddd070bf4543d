//! Ways to a server: by certificates, by a socket in the file system, and over a network that swallows what is sent.

use std::io::{copy, sink};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace::backends::grpc::{GrpcOptions, MemoryClient};
use millrace::clock::SystemClock;
use millrace::config::GrpcSourceConfig;
use millrace::processors::source::{Progress, Runtime, RuntimeConfig, RuntimeParts, SourceState};
use millrace_tests::embedded::Embedded;
use millrace_tests::peer::Peer;
use millrace_tests::until;
use rcgen::{Certificate, CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fakes::{FakeCheckpoints, FakeProcessor};
use super::scene::{Scene, numbers, settings};

const DATA: &str = r#"{"conversation":"c%d"}"#;

/// A certificate that vouches for itself, and its key, as files.
struct Papers {
    certificate: Certificate,
    pair: KeyPair,
    /// Less the ending.
    file: PathBuf,
}

impl Papers {
    fn new(folder: &Path, name: &str) -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&pair).unwrap();
        let papers = Self { certificate, pair, file: folder.join(name) };
        std::fs::write(papers.certificate(), papers.certificate.pem()).unwrap();
        std::fs::write(papers.key(), papers.pair.serialize_pem()).unwrap();
        papers
    }

    fn certificate(&self) -> String {
        format!("{}.cert.pem", self.file.display())
    }

    fn key(&self) -> String {
        format!("{}.key.pem", self.file.display())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let server = Papers::new(folder.path(), "memory.internal");
    let peer = || Peer::with_arguments(&["--cert", &server.certificate(), "--key", &server.key()]);

    let trusted = peer();
    let endpoint = format!("https://127.0.0.1:{}", trusted.port());
    let mut scene = Scene::of(trusted, |settings| {
        settings.endpoint = endpoint;
        settings.ca_file = Some(server.certificate().into());
        settings.server_name = Some("memory.internal".into());
    })
    .await;
    scene.peer.publish("response", DATA, 3);
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.end().await;

    // A server of another name, and one that nobody vouches for.
    for ca in [Some(server.certificate().into()), None] {
        let other = peer();
        let endpoint = format!("https://127.0.0.1:{}", other.port());
        let scene = Scene::of(other, |settings| {
            settings.endpoint = endpoint;
            settings.ca_file = ca;
        })
        .await;
        let status = scene.until("it is refused", |status| status["state"] == "waiting").await;
        let said = status["last_error"]["message"].as_str().unwrap().to_lowercase();
        assert!(said.contains("certificate"), "{said}");
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_not_there_ends_the_start() {
    let settings =
        GrpcSourceConfig { ca_file: Some("no/such/file.pem".into()), ..settings("https://127.0.0.1:1") };
    let started = Embedded::start_with(|config| config.source.grpc = Some(settings));
    let error = format!("{:#}", started.await.unwrap_err());
    assert!(error.contains("source.grpc: ca_file: no/such/file.pem"), "{error}");
}

/// Trusts a server that wants to know its clients.
fn to(server: &Papers, port: u16, settings: &mut GrpcSourceConfig) {
    settings.endpoint = format!("https://127.0.0.1:{port}");
    settings.ca_file = Some(server.certificate().into());
    settings.server_name = Some("memory.internal".into());
}

fn shows(client: &Papers, settings: &mut GrpcSourceConfig) {
    settings.client_cert_file = Some(client.certificate().into());
    settings.client_key_file = Some(client.key().into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_certificates_of_clients_takes_ours_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let [server, ours, another] =
        ["memory.internal", "millrace", "another"].map(|name| Papers::new(folder.path(), name));
    let mut peer = Peer::with_arguments(&[
        "--cert",
        &server.certificate(),
        "--key",
        &server.key(),
        "--client-ca",
        &ours.certificate(),
    ]);
    peer.publish("response", DATA, 3);
    for shown in [None, Some(&another)] {
        let port = peer.port();
        let mut scene = Scene::of(peer, |settings| {
            to(&server, port, settings);
            if let Some(client) = shown {
                shows(client, settings);
            }
        })
        .await;
        // More than one try, so that it is not the first that is slow.
        let status = scene
            .until("it is refused", |status| {
                status["state"] == "waiting" && status["reconnects"].as_u64() >= Some(2)
            })
            .await;
        assert_eq!(status["last_error"]["code"], "source_unreachable", "{status}");
        assert_eq!((&status["events"], &status["cursor"]), (&json!(0), &Value::Null), "{status}");
        assert!(scene.peer.subscriptions().is_empty(), "nobody was let in");
        drop(scene.host.stop().await);
        peer = scene.peer;
    }
    let port = peer.port();
    let mut scene = Scene::of(peer, |settings| {
        to(&server, port, settings);
        shows(&ours, settings);
    })
    .await;
    assert_eq!(scene.cursors(3).await, numbers(3));
    // Live, too.
    scene.peer.publish("response", DATA, 2);
    assert_eq!(scene.cursors(5).await, numbers(5));
    scene.end().await;
}

/// Wants certificates of clients, and tells those that have none before it closes. Answers its port.
fn outspoken(server: &Papers, clients: &Papers) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.certificate.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::try_from(server.pair.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_client_cert_verifier(verifier.build().unwrap());
    let mut config = config.with_single_cert(vec![server.certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            // Where it fails, the client was told why.
            let _ = connection.complete_io(&mut stream);
            let _ = stream.shutdown(Shutdown::Write);
            // A close with something unread would take that back.
            let _ = copy(&mut stream, &mut sink());
        }
    });
    port
}

/// The other server closes without a word; of one that says why, the word is passed on.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_certificate_is_named_where_the_server_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let [server, client] = ["memory.internal", "millrace"].map(|name| Papers::new(folder.path(), name));
    let port = outspoken(&server, &client);
    let scene = Scene::with(|settings| to(&server, port, settings)).await;
    let named = |status: &Value| {
        let said = status["last_error"]["message"].as_str().unwrap_or_default().to_lowercase();
        said.contains("certificaterequired") || said.contains("certificate required")
    };
    let status = scene.until("the reason is told", named).await;
    assert_eq!(status["last_error"]["code"], "source_unreachable", "{status}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_in_the_file_system_is_a_way_to_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memory.sock").display().to_string();
    let peer = Peer::with_arguments(&["--unix", &socket]);
    let mut scene = Scene::of(peer, |settings| settings.endpoint = format!("unix://{socket}")).await;
    scene.peer.publish("response", DATA, 3);
    assert_eq!(scene.cursors(3).await, numbers(3));
    scene.peer.kill();
    scene.until("it is missed", |status| status["state"] == "waiting").await;
    scene.peer.start_again();
    scene.peer.publish("response", DATA, 1);
    assert_eq!(scene.cursors(4).await, numbers(4));
    scene.end().await;
}

/// A way to a server that can go dark.
struct Way {
    addr: SocketAddr,
    dark: watch::Sender<()>,
    _accepting: JoinSet<()>,
}

impl Way {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let dark = watch::Sender::new(());
        let known = dark.clone();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, port, known.subscribe()));
            }
        });
        Self { addr, dark, _accepting: accepting }
    }

    /// What is sent over the connections that there are gets nowhere, and nobody is told. New ones are as ever.
    fn darken(&self) {
        self.dark.send_replace(());
    }
}

async fn pass(mut client: TcpStream, port: u16, mut dark: watch::Receiver<()>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => return,
        _ = dark.changed() => {}
    }
    // Both stay open for as long as the way is there.
    std::future::pending::<()>().await;
}

/// Nothing else would notice for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_gone_dark_is_given_up_by_its_pings() {
    let mut peer = Peer::with_arguments(&["--pings"]);
    peer.publish("response", DATA, 1);
    let way = Way::to(peer.port()).await;
    let options = GrpcOptions {
        endpoint: format!("http://{}", way.addr),
        client_id: "millrace".into(),
        keepalive: Duration::from_millis(100),
        keepalive_wait_max: Duration::from_millis(500),
        ..GrpcOptions::default()
    };
    let client = MemoryClient::new(options, Arc::new(SystemClock)).unwrap();
    let processor = FakeProcessor::default();
    let handled = || processor.notes.lock().unwrap().handled.clone();
    let runtime = Runtime::start(RuntimeParts {
        events: Some(Arc::new(client)),
        checkpoints: Some(Arc::new(FakeCheckpoints::default())),
        processor: Some(Box::new(processor.clone())),
        config: RuntimeConfig {
            after_cursor: Some("start".into()),
            reconnect_min: Duration::from_millis(5),
            reconnect_max: Duration::from_millis(50),
            idle_max: Duration::from_secs(3_600),
            recheck: Duration::ZERO,
            ..RuntimeConfig::new("millrace")
        },
        clock: Arc::new(SystemClock),
        progress: Progress::default(),
    })
    .unwrap();
    until("the first came", || handled() == ["1"]).await;
    until("it is live", || runtime.status().state == SourceState::Live).await;
    let before = runtime.status().reconnects;
    way.darken();
    peer.publish("response", DATA, 1);
    until("the second came another way", || handled() == ["1", "2"]).await;
    let status = runtime.status();
    assert!(status.reconnects > before, "{status:?}");
    assert_eq!(status.last_error.map(|(code, _)| code), Some("source_unreachable"));
    runtime.shutdown(Duration::from_secs(60)).await.unwrap();
}
