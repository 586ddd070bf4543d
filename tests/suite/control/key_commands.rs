//! `millrace keys`: files of keys, and the list of those that are believed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use millrace::cli::{CliError, Exit};
use millrace::control::SigningKey;
use millrace::control::trust::{KeyRole, TrustStore};
use serde_json::Value;

use crate::commands::ran;

async fn keys(arguments: &[&str]) -> (Result<(), CliError>, String) {
    ran(&[&["keys"][..], arguments].concat()).await
}

#[tokio::test]
async fn a_new_key_is_secret_and_its_public_part_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build.pem");
    let file = file.to_str().unwrap();
    let (ended, said) = keys(&["new", "--role", "build", "-o", file, "--owner", "the build server"]).await;
    ended.unwrap();
    let mode = |name: &str| fs::metadata(name).unwrap().permissions().mode() & 0o777;
    let public = format!("{file}.pub");
    assert_eq!((mode(file), mode(&public) & 0o600), (0o600, 0o600));
    let pem = fs::read_to_string(file).unwrap();
    let key = SigningKey::from_pem(&pem).unwrap();
    assert!(said.starts_with(&format!("{} is a new build key\n", key.id())), "{said}");
    assert!(!said.contains(pem.lines().nth(1).unwrap()), "the secret is shown nowhere");
    let text = fs::read_to_string(&public).unwrap();
    assert_eq!(
        text.parse::<millrace::control::trust::TrustedKey>().unwrap(),
        key.trusted_as(KeyRole::Build, "the build server")
    );
    // What is there is not written over.
    let error = keys(&["new", "--role", "root", "-o", file]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{error}");
    assert_eq!(fs::read_to_string(file).unwrap(), pem);
    // Nor is a secret left alone where its public part has no place.
    let other = dir.path().join("other.pem");
    fs::write(dir.path().join("other.pem.pub"), "somebody's").unwrap();
    keys(&["new", "--role", "root", "-o", other.to_str().unwrap()]).await.0.unwrap_err();
    assert!(!other.exists());
    let (ended, said) =
        keys(&["new", "--role", "root", "-o", dir.path().join("json.pem").to_str().unwrap(), "--json"]).await;
    ended.unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["role"].as_str(), said["owner"].as_str()), (Some("root"), Some("json.pem")), "{said}");
}

#[tokio::test]
async fn the_list_grows_is_told_and_a_revoked_key_stays_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let list = at("trust.json");
    let read = || TrustStore::parse(&fs::read_to_string(&list).unwrap()).unwrap();
    for (role, name) in [("root", "root.pem"), ("build", "build.pem")] {
        keys(&["new", "--role", role, "-o", &at(name)]).await.0.unwrap();
    }
    let (ended, said) = keys(&["trust", &at("root.pem.pub"), "--file", &list]).await;
    ended.unwrap();
    assert!(said.contains("is trusted as a root key") && said.ends_with("has revision 0\n"), "{said}");
    let expires = ["--expires-at", "2030-01-01T00:00:00Z"];
    let (ended, said) =
        keys(&[&["trust", &at("build.pem.pub"), "--file", &list, "--json"][..], &expires].concat()).await;
    ended.unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["outcome"].as_str(), said["revision"].as_u64()), (Some("trusted"), Some(1)), "{said}");
    let build = said["id"].as_str().unwrap().to_owned();
    assert_eq!((read().revision(), read().keys().count()), (1, 2));
    let before = fs::read_to_string(&list).unwrap();
    let (ended, said) =
        keys(&[&["trust", &at("build.pem.pub"), "--file", &list][..], &expires].concat()).await;
    ended.unwrap();
    assert!(said.contains("is in the list already"), "{said}");
    assert_eq!(fs::read_to_string(&list).unwrap(), before, "nothing was written");

    let (ended, said) = keys(&["revoke", &build, "--file", &list]).await;
    ended.unwrap();
    assert!(said.contains("is revoked") && said.contains("revision 2"), "{said}");
    assert!(read().keys().any(|(id, key)| id == build && key.revoked));
    let (ended, said) = keys(&["revoke", &at("build.pem.pub"), "--file", &list]).await;
    ended.unwrap();
    assert!(said.contains("is revoked already") && said.contains("revision 2"), "{said}");
    let error = keys(&["trust", &at("build.pem.pub"), "--file", &list]).await.0.unwrap_err();
    assert!(error.sentence().contains("is revoked in"), "{error}");

    keys(&["new", "--role", "release", "-o", &at("release.pem")]).await.0.unwrap();
    let trust = ["trust", &at("release.pem.pub"), "--file", &list];
    let error = keys(&[&trust[..], &["--revision", "2"]].concat()).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{error}");
    keys(&[&trust[..], &["--revision", "40"]].concat()).await.0.unwrap();
    assert_eq!((read().revision(), read().keys().count()), (40, 3));
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    keys(&["new", "--role", "build", "-o", &at("build.pem")]).await.0.unwrap();
    let (list, key) = (at("trust.json"), at("build.pem.pub"));
    for text in ["", "{", "{\"format\":\"millrace.trust.v9\",\"keys\":[]}", &"x".repeat(300_000)] {
        fs::write(&list, text).unwrap();
        for arguments in [["trust", &key, "--file", &list], ["revoke", &key, "--file", &list]] {
            let error = keys(&arguments).await.0.unwrap_err();
            assert_eq!(error.exit(), Exit::Failure, "{error}");
            assert!(error.sentence().contains("trust.json"), "{error}");
        }
        assert_eq!(fs::read_to_string(&list).unwrap(), text);
    }
    let absent = at("absent.json");
    assert_eq!(keys(&["revoke", &key, "--file", &absent]).await.0.unwrap_err().exit(), Exit::Failure);
    fs::remove_file(&list).unwrap();
    let private = at("build.pem");
    let error = keys(&["trust", &private, "--file", &list]).await.0.unwrap_err();
    assert!(!std::path::Path::new(&list).exists(), "{error}");
    let secret = fs::read_to_string(&private).unwrap();
    assert!(!error.to_string().contains(secret.lines().nth(1).unwrap()), "a private key is shown nowhere");
}
