//! Files of keys.

use millrace::control::SigningKey;
use millrace::control::trust::{KeyRole, TrustStore, TrustedKey};
use millrace_tests::control_events::{
    ISSUED, NOW, SECOND, deployed, key, release_key, root_key, trust, trusted,
};
use serde_json::{Value, json};

use super::code_of;

#[test]
fn a_new_key_signs_as_its_file_does() {
    let (fresh, pem) = SigningKey::generate().unwrap();
    let (other, _) = SigningKey::generate().unwrap();
    assert_ne!(fresh.id(), other.id());
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{pem}");
    assert!(pem.lines().all(|line| line.len() <= 64));
    // A note before it, and another end of line, do no harm.
    let read = SigningKey::from_pem(&format!("release key of ops\n{}", pem.replace('\n', "\r\n"))).unwrap();
    assert_eq!(read.id(), fresh.id());
    let list = trust().trusting(fresh.trusted_as(KeyRole::Release, "ops")).unwrap();
    let event = deployed("board", "1.0.0", 1).sign(&read).unwrap();
    TrustStore::new(1, &list).unwrap().check_event(&event, NOW).unwrap();
    assert_eq!(event.signatures()[0].key, fresh.id());
}

#[test]
fn a_key_has_the_id_that_others_give_it() {
    assert_eq!(root_key().id(), "ed25519:34750f98bd59fcfc");
    assert_eq!(root_key().trusted_as(KeyRole::Root, "x").id().as_deref(), Some(root_key().id()));
    assert_eq!(key(1).id(), root_key().id());
}

#[test]
fn a_private_key_is_in_no_message() {
    let (fresh, pem) = SigningKey::generate().unwrap();
    assert_eq!(format!("{fresh:?}"), format!("SigningKey({})", fresh.id()));
    let secret = pem.lines().nth(1).unwrap();
    let broken = [
        pem.replace("END", "THE END"),
        pem.replacen(&secret[8..20], "!", 1),
        pem.replacen(&secret[40..], "AAAA", 1),
        pem.replace("PRIVATE", "PUBLIC"),
        "x".repeat(5_000),
        String::new(),
    ];
    for text in broken {
        let error = SigningKey::from_pem(&text).unwrap_err();
        assert!(!error.to_string().contains(&secret[..8]), "{error}");
        assert_eq!(code_of(SigningKey::from_pem(&text)), "control_settings_invalid");
    }
}

#[test]
fn a_list_of_keys_comes_out_of_its_file_as_it_went_in() {
    let mut list = trusted();
    list.keys[1].expires_at = Some(ISSUED + SECOND);
    list.keys[2].revoked = true;
    let store = TrustStore::new(7, &list).unwrap();
    let again = TrustStore::parse(&store.to_json()).unwrap();
    assert_eq!(again, store);
    assert_eq!(again.revision(), 7);
    let ids: Vec<_> = again.keys().map(|(id, key)| (id.to_owned(), key.id())).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|(id, own)| own.as_deref() == Some(id)));
    assert!(store.to_json().contains("2026-03-01T12:00:01.000000Z"));
}

#[test]
fn a_public_key_is_what_people_give_to_each_other() {
    let given = release_key().trusted_as(KeyRole::Release, "ops@example.com");
    let text = serde_json::to_string_pretty(&given).unwrap();
    assert_eq!(text.parse::<TrustedKey>().unwrap(), given);
    let short = json!({ "public_key": given.public_key, "role": "release", "owner": "ops@example.com" });
    assert_eq!(short.to_string().parse::<TrustedKey>().unwrap(), given);
}

#[test]
fn c27_a_file_of_keys_that_could_be_meant_otherwise_is_refused() {
    let file: Value = serde_json::from_str(&trust().to_json()).unwrap();
    TrustStore::parse(&file.to_string()).unwrap();
    let set = |path: &str, value: Value| {
        let mut file = file.clone();
        *file.pointer_mut(path).unwrap() = value;
        file.to_string()
    };
    let mut misspelt = file.clone();
    misspelt["keys"][0]["revokd"] = json!(true);
    let text = file.to_string();
    let wrong = [
        misspelt.to_string(),
        set("/format", json!("millrace.trust.v2")),
        set("/keys/0/role", json!("all")),
        set("/keys/0/role", json!(["root", "release"])),
        set("/keys/0/public_key", json!("AAAA")),
        set("/keys/0/public_key", file["keys"][1]["public_key"].clone()),
        set("/keys/0/owner", json!("")),
        set("/keys", json!([[]])),
        text.replacen("\"revoked\":false", "\"revoked\":true,\"revoked\":false", 1),
        text.replacen('{', "{\"more\":1,", 1),
        "{}".into(),
        String::new(),
    ];
    for text in wrong {
        assert_eq!(code_of(TrustStore::parse(&text)), "control_settings_invalid", "{text}");
    }
}
