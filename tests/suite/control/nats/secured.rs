//! Servers that ask who is there, and that want TLS.

use super::*;

fn at(url: &str) -> NatsOptions {
    NatsOptions::new(url.parse().unwrap(), "fleet", "one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_who_asks_is_named_as_that() {
    let server = NatsServer::with_arguments(&["--user", "millrace", "--pass", "right"]);
    let with = |who: &str| NatsControl::new(at(&format!("nats://{who}127.0.0.1:{}", server.port())));
    for who in ["", "millrace:wrong@"] {
        let refused = with(who);
        assert_eq!(fault_of(refused.append(&event("one")).await), RemoteFault::Denied, "{who}");
        let error = poll(&refused, 0, NEVER).await.unwrap_err().to_string();
        assert!(!error.contains("wrong"), "{error}");
    }
    let version = append(&with("millrace:right@"), &event("one")).await;
    assert!(version > 0);
    let missing = NatsOptions { credentials: Some("no/such/file.creds".into()), ..at(&server.url()) };
    let error = NatsControl::new(missing).append(&event("one")).await.unwrap_err();
    assert!(error.to_string().contains("no/such/file.creds"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_tls_is_checked_against_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(file("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    let path = |name: &str| file(name).display().to_string();
    let server =
        NatsServer::with_arguments(&["--tls", "--tlscert", &path("cert.pem"), "--tlskey", &path("key.pem")]);
    let url = format!("tls://localhost:{}", server.port());
    // Nobody vouches for it.
    assert_eq!(fault_of(NatsControl::new(at(&url)).append(&event("one")).await), RemoteFault::Unreachable);
    let trusted = NatsOptions { ca_file: Some(file("cert.pem")), ..at(&url) };
    assert!(append(&NatsControl::new(trusted), &event("one")).await > 0);
    // One that does not speak TLS is none.
    let plain = NatsServer::start();
    let demanded =
        NatsOptions { ca_file: Some(file("cert.pem")), ..at(&format!("tls://localhost:{}", plain.port())) };
    let refused = fault_of(NatsControl::new(demanded).append(&event("one")).await);
    assert!(matches!(refused, RemoteFault::Unreachable | RemoteFault::Timeout), "{refused:?}");
}
