//! Which signed tokens are taken: those with a known key's signature, for this host, now, and no others.

use millrace::gateway::{Gateway, GatewayError, GatewayOptions, JwtAlgorithm, JwtKeys};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::issuer::{SECRET, Signer, claims, claims_with, encode, events, file, jwt, now, rig_of, set};
use super::rig::Rig;

#[tokio::test]
async fn tokens_of_every_algorithm_open_their_tenant() {
    let signers = [Signer::secret(), Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk(signer.algorithm())).collect();
    let rig = rig_of(&set(&keys), |_| {}).await;
    rig.append("alpha", 3).await;
    rig.append("beta", 1).await;
    for signer in &signers {
        let id = signer.algorithm();
        for token in [
            signer.token(id, &claims()),
            // Neither an id nor a type is needed.
            signer.token_with(&json!({ "alg": id }), &claims()),
            signer.token(
                id,
                &claims_with(&json!({ "rights": "openid read else", "aud": "millrace", "nbf": null })),
            ),
            signer
                .token(id, &claims_with(&json!({ "exp": now() + 1, "jti": null, "sub": null, "iat": null }))),
        ] {
            let answer = events(&rig, &token).await;
            assert_eq!(answer.status, 200, "{id}: {}", answer.text());
            assert_eq!(answer.json()["events"].as_array().expect("events").len(), 3, "those of its tenant");
        }
        let other = signer.token(id, &claims_with(&json!({ "tenant": "beta" })));
        assert_eq!(events(&rig, &other).await.json()["events"].as_array().expect("events").len(), 1);
        let none = signer.token(id, &claims_with(&json!({ "rights": ["publish", "sudo"] })));
        let refused = events(&rig, &none).await;
        refused.is_problem(403, "right_missing");
        assert!(refused.header("www-authenticate").is_some_and(|h| h.contains("insufficient_scope")));
    }
    assert_eq!(events(&rig, "alpha-read").await.status, 200, "static tokens go on beside them");
    rig.stop().await;
}

