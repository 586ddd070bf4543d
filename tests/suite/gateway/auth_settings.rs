//! What an operator writes about who may come in, and what is refused before the host starts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use millrace::config::{Config, ConfigError, JwtAlgorithm, Layers, TableRuleConfig, TablesConfig};

fn resolve(text: &str) -> Result<Config, ConfigError> {
    let held = super::issuer::file(text.as_bytes());
    let mut layers = Layers::new();
    layers.file(held.path())?;
    Ok(layers.resolve()?.config)
}

#[test]
fn an_issuer_and_limited_tokens_are_read() {
    let config = resolve(
        r#"
        [serve]
        bind = "0.0.0.0:7070"
        [gateway]
        cors_origins = ["https://app.example.com", "http://localhost:5173", "http://[::1]:8080"]
        tenant_requests_per_s = 100
        [auth]
        session_lifetime_s = 60
        [auth.jwt]
        jwks_url = "https://issuer.example/keys"
        issuer = "https://issuer.example"
        algorithms = ["EdDSA", "RS256"]
        [[auth.tokens]]
        token = "sesame-and-more"
        tenant = "acme"
        rights = ["read"]
        tables = { flights = { where = "carrier:eq:UA" }, alerts = {} }
        [[auth.tokens]]
        token = "sesame-and-less"
        tenant = "acme"
        rights = ["read"]
        tables = ["flights"]
        "#,
    )
    .expect("a configuration");
    let jwt = config.auth.jwt.as_ref().expect("an issuer");
    assert_eq!(jwt.algorithms, [JwtAlgorithm::EdDSA, JwtAlgorithm::RS256]);
    assert_eq!((jwt.tenant_claim.as_str(), jwt.leeway_s, jwt.jwks_refresh_s), ("tenant", 30, 300));
    let rule = |text: Option<&str>| TableRuleConfig { condition: text.map(str::to_owned) };
    let rules = BTreeMap::from([
        ("flights".to_owned(), rule(Some("carrier:eq:UA"))),
        ("alerts".to_owned(), rule(None)),
    ]);
    assert_eq!(config.auth.tokens[0].tables, Some(TablesConfig::Rules(rules)));
    assert_eq!(config.auth.tokens[1].tables, Some(TablesConfig::Names(vec!["flights".into()])));
    assert_eq!((config.auth.session_lifetime_s, config.auth.ticket_lifetime_s), (60, 30));
    assert_eq!((config.gateway.tenant_requests_per_s, config.gateway.tenant_requests_burst), (100, 1_000));
}

#[test]
fn one_setting_of_an_issuer_may_come_from_the_environment() {
    let mut layers = Layers::new();
    layers.environment([("MILLRACE_AUTH__JWT__HS256_SECRET_FILE".to_owned(), "secret.txt".to_owned())]);
    let config = layers.resolve().expect("a configuration").config;
    assert_eq!(config.auth.jwt.expect("an issuer").hs256_secret_file, Some(PathBuf::from("secret.txt")));
}

#[test]
fn what_would_let_the_wrong_ones_in_is_refused_with_its_key() {
    for (text, key) in [
        ("[auth.jwt]\n", "auth.jwt"),
        ("[auth.jwt]\njwks_file = \"a\"\nhs256_secret_file = \"b\"\n", "auth.jwt"),
        ("[auth.jwt]\njwks_file = \"a\"\nalgorithms = []\n", "auth.jwt.algorithms"),
        ("[auth.jwt]\njwks_file = \"a\"\nalgorithms = [\"none\"]\n", "auth.jwt.algorithms"),
        ("[auth.jwt]\njwks_file = \"a\"\nleeway_s = 301\n", "auth.jwt.leeway_s"),
        ("[auth.jwt]\njwks_file = \"a\"\ntenant_claim = \"\"\n", "auth.jwt.tenant_claim"),
        ("[auth.jwt]\njwks_file = \"a\"\njwks_wait_ms_max = 0\n", "auth.jwt.jwks_wait_ms_max"),
        ("[auth.jwt]\njwks_file = \"a\"\nisuer = \"x\"\n", "auth.jwt"),
        ("[auth]\nsessions_max = 0\n", "auth.sessions_max"),
        ("[gateway]\ntenant_requests_burst = 0\n", "gateway.tenant_requests_burst"),
        ("[gateway]\ncors_origins = [\"*\"]\n", "gateway.cors_origins"),
        ("[gateway]\ncors_origins = [\"https://*.example.com\"]\n", "gateway.cors_origins"),
        ("[gateway]\ncors_origins = [\"https://example.com/\"]\n", "gateway.cors_origins"),
        ("[gateway]\ncors_origins = [\"example.com\"]\n", "gateway.cors_origins"),
        ("[gateway]\ncors_origins = [\"null\"]\n", "gateway.cors_origins"),
        (
            "[[auth.tokens]]\ntoken = \"sesame\"\ntenant = \"a\"\nrights = [\"read\"]\ntables = { x = { were = \"a\" } }\n",
            "auth.tokens",
        ),
        (
            "[[auth.tokens]]\ntoken = \"sesame\"\ntenant = \"a\"\nrights = [\"read\"]\ntables = \"x\"\n",
            "auth.tokens",
        ),
    ] {
        match resolve(text) {
            Err(ConfigError::Invalid { key: found, .. }) => {
                assert!(found.starts_with(key), "{text}: {found}")
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let outside = resolve("[serve]\nbind = \"0.0.0.0:7070\"\n").expect_err("refused");
    assert!(outside.to_string().contains("auth.jwt"), "{outside}");
}
