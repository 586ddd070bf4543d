//! `/v1/artifacts` of a real host.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Result;
use millrace::config::Right;
use millrace::control::{ArtifactRef, BuildSignature};
use millrace_tests::conformance::artifacts::content;
use millrace_tests::control_events::{build_key, digest_of, trust};
use millrace_tests::embedded::{Answer, Client, Embedded, token};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn put(client: &Client, bytes: &[u8]) -> Result<Answer> {
    let path = format!("/v1/artifacts/{}", digest_of(bytes));
    client.send(client.request(Method::PUT, &path).body(bytes.to_vec())).await
}

async fn call(client: &Client, method: Method, path: &str) -> Result<Answer> {
    client.send(client.request(method, path)).await
}

fn digests(answer: &Answer) -> Vec<String> {
    let list = answer.json()["artifacts"].as_array().cloned().unwrap_or_default();
    list.iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
}

/// The file that the host keeps content in.
fn place(host: &Embedded, digest: &str) -> PathBuf {
    let hex = &digest["sha256:".len()..];
    host.data().join("artifact-repository/sha256").join(&hex[..2]).join(&hex[2..4]).join(hex)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_are_pushed_pulled_listed_pinned_and_collected() -> Result<()> {
    let host = Embedded::start().await?;
    let client = &host.client;
    let bytes = content(1_500_000);
    let digest = digest_of(&bytes);
    let path = format!("/v1/artifacts/{digest}");
    assert_eq!(client.get(&path).await?.refusal(), (404, "artifact_missing".into()));
    assert_eq!(call(client, Method::HEAD, &path).await?.status, 404);
    for _ in 0..2 {
        let stored = put(client, &bytes).await?.ok()?;
        assert_eq!((&stored["digest"], &stored["bytes"]), (&json!(digest), &json!(1_500_000)), "{stored}");
        assert_eq!(stored["pins"], json!([]));
        assert!(stored["stored_at"].as_str().unwrap().ends_with('Z'), "{stored}");
    }
    let got = client.get(&path).await?;
    assert_eq!((got.status, got.etag), (200, Some(format!("\"{digest}\""))));
    assert!(got.body == bytes);
    let head = client.request(Method::HEAD, &path).send().await?;
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"1500000".parse()?));

    let mut expected = vec![digest.clone()];
    for n in 0..4_u8 {
        put(client, &[n]).await?.ok()?;
        expected.push(digest_of(&[n]));
    }
    expected.sort();
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/v1/artifacts?limit=2{after}")).await?;
        found.extend(digests(&page));
        match page.json()["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, expected);

    let pin = format!("{path}/pins/board.active");
    assert_eq!(call(client, Method::PUT, &pin).await?.status, 204);
    assert_eq!(put(client, &bytes).await?.json()["pins"], json!(["board.active"]));
    let dry = client.post("/v1/artifacts/collect?older_than=0&dry_run=true", "", "").await?.ok()?;
    assert_eq!((&dry["dry_run"], &dry["bytes"]), (&json!(true), &json!(4)), "{dry}");
    assert_eq!(digests(&client.get("/v1/artifacts").await?).len(), 5);
    assert!(digests(&client.post("/v1/artifacts/collect", "", "").await?).is_empty(), "30 days are not over");
    let gone = client.post("/v1/artifacts/collect?older_than=0", "", "").await?;
    assert_eq!(digests(&gone).len(), 4);
    assert_eq!(digests(&client.get("/v1/artifacts").await?), [digest]);
    for _ in 0..2 {
        assert_eq!(call(client, Method::DELETE, &pin).await?.status, 204);
    }
    assert_eq!(digests(&client.post("/v1/artifacts/collect?older_than=0", "", "").await?).len(), 1);
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_has_a_code_and_stores_nothing() -> Result<()> {
    let host = Embedded::start_with(|config| config.control.artifact_bytes_max = 1_000).await?;
    let client = &host.client;
    let bytes = content(1_001);
    let digest = digest_of(&bytes);
    let refused = put(client, &bytes).await?;
    assert_eq!(refused.refusal(), (413, "artifact_bytes_max".into()));
    let problem = refused.json();
    assert_eq!((&problem["max"], &problem["asked"]), (&json!(1_000), &json!(1_001)), "{problem}");
    assert!(problem["fix"].as_str().unwrap().contains("control.artifact_bytes_max"), "{problem}");
    // Of content that does not say how long it is, too.
    let pieces = bytes.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request = client.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body(body);
    assert_eq!(client.send(request).await?.refusal(), (413, "artifact_bytes_max".into()));
    assert_eq!(put(client, &bytes[..1_000]).await?.status, 200, "the bound itself fits");

    let other = client.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body("other");
    assert_eq!(client.send(other).await?.refusal(), (422, "artifact_mismatch".into()));
    for malformed in ["sha256:0", "..%2F..%2F..%2Fetc%2Fpasswd", &digest[7..], &digest.to_uppercase()] {
        for method in [Method::GET, Method::PUT] {
            let answer = call(client, method, &format!("/v1/artifacts/{malformed}")).await?;
            assert_eq!(answer.refusal(), (400, "digest_invalid".into()), "{malformed}");
        }
    }
    let good = format!("/v1/artifacts/{}", digest_of(&bytes[..1_000]));
    for (method, path, refusal) in [
        (Method::PUT, format!("{good}/pins/.hidden"), (400, "artifact_name_invalid")),
        (Method::PUT, format!("/v1/artifacts/{digest}/pins/me"), (404, "artifact_missing")),
        (Method::GET, format!("/v1/artifacts/{digest}/signatures"), (404, "artifact_missing")),
        (Method::GET, "/v1/artifacts?limit=0".into(), (400, "parameter_invalid")),
        (Method::GET, "/v1/artifacts?limit=1001".into(), (400, "parameter_invalid")),
        (Method::GET, "/v1/artifacts?after=x".into(), (400, "digest_invalid")),
        (Method::GET, "/v1/artifacts?behind=x".into(), (400, "parameter_unknown")),
        (Method::POST, "/v1/artifacts/collect?older_than=soon".into(), (400, "parameter_invalid")),
        (Method::POST, "/v1/artifacts/collect?dry_run=perhaps".into(), (400, "parameter_invalid")),
        (Method::DELETE, good.clone(), (405, "method_not_allowed")),
    ] {
        let answer = call(client, method, &path).await?;
        assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{path}");
    }
    assert_eq!(digests(&client.get("/v1/artifacts").await?).len(), 1);
    host.stop().await;
    Ok(())
}

/// They are the operators': snapshots and settings lie there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_about_artifacts_needs_the_right_admin() -> Result<()> {
    let host = Embedded::start_with(|config| {
        config.auth.tokens = vec![
            token("boss", "acme", &[Right::Admin]),
            token("user", "acme", &[Right::Publish, Right::Read]),
        ];
    })
    .await?;
    let (boss, user) = (host.client.with_token("boss")?, host.client.with_token("user")?);
    let stored = put(&boss, b"secret").await?;
    assert_eq!(stored.status, 200, "{}", stored.text());
    let path = format!("/v1/artifacts/{}", digest_of(b"secret"));
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::PUT, path.clone()),
        (Method::GET, "/v1/artifacts".into()),
        (Method::PUT, format!("{path}/pins/me")),
        (Method::DELETE, format!("{path}/pins/me")),
        (Method::GET, format!("{path}/signatures")),
        (Method::PUT, format!("{path}/signatures")),
        (Method::POST, "/v1/artifacts/collect?older_than=0".into()),
    ] {
        assert_eq!(
            call(&user, method.clone(), &path).await?.refusal(),
            (403, "right_missing".into()),
            "{path}"
        );
        assert_eq!(call(&host.client, method, &path).await?.status, 401, "{path}");
    }
    assert_eq!(boss.get(&path).await?.body, b"secret".as_slice());
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_artifact_breaks_off_and_is_never_answered_whole() -> Result<()> {
    let host = Embedded::start().await?;
    let bytes = content(900_000);
    let digest = digest_of(&bytes);
    put(&host.client, &bytes).await?.ok()?;
    let file = place(&host, &digest);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    let mut wrong = bytes.clone();
    wrong[3] ^= 1;
    std::fs::write(&file, &wrong)?;
    let path = format!("/v1/artifacts/{digest}");
    let (mut received, mut whole) = (0, false);
    // It may break off before its head was sent.
    if let Ok(mut answer) = host.client.request(Method::GET, &path).send().await {
        while let Ok(piece) = answer.chunk().await {
            let Some(piece) = piece else {
                whole = true;
                break;
            };
            received += piece.len();
        }
    }
    assert!(!whole && received < bytes.len(), "{received} bytes came");
    put(&host.client, &bytes).await?.ok()?;
    assert!(host.client.get(&path).await?.body == bytes);
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_leaves_nothing() -> Result<()> {
    let host = Embedded::start().await?;
    let bytes = content(900_000);
    let digest = digest_of(&bytes);
    let spool = host.data().join("artifact-repository/spool");
    let files = || std::fs::read_dir(&spool).map_or(0, Iterator::count);
    let mut socket = tokio::net::TcpStream::connect(host.host().addr()).await?;
    let head =
        format!("PUT /v1/artifacts/{digest} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(&bytes[..600_000]).await?;
    millrace_tests::until("it is being written", || files() == 1).await;
    socket.shutdown().await?;
    let mut answer = Vec::new();
    // A connection that is cut may bring no answer.
    let _ = socket.read_to_end(&mut answer).await;
    drop(socket);
    millrace_tests::until("nothing is left", || files() == 0).await;
    assert_eq!(host.client.get(&format!("/v1/artifacts/{digest}")).await?.status, 404);
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn build_signatures_lie_beside_an_artifact() -> Result<()> {
    let host = Embedded::start().await?;
    let client = &host.client;
    put(client, b"a component").await?.ok()?;
    let artifact = ArtifactRef { digest: digest_of(b"a component"), bytes: 11, signatures: Vec::new() };
    let path = format!("/v1/artifacts/{}/signatures", artifact.digest);
    assert_eq!(client.get(&path).await?.ok()?, json!({ "signatures": [] }));
    let signed = artifact.clone().built_by("board", &build_key());
    let ours = BuildSignature::of("board", &signed);
    // A wrong one of the same key takes nobody's place.
    let mut wrong = ours[0].clone();
    wrong.plugin = "watch".into();
    for list in [vec![wrong.clone()], ours.clone(), ours.clone()] {
        let body = json!({ "signatures": list });
        client.send(client.request(Method::PUT, &path).json(&body)).await?.ok()?;
    }
    let found: Value = client.get(&path).await?.ok()?;
    let found: Vec<BuildSignature> = serde_json::from_value(found["signatures"].clone())?;
    assert_eq!(found.len(), 2);
    assert!(found.contains(&ours[0]) && found.contains(&wrong), "{found:?}");
    trust().check_artifact("board", &signed, 1)?;
    for body in [
        json!({}),
        json!({ "signatures": [{ "plugin": "board", "key": "ed25519:x", "signature": "" }] }),
        json!({ "signatures": [{ "plugin": "Board!", "key": ours[0].key, "signature": ours[0].signature }] }),
        json!({ "signatures": [], "more": 1 }),
    ] {
        let answer = client.send(client.request(Method::PUT, &path).json(&body)).await?;
        assert_eq!(answer.refusal(), (422, "artifact_signature_invalid".into()), "{body}");
    }
    host.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_outlive_a_restart_and_may_lie_on_a_server() -> Result<()> {
    let server =
        millrace_tests::redis_server::RedisServer::durable(millrace_tests::redis_server::Engine::Redis);
    let host = Embedded::start().await?;
    put(&host.client, b"in the folder").await?.ok()?;
    let host = host.restart().await?;
    assert_eq!(digests(&host.client.get("/v1/artifacts").await?), [digest_of(b"in the folder")]);
    let url = server.url();
    let host = host
        .restart_with(|config| {
            config.control.artifacts = millrace::config::ArtifactsConfig::Redis;
            config.control.artifacts_url = Some(millrace::config::LogAddress(url));
        })
        .await?;
    assert!(digests(&host.client.get("/v1/artifacts").await?).is_empty());
    let bytes = content(1_200_000);
    put(&host.client, &bytes).await?.ok()?;
    let host = host.restart().await?;
    assert!(host.client.get(&format!("/v1/artifacts/{}", digest_of(&bytes))).await?.body == bytes);
    host.stop().await;
    Ok(())
}