#[tokio::test]
async fn a_public_key_is_no_secret_and_an_algorithm_is_not_a_choice() {
    let rsa = Signer::rsa();
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[rsa.jwk("rsa"), ed.jwk("ed")]), |_| {}).await;
    let (n, _) = rsa.modulus();
    let pem = "-----BEGIN PUBLIC KEY-----".to_owned() + &encode(&n);
    for secret in [n, pem.into_bytes(), rsa.jwk("rsa").to_string().into_bytes(), Vec::new()] {
        let forger = Signer::Secret(secret);
        for id in ["rsa", "ed"] {
            events(&rig, &forger.token(id, &claims())).await.is_problem(401, "token_invalid");
        }
        let nameless = forger.token_with(&json!({ "alg": "HS256" }), &claims());
        events(&rig, &nameless).await.is_problem(401, "token_key_unknown");
    }
    for alg in ["none", "None", "NONE", "nOnE", "", "RS512", "PS256", "HS256 ", "hs256"] {
        let header = json!({ "alg": alg, "kid": "rsa" });
        let message = format!("{}.{}", encode(header.to_string()), encode(claims().to_string()));
        for token in [format!("{message}."), rsa.token_with(&header, &claims())] {
            events(&rig, &token).await.is_problem(401, "token_invalid");
        }
    }
    // The right key under another algorithm's name, and another key's name.
    for header in [
        json!({ "alg": "EdDSA", "kid": "rsa" }),
        json!({ "alg": "ES256", "kid": "rsa" }),
        json!({ "alg": "RS256", "kid": "ed" }),
    ] {
        let answer = events(&rig, &rsa.token_with(&header, &claims())).await;
        assert_eq!(answer.status, 401, "{header}: {}", answer.text());
    }
    let critical =
        rsa.token_with(&json!({ "alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false }), &claims());
    events(&rig, &critical).await.is_problem(401, "token_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn an_algorithm_that_the_operator_left_out_is_not_taken() {
    let (rsa, ed) = (Signer::rsa(), Signer::ed25519());
    let keys = set(&[rsa.jwk("rsa"), ed.jwk("ed")]);
    let rig = rig_of(&keys, |options| {
        options.auth.jwt.as_mut().expect("jwt").algorithms = vec![JwtAlgorithm::EdDsa];
    })
    .await;
    assert_eq!(events(&rig, &ed.token("ed", &claims())).await.status, 200);
    events(&rig, &rsa.token("rsa", &claims())).await.is_problem(401, "token_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn what_a_token_claims_is_checked() {
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[ed.jwk("k")]), |_| {}).await;
    for (changed, code) in [
        (json!({ "exp": now() }), "token_expired"),
        (json!({ "exp": now() - 3600 }), "token_expired"),
        (json!({ "exp": -1e300 }), "token_expired"),
        (json!({ "exp": null }), "token_invalid"),
        (json!({ "exp": "never" }), "token_invalid"),
        (json!({ "exp": [now() + 10] }), "token_invalid"),
        (json!({ "nbf": now() + 1 }), "token_not_yet_valid"),
        (json!({ "nbf": "2030-01-01" }), "token_invalid"),
        (json!({ "iat": true }), "token_invalid"),
        (json!({ "iss": "https://other.example" }), "token_invalid"),
        (json!({ "iss": null }), "token_invalid"),
        (json!({ "iss": ["https://issuer.example"] }), "token_invalid"),
        (json!({ "aud": "other" }), "token_invalid"),
        (json!({ "aud": null }), "token_invalid"),
        (json!({ "aud": [] }), "token_invalid"),
        (json!({ "aud": { "millrace": true } }), "token_invalid"),
        (json!({ "tenant": null }), "token_invalid"),
        (json!({ "tenant": "" }), "token_invalid"),
        (json!({ "tenant": ["alpha"] }), "token_invalid"),
        (json!({ "tenant": "Not A Tenant" }), "token_invalid"),
        (json!({ "rights": { "read": true } }), "token_invalid"),
        (json!({ "tables": "flights" }), "token_invalid"),
        (json!({ "tables": [1] }), "token_invalid"),
        (json!({ "tables": { "things": "size:gt:1" } }), "token_invalid"),
        (json!({ "tables": { "things": { "were": "size:gt:1" } } }), "token_invalid"),
        (json!({ "tables": { "things": { "where": null } } }), "token_invalid"),
        (json!({ "rights": null }), "right_missing"),
        (json!({ "rights": [] }), "right_missing"),
    ] {
        let answer = events(&rig, &ed.token("k", &claims_with(&changed))).await;
        let status = if code == "right_missing" { 403 } else { 401 };
        answer.is_problem(status, code);
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer realm=\"millrace\", error="), "{changed}: {challenge}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn leeway_covers_clocks_that_differ_and_no_more() {
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[ed.jwk("k")]), |options| {
        options.auth.jwt.as_mut().expect("jwt").leeway = std::time::Duration::from_secs(30);
    })
    .await;
    for (changed, status) in [
        (json!({ "exp": now() - 29 }), 200),
        (json!({ "exp": now() - 30 }), 401),
        (json!({ "nbf": now() + 30 }), 200),
        (json!({ "nbf": now() + 31 }), 401),
    ] {
        assert_eq!(events(&rig, &ed.token("k", &claims_with(&changed))).await.status, status, "{changed}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_token_for_an_audience_is_refused_where_the_host_has_no_name() {
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[ed.jwk("k")]), |options| {
        let jwt = options.auth.jwt.as_mut().expect("jwt");
        (jwt.audience, jwt.issuer) = (None, None);
    })
    .await;
    events(&rig, &ed.token("k", &claims())).await.is_problem(401, "token_invalid");
    let open = ed.token("k", &claims_with(&json!({ "aud": null, "iss": null })));
    assert_eq!(events(&rig, &open).await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn claims_have_the_names_that_the_operator_gives_them() {
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[ed.jwk("k")]), |options| {
        let jwt = options.auth.jwt.as_mut().expect("jwt");
        (jwt.tenant_claim, jwt.rights_claim) = ("https://issuer.example/org".into(), "scope".into());
    })
    .await;
    rig.append("gamma", 2).await;
    let changed = json!({ "https://issuer.example/org": "gamma", "scope": "read profile", "rights": null });
    let answer = events(&rig, &ed.token("k", &claims_with(&changed))).await;
    assert_eq!(answer.json()["events"].as_array().expect("events").len(), 2);
    events(&rig, &ed.token("k", &claims())).await.is_problem(401, "token_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn a_secret_comes_from_a_file_and_must_be_long() {
    let secret = [SECRET, b"\n"].concat();
    let held = file(&secret);
    let rig = Rig::with(|options| {
        options.auth.jwt = Some(jwt(JwtKeys::Hs256SecretFile(held.path().into())));
    })
    .await;
    let token = Signer::secret().token("any", &claims());
    assert_eq!(events(&rig, &token).await.status, 200);
    events(&rig, &Signer::Secret(secret.clone()).token("any", &claims()))
        .await
        .is_problem(401, "token_key_unknown");
    rig.get("/v1/streams/events").await.is_problem(401, "token_missing");
    let short = file(b"thirty-one bytes are too few...");
    let bad = file(b"{\"keys\":[{\"kty\":\"RSA\"}]}");
    for (keys, wanted) in [
        (JwtKeys::Hs256SecretFile(short.path().into()), "jwt_secret_bytes_min"),
        (JwtKeys::Hs256SecretFile("no-such-file".into()), "no-such-file"),
        (JwtKeys::JwksFile(bad.path().into()), "no key"),
        (JwtKeys::JwksFile(short.path().into()), "not a JSON Web Key Set"),
        (JwtKeys::JwksUrl("http://issuer.example/keys".into()), "https"),
        (JwtKeys::JwksUrl("ftp://127.0.0.1/keys".into()), "https"),
        (JwtKeys::JwksUrl(String::new()), "https"),
    ] {
        let mut options = GatewayOptions::new("127.0.0.1:0".parse().expect("an address"));
        options.auth.jwt = Some(jwt(keys));
        let error = Gateway::bind(options, rig.services()).await.expect_err("refused");
        assert!(matches!(error, GatewayError::Jwt { .. }) && error.to_string().contains(wanted), "{error}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn keys_that_are_weak_or_meant_for_something_else_are_passed_over() {
    let rsa = Signer::rsa();
    let ed = Signer::ed25519();
    let mut encrypting = rsa.jwk("enc");
    encrypting["use"] = "enc".into();
    let mut wrapping = rsa.jwk("wrap");
    wrapping["key_ops"] = json!(["wrapKey"]);
    let mut longer = rsa.jwk("rs512");
    longer["alg"] = "RS512".into();
    let mut small = rsa.jwk("small");
    small["n"] = encode([0xc3; 128]).into();
    let strange = json!({ "kty": "strange", "kid": ["x"] });
    let keys = set(&[encrypting, wrapping, longer, small, strange, ed.jwk("ed")]);
    let rig = rig_of(&keys, |_| {}).await;
    for id in ["enc", "wrap", "rs512"] {
        events(&rig, &rsa.token(id, &claims())).await.is_problem(401, "token_key_unknown");
    }
    events(&rig, &rsa.token("small", &claims())).await.is_problem(401, "token_invalid");
    assert_eq!(events(&rig, &ed.token("ed", &claims())).await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_token_at_all_is_refused_with_a_code() {
    let ed = Signer::ed25519();
    let rig = rig_of(&set(&[ed.jwk("k")]), |_| {}).await;
    let good = ed.token("k", &claims());
    let long = format!("{good}{}", "A".repeat(9_000));
    let nested = ed.token_with(&json!({ "alg": "EdDSA", "kid": "k" }), &json!([claims()]));
    for token in [
        "..",
        "a.b.c",
        "a..c",
        "....",
        "eyJ.eyJ.x",
        &good.replace('.', ".."),
        &long,
        &nested,
        &format!("{good}="),
    ] {
        events(&rig, token).await.is_problem(401, "token_invalid");
    }
    for header in ["Basic eDp5", "bearer", "Bearer", "", "Token abc.def.ghi"] {
        let answer = rig.send("GET", "/v1/streams/events", &[("Authorization", header)], b"").await;
        answer.is_problem(401, "token_missing");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"millrace\""));
    }
    let two = format!("Bearer {good}");
    let twice = [("Authorization", "Bearer alpha-read"), ("Authorization", two.as_str())];
    rig.send("GET", "/v1/streams/events", &twice, b"").await.is_problem(401, "token_missing");
    assert_eq!(events(&rig, &good).await.status, 200);
    rig.stop().await;
}

#[test]
fn no_mangled_token_is_taken() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let signers = [Signer::secret(), Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk(signer.algorithm())).collect();
    let rig = runtime.block_on(rig_of(&set(&keys), |_| {}));
    let tokens: Vec<String> = signers.iter().map(|s| s.token(s.algorithm(), &claims())).collect();
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let mangle = (0..tokens.len(), any::<prop::sample::Index>(), 0..5_u8, "[A-Za-z0-9_.-]{1,3}");
    proptest!(config, |((which, place, how, text) in mangle)| {
        let token = &tokens[which];
        let at = place.index(token.len());
        let end = (at + text.len()).min(token.len());
        let mangled = match how {
            0 => format!("{}{text}{}", &token[..at], &token[end..]),
            1 => format!("{}{text}{}", &token[..at], &token[at..]),
            2 => format!("{}{}", &token[..at], &token[end..]),
            3 => token[..at].to_owned(),
            // One's signature under another's words.
            _ => {
                let (words, _) = token.rsplit_once('.').expect("a signature");
                let (_, other) = tokens[(which + 1 + at % 3) % 4].rsplit_once('.').expect("a signature");
                format!("{words}.{other}")
            }
        };
        prop_assume!(!tokens.contains(&mangled));
        let answer = runtime.block_on(events(&rig, &mangled));
        prop_assert_eq!(answer.status, 401, "{}", mangled);
    });
    runtime.block_on(rig.stop());
}
