//! Settings of the gRPC server: each wrong one is told by its key. And TLS, which they say.

use std::sync::Arc;

use millrace::backends::grpc::{GrpcOptions, MemoryClient};
use millrace::clock::SystemClock;
use millrace::config::{Config, GrpcCheckpoints, Layers};
use millrace::processors::source::CheckpointClient as _;
use millrace_tests::embedded::Embedded;

use super::scene::Scene;

/// What a file says, read.
fn read(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("millrace.toml");
    std::fs::write(&file, text).unwrap();
    let mut layers = Layers::new();
    layers.file(&file).map_err(|error| error.to_string())?;
    layers.resolve().map(|resolved| resolved.config).map_err(|error| error.to_string())
}

#[test]
fn wrong_settings_name_their_key() {
    for (text, key) in [
        ("bind = \"nowhere\"", "grpc.bind"),
        ("bind = \"0.0.0.0:7071\"", "grpc.bind"),
        ("bind = \"127.0.0.1:1\"\ncert_file = \"a\"", "grpc.key_file"),
        ("bind = \"127.0.0.1:1\"\nkey_file = \"a\"", "grpc.cert_file"),
        ("cert_file = \"a\"\nkey_file = \"b\"", "grpc.cert_file"),
        ("bnd = \"127.0.0.1:1\"", "grpc.bind"),
        ("checkpoints = \"everywhere\"", "grpc.checkpoints"),
    ] {
        let error = read(&format!("[grpc]\n{text}\n")).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
    let outside = "[grpc]\nbind = \"0.0.0.0:7071\"\n[[auth.tokens]]\ntoken = \"a-long-token\"\n\
                   tenant = \"default\"\nrights = [\"read\"]\n";
    assert_eq!(read(outside).unwrap().grpc.bind.unwrap().port(), 7071);
    assert_eq!(read("").unwrap().grpc.bind, None, "it is off by default");
    assert_eq!(read("").unwrap().grpc.checkpoints, GrpcCheckpoints::Auto);
    let said = read("[grpc]\ncheckpoints = \"host\"\n").unwrap();
    assert_eq!(said.grpc.checkpoints, GrpcCheckpoints::Host);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_there_ends_the_start() {
    let started = Embedded::start_with(|config| {
        config.grpc.bind = Some(([127, 0, 0, 1], 0).into());
        config.grpc.cert_file = Some("no/such/cert.pem".into());
        config.grpc.key_file = Some("no/such/key.pem".into());
    });
    let error = format!("{:#}", started.await.unwrap_err());
    assert!(error.contains("grpc.cert_file = no/such/cert.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_speaks_tls_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    std::fs::write(file("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    let scene = Scene::with(|config| {
        config.grpc.cert_file = Some(file("cert.pem"));
        config.grpc.key_file = Some(file("key.pem"));
    })
    .await;
    let client = |scheme: &str| {
        let options = GrpcOptions {
            endpoint: format!("{scheme}://127.0.0.1:{}", scene.port()),
            client_id: "me".into(),
            ca_file: (scheme == "https").then(|| file("cert.pem")),
            server_name: (scheme == "https").then(|| "localhost".into()),
            ..GrpcOptions::default()
        };
        MemoryClient::new(options, Arc::new(SystemClock)).unwrap()
    };
    assert_eq!(client("https").get("me").await.unwrap(), None);
    client("http").get("me").await.unwrap_err();
}
