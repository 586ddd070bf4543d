//! Requests of plugins to `https` addresses: sent under a certificate that holds, and under no other.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use millrace::error::Classify;
use millrace::plugins::PluginSettings;
use millrace::processors::Processor;
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::grants::{Server, answer, fetcher_with, refused, row, server, settings};

/// Signs certificates, and lies as a file in a folder.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let file = dir.join("ca.pem");
        fs::write(&file, params.self_signed(&key).expect("a certificate").pem()).expect("ours");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// What a server of this name shows, by a certificate that ends with a year.
    fn server(&self, name: &str, last_year: i32) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_after = date_time_ymd(last_year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth();
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).expect("they fit"))
    }
}

/// Answers as the open one does, by TLS.
fn secured(config: Arc<ServerConfig>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("an address").to_string();
    let (asked, met) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = Server { authority, asked: Arc::clone(&asked), met: Arc::clone(&met) };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            met.fetch_add(1, Ordering::SeqCst);
            let (asked, config) = (Arc::clone(&asked), Arc::clone(&config));
            std::thread::spawn(move || {
                let connection = ServerConnection::new(config).expect("a sound configuration");
                answer(StreamOwned::new(connection, stream), &asked);
            });
        }
    });
    server
}

/// A guest that may reach these, and trusts an authority beside the system's.
fn trusting(hosts: &[&str], ca_file: Option<&Path>) -> Box<dyn Processor> {
    let given = PluginSettings { http_ca_file: ca_file.map(Path::to_owned), ..settings(&["http"]) };
    fetcher_with(hosts, 60_000, given)
}

fn asks(guest: &mut dyn Processor, address: &str) -> Vec<String> {
    row(guest, (&format!("{address}/hello"), "http.get", "0"))
}

#[test]
fn a_secured_host_answers_under_a_certificate_of_an_authority_that_the_operator_trusts() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new(dir.path());
    let (secured, open) = (secured(authority.server("127.0.0.1", 2096)), server());
    let mut guest = trusting(&[&secured.authority, &open.authority], Some(&authority.file));
    for _ in 0..3 {
        let says = format!("hello from {}", secured.authority);
        let cells = asks(&mut *guest, &format!("https:{}", secured.authority));
        assert_eq!(cells, ["200", &says.len().to_string(), &says, ""]);
        assert_eq!(asks(&mut *guest, &open.authority)[0], "200", "the other stays as it was");
    }
    // What holds of requests in the open holds of these.
    let to = format!("https:{}", secured.authority);
    let cells = row(&mut *guest, (&format!("{to}/flood"), "http.get", "0"));
    assert!(cells[3].contains("HttpResponseBodySize") || cells[3].contains("body size"), "{cells:?}");
    let cells = row(&mut *guest, (&format!("{to}/silent"), "http.many", "20"));
    assert_eq!(cells[1], "12", "8 of 20 may be under way: {cells:?}");
}

#[test]
fn a_certificate_that_does_not_hold_is_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new(dir.path());
    let cases = [
        ("of an unknown authority", authority.server("127.0.0.1", 2096), None),
        ("of another host", authority.server("example.org", 2096), Some(&*authority.file)),
        ("of another address", authority.server("127.0.0.2", 2096), Some(&*authority.file)),
        ("of another time", authority.server("127.0.0.1", 2001), Some(&*authority.file)),
    ];
    for (what, config, ca_file) in cases {
        let server = secured(config);
        let mut guest = trusting(&[&server.authority], ca_file);
        let cells = asks(&mut *guest, &format!("https:{}", server.authority));
        assert!(cells[3].contains("TlsCertificateError"), "{what}: {cells:?}");
        assert_eq!(server.asked.load(Ordering::SeqCst), 0, "{what}");
    }
}

#[test]
fn a_secured_host_that_is_not_listed_is_never_met() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new(dir.path());
    let server = secured(authority.server("127.0.0.1", 2096));
    // The scheme's own port is another one.
    let mut guest = trusting(&["127.0.0.1", "example.org"], Some(&authority.file));
    let cells = asks(&mut *guest, &format!("https:{}", server.authority));
    assert!(cells[3].contains("HttpRequestDenied"), "{cells:?}");
    assert_eq!(server.met.load(Ordering::SeqCst), 0);
}

#[test]
fn a_host_that_speaks_no_tls_is_not_asked_in_the_open() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Whether it is read to its end is the other side's affair.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let cells = asks(&mut *trusting(&[&address], None), &format!("https:{address}"));
    assert!(cells[3].contains("TlsProtocolError"), "{cells:?}");
}

#[test]
fn a_file_of_authorities_that_is_none_is_refused_by_its_key() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (empty, broken) = (dir.path().join("empty.pem"), dir.path().join("broken.pem"));
    fs::write(&empty, "no certificate").expect("ours");
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&broken, text).expect("ours");
    for (file, granted, says) in [
        (dir.path().join("missing.pem"), true, "cannot be read"),
        (empty, true, "has no certificate in it"),
        (broken, true, "has a certificate that is none"),
        (dir.path().join("missing.pem"), false, "`grants` does not name"),
    ] {
        let mut given = settings(if granted { &["http"] } else { &[] });
        given.http_hosts = if granted { vec!["example.org".into()] } else { Vec::new() };
        let error = refused("fetches", &PluginSettings { http_ca_file: Some(file), ..given });
        let text = error.to_string();
        assert_eq!(error.code(), "plugin_settings_invalid", "{text}");
        assert!(text.contains("`plugins.fetches.http_ca_file`") && text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_told_in_the_log_and_not_blamed_on_the_guest() -> Result<()> {
    let dir = TempDir::new()?;
    let server = secured(Authority::new(dir.path()).server("127.0.0.1", 2096));
    let config = dir.path().join("millrace.toml");
    let listed = format!("grants = [\"http\"]\nhttp_hosts = [\"{}\"]\n", server.authority);
    fs::write(&config, format!("[telemetry]\nformat = \"json\"\n[plugins.fetches]\n{listed}"))?;
    let mut setup = Setup::new(workspace_binary("millrace"));
    setup.args.extend(["--config".into(), config.into_os_string()]);
    let mut host = HostProcess::start_as(setup, &dir.path().join("data")).await?;
    host.deploy(fs::read(guest("fetches"))?.into()).await?;
    let to = format!("https:{}/hello", server.authority);
    let event = json!({"aggregate": "thing", "agg_id": to, "version": 1, "type": "http.get", "payload": 0});
    host.publish(event.to_string() + "\n").await?;
    host.settle().await?;
    host.terminate()?;
    let said: Vec<Value> = host.said().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let line = said.iter().find(|line| line["error.kind"] == "guest_http_unsecured");
    let line = line.with_context(|| format!("it is not told: {said:?}"))?;
    assert_eq!((&line["error.blame"], &line["plugin.name"]), (&json!("host"), &json!("fetches")), "{line}");
    assert!(line["text"].as_str().is_some_and(|text| text.contains("UnknownIssuer")), "{line}");
    Ok(())
}
