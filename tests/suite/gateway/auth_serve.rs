//! A host of its own with an issuer behind https: what the settings say reaches the edge, and keys come over TLS
//! that holds or not at all.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use millrace::clock::{Clock, SystemClock};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::issuer::{Signer, claims_with, set};

/// Shows a key set to whoever trusts the authority, whose certificate is written to the file. Its thread ends with
/// the test's process.
fn secured_keys(keys: &Value, ca_file: &Path) -> Result<String> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    std::fs::write(ca_file, authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".into()])?.signed_by(&key, &issuer)?;
    let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config =
        Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], secret)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("https://localhost:{}/keys", listener.local_addr()?.port());
    let body = keys.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(connection) = ServerConnection::new(Arc::clone(&config)) else { return };
            let mut stream = StreamOwned::new(connection, stream);
            let mut head = [0; 1_024];
            // Who does not trust the certificate hangs up here.
            if stream.read(&mut head).is_ok_and(|bytes| bytes > 0) {
                let length = body.len();
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    Ok(url)
}

#[tokio::test]
async fn keys_come_over_tls_from_whom_the_system_trusts_and_from_nobody_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let signer = Signer::ed25519();
    let ca_file = dir.path().join("ca.pem");
    let url = secured_keys(&set(&[signer.jwk("k")]), &ca_file)?;
    let now = SystemClock.now().0 / 1_000_000;
    let times = json!({ "iat": now, "nbf": now, "exp": now + 600, "aud": null, "iss": null });
    let token = signer.token("k", &claims_with(&times));
    let setup = |name: &str, trusted: &Path| {
        let mut setup = Setup::new(workspace_binary("millrace"))
            .set(&format!("auth.jwt.jwks_url={url}"))
            .set("auth.jwt.algorithms=[EdDSA]");
        setup.env.push(("SSL_CERT_FILE".into(), trusted.into()));
        (setup, dir.path().join(name))
    };
    let ask = async |host: &HostProcess| -> Result<(u16, Value)> {
        let request = reqwest::Client::new().get(format!("{}/v1/streams/events", host.url));
        let answer = request.bearer_auth(&token).send().await.context("an answer")?;
        Ok((answer.status().as_u16(), answer.json().await?))
    };

    let (trusting, data) = setup("trusting", &ca_file);
    let host = HostProcess::start_as(trusting, &data).await?;
    let (status, body) = ask(&host).await?;
    assert_eq!((status, &body["events"]), (200, &json!([])), "{body}\n{}", host.said());

    let other = dir.path().join("other.pem");
    secured_keys(&set(&[]), &other)?;
    let (careful, data) = setup("careful", &other);
    let host = HostProcess::start_as(careful, &data).await?;
    let (status, body) = ask(&host).await?;
    assert_eq!((status, &body["code"]), (503, &json!("jwks_unavailable")), "{body}");
    let said = host.said();
    assert!(said.contains("the key set cannot be read") && said.contains("no TLS"), "{said}");
    Ok(())
}
