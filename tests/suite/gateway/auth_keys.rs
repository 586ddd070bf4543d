//! Key sets behind an address: when they are read, what is taken from them, and what happens when they are not there.

use std::time::Duration;

use millrace::gateway::JwtKeys;
use serde_json::{Value, json};

use super::issuer::{KeyServer, SECRET, Signer, claims, claims_with, events, jwt, later, rig_of, set};
use super::rig::{PATIENCE, Rig};

async fn rig_at(server: &KeyServer) -> Rig {
    let keys = JwtKeys::JwksUrl(server.url.clone());
    Rig::with(|options| {
        let mut jwt = jwt(keys);
        // Long enough that no test sees a second reading that it did not cause.
        jwt.jwks_refresh = Duration::from_secs(3_600);
        options.auth.jwt = Some(jwt);
    })
    .await
}

/// Waits until the first set was asked for: the host does it by itself when it starts.
async fn asked(server: &KeyServer, times: usize) {
    let wait = async {
        while server.asked() < times {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the keys are asked for");
}

#[tokio::test]
async fn a_new_key_is_found_and_one_that_is_gone_opens_nothing() {
    let (old, new) = (Signer::ed25519(), Signer::p256());
    let server = KeyServer::start(&set(&[old.jwk("old")])).await;
    let rig = rig_at(&server).await;
    asked(&server, 1).await;
    assert_eq!(events(&rig, &old.token("old", &claims())).await.status, 200);
    server.show(&set(&[new.jwk("new")]));
    // The first reading was a moment ago: somebody may be making keys up.
    events(&rig, &new.token("new", &claims())).await.is_problem(401, "token_key_unknown");
    assert_eq!(events(&rig, &old.token("old", &claims())).await.status, 200, "the set is still the old one");
    assert_eq!(server.asked(), 1);
    later(&rig, 11);
    assert_eq!(events(&rig, &new.token("new", &claims())).await.status, 200);
    events(&rig, &old.token("old", &claims())).await.is_problem(401, "token_key_unknown");
    assert_eq!(server.asked(), 2);
    rig.stop().await;
}

#[tokio::test]
async fn made_up_keys_do_not_make_the_host_ask_again_and_again() {
    let signer = Signer::ed25519();
    let server = KeyServer::start(&set(&[signer.jwk("k")])).await;
    let rig = rig_at(&server).await;
    asked(&server, 1).await;
    later(&rig, 11);
    for n in 0..20 {
        let token = signer.token(&format!("made-up-{n}"), &claims());
        events(&rig, &token).await.is_problem(401, "token_key_unknown");
    }
    assert_eq!(server.asked(), 2, "once for all of them");
    rig.stop().await;
}

#[tokio::test]
async fn the_last_good_set_stays_when_the_next_one_is_none() {
    let signer = Signer::ed25519();
    let good = set(&[signer.jwk("k")]);
    let server = KeyServer::start(&good).await;
    let rig = rig_at(&server).await;
    asked(&server, 1).await;
    let (known, unknown) = (signer.token("k", &claims()), signer.token("x", &claims()));
    let many: Vec<Value> = (0..101).map(|n| signer.jwk(&format!("k{n}"))).collect();
    // 300 KB of it.
    let mut large = good.clone();
    large["padding"] = "x".repeat(300 << 10).into();
    let secret = set(&[Signer::Secret(SECRET.into()).jwk("k")]);
    for (status, body) in [
        ("500 Internal Server Error", good.to_string()),
        ("302 Found", good.to_string()),
        ("200 OK", String::new()),
        ("200 OK", "<html>".into()),
        ("200 OK", json!({ "keys": [] }).to_string()),
        ("200 OK", json!({ "keys": {} }).to_string()),
        ("200 OK", set(&many).to_string()),
        ("200 OK", large.to_string()),
        // A secret that anybody can fetch.
        ("200 OK", secret.to_string()),
    ] {
        server.answers(status, body.as_bytes());
        later(&rig, 11);
        let before = server.asked();
        events(&rig, &unknown).await.is_problem(401, "token_key_unknown");
        assert_eq!(server.asked(), before + 1, "it was asked for");
        assert_eq!(events(&rig, &known).await.status, 200, "{status} {body:.60}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_silent_issuer_holds_nobody_up_for_long() {
    let signer = Signer::ed25519();
    let server = KeyServer::start(&set(&[signer.jwk("k")])).await;
    let keys = JwtKeys::JwksUrl(server.url.clone());
    let rig = Rig::with(|options| {
        let mut jwt = jwt(keys);
        // The first reading has to come about in it, too.
        jwt.jwks_wait_max = Duration::from_secs(2);
        options.auth.jwt = Some(jwt);
    })
    .await;
    asked(&server, 1).await;
    assert_eq!(events(&rig, &signer.token("k", &claims())).await.status, 200);
    server.is_silent();
    later(&rig, 11);
    events(&rig, &signer.token("x", &claims())).await.is_problem(401, "token_key_unknown");
    assert_eq!(events(&rig, &signer.token("k", &claims())).await.status, 200, "the others go on");
    rig.stop().await;
}

#[tokio::test]
async fn without_any_keys_yet_the_answer_is_try_again() {
    let signer = Signer::ed25519();
    let server = KeyServer::start(&set(&[])).await;
    let rig = rig_at(&server).await;
    asked(&server, 1).await;
    let token = signer.token("k", &claims());
    let answer = events(&rig, &token).await;
    answer.is_problem(503, "jwks_unavailable");
    assert!(answer.header("retry-after").is_some());
    server.show(&set(&[signer.jwk("k")]));
    later(&rig, 11);
    assert_eq!(events(&rig, &token).await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn a_set_is_read_again_from_time_to_time() {
    let (old, new) = (Signer::ed25519(), Signer::ed25519());
    let server = KeyServer::start(&set(&[old.jwk("k")])).await;
    let keys = JwtKeys::JwksUrl(server.url.clone());
    let rig = Rig::with(|options| {
        let mut jwt = jwt(keys);
        jwt.jwks_refresh = Duration::from_millis(100);
        options.auth.jwt = Some(jwt);
    })
    .await;
    asked(&server, 1).await;
    server.show(&set(&[new.jwk("k")]));
    // Nobody shows an unknown key: it is found all the same. The second from now on has seen the new set.
    asked(&server, server.asked() + 2).await;
    let token = new.token("k", &claims());
    assert_eq!(events(&rig, &token).await.status, 200);
    events(&rig, &old.token("k", &claims())).await.is_problem(401, "token_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn several_keys_may_have_one_name_or_none() {
    let (first, second) = (Signer::ed25519(), Signer::ed25519());
    let mut nameless = second.jwk("");
    nameless.as_object_mut().expect("a key").remove("kid");
    let rig = rig_of(&set(&[first.jwk("k"), Signer::rsa().jwk("k"), nameless]), |_| {}).await;
    for token in [
        first.token("k", &claims()),
        Signer::rsa().token("k", &claims()),
        second.token("k", &claims()),
        second.token_with(&json!({ "alg": "EdDSA" }), &claims_with(&json!({ "sub": null }))),
    ] {
        assert_eq!(events(&rig, &token).await.status, 200);
    }
    rig.stop().await;
}
