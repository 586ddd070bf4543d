//! `millrace artifact`, against a host in the same process.

use std::fs;
use std::path::Path;

use millrace::cli::{CliError, Exit};
use millrace_tests::conformance::artifacts::content;
use millrace_tests::control_events::digest_of;
use serde_json::Value;

use crate::commands::{config, ran, start};

async fn artifact(url: &str, arguments: &[&str]) -> (Result<(), CliError>, String) {
    ran(&[&["artifact"][..], arguments, &["--url", url]].concat()).await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_pushed_once_and_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    let bytes = content(1_300_000);
    let (file, copy) = (dir.path().join("board.wasm"), dir.path().join("copy.wasm"));
    fs::write(&file, &bytes).unwrap();
    let digest = digest_of(&bytes);

    let (ended, said) = artifact(&url, &["push", text(&file)]).await;
    ended.unwrap();
    assert_eq!(said, format!("{digest} is stored (1300000 bytes)\n"));
    let (ended, said) = artifact(&url, &["push", text(&file), "--pin", "board.active", "--json"]).await;
    ended.unwrap();
    let said = json(&said);
    assert_eq!(
        (&said["digest"], &said["known"]),
        (&Value::from(digest.clone()), &Value::from(true)),
        "{said}"
    );

    let (ended, said) = artifact(&url, &["pull", &digest, "-o", text(&copy)]).await;
    ended.unwrap();
    assert!(said.starts_with(&digest), "{said}");
    assert!(fs::read(&copy).unwrap() == bytes);

    let (ended, said) = artifact(&url, &["ls"]).await;
    ended.unwrap();
    assert!(said.starts_with("DIGEST") && said.contains(&digest) && said.contains("board.active"), "{said}");
    let (ended, said) = artifact(&url, &["ls", "--json"]).await;
    ended.unwrap();
    assert_eq!(json(&said)["pins"], serde_json::json!(["board.active"]));
    for what in [text(&file), &digest] {
        let (ended, said) = artifact(&url, &["verify", what]).await;
        ended.unwrap();
        assert_eq!(said, format!("{digest} is whole (1300000 bytes)\nnobody has signed it\n"));
    }
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_takes_what_nobody_pins_and_says_so_before() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    for (name, pins) in [("one", &["--pin", "kept"][..]), ("two", &[]), ("three", &[])] {
        let file = dir.path().join(name);
        fs::write(&file, name).unwrap();
        artifact(&url, &[&["push", text(&file)], pins].concat()).await.0.unwrap();
    }
    let (ended, said) = artifact(&url, &["gc"]).await;
    ended.unwrap();
    assert_eq!(said, "0 artifacts of 0 bytes are gone\n", "30 days are not over");
    let (ended, said) = artifact(&url, &["gc", "--older-than", "0s", "--dry-run"]).await;
    ended.unwrap();
    assert!(said.ends_with("2 artifacts of 8 bytes would go\n"), "{said}");
    let (ended, said) = artifact(&url, &["gc", "--older-than", "0s", "--json"]).await;
    ended.unwrap();
    assert_eq!(json(&said)["bytes"], 8);
    let (ended, said) = artifact(&url, &["ls"]).await;
    ended.unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains(&digest_of(b"one")), "{said}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_build_is_believed_where_its_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&config(dir.path())).await;
    let url = format!("http://{}", host.addr());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("board.wasm"), "a build").unwrap();
    for (role, name) in [("build", "build.pem"), ("build", "other.pem"), ("release", "release.pem")] {
        ran(&["keys", "new", "--role", role, "-o", &at(name)]).await.0.unwrap();
    }
    let (file, trust) = (at("board.wasm"), at("trust.json"));
    for name in ["build.pem.pub", "release.pem.pub"] {
        ran(&["keys", "trust", &at(name), "--file", &trust]).await.0.unwrap();
    }
    let verify = ["verify", &file, "--trust", &trust, "--plugin", "board"];
    artifact(&url, &["push", &file]).await.0.unwrap();
    let error = artifact(&url, &verify).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Failure);
    assert!(error.sentence().contains("not signed"), "{error}");
    for key in ["other.pem", "release.pem"] {
        artifact(&url, &["push", &file, "--sign", &at(key), "--plugin", "board"]).await.0.unwrap();
    }
    let error = artifact(&url, &verify).await.0.unwrap_err();
    assert!(error.sentence().contains("is not known here"), "{error}");
    assert!(error.sentence().contains("is a release key"), "{error}");
    // A build of another plugin is none of this one.
    artifact(&url, &["push", &file, "--sign", &at("build.pem"), "--plugin", "watch"]).await.0.unwrap();
    artifact(&url, &verify).await.0.unwrap_err();
    let (ended, said) =
        artifact(&url, &["push", &file, "--sign", &at("build.pem"), "--plugin", "board"]).await;
    ended.unwrap();
    assert!(said.contains("signed by ed25519:") && said.contains("as a build of board"), "{said}");
    let (ended, said) = artifact(&url, &verify).await;
    ended.unwrap();
    assert!(said.ends_with("a trusted key says that it is a build of board\n"), "{said}");
    ran(&["keys", "revoke", &at("build.pem.pub"), "--file", &trust]).await.0.unwrap();
    let error = artifact(&url, &verify).await.0.unwrap_err();
    assert!(error.sentence().contains("is revoked"), "{error}");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_has_its_exit_code_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.control.artifact_bytes_max = 10;
    let host = start(&config).await;
    let url = format!("http://{}", host.addr());
    let (file, copy) = (dir.path().join("large"), dir.path().join("copy"));
    fs::write(&file, "more than ten bytes").unwrap();
    let missing = digest_of(b"missing");
    let absent = dir.path().join("absent");
    for (arguments, exit, words) in [
        (&["push", text(&file)][..], Exit::Refused, "artifact_bytes_max"),
        (&["push", text(&absent)], Exit::Failure, "cannot be read"),
        (&["push", text(dir.path())], Exit::Usage, "not a plain file"),
        (&["push", text(&file), "--sign", text(&file), "--plugin", "board"], Exit::Failure, "private key"),
        (&["pull", &missing, "-o", text(&copy)], Exit::Refused, "artifact_missing"),
        (&["pull", "sha256:12", "-o", text(&copy)], Exit::Usage, "neither a file nor a digest"),
        (&["verify", &missing], Exit::Refused, "artifact_missing"),
        (&["verify", "nothing"], Exit::Usage, "neither a file nor a digest"),
    ] {
        let (ended, said) = artifact(&url, arguments).await;
        let error = ended.unwrap_err();
        assert_eq!((error.exit(), said.as_str()), (exit, ""), "{arguments:?}: {error}");
        assert!(error.sentence().contains(words), "{arguments:?}: {error}");
        assert!(!error.next_step().is_empty(), "{arguments:?}");
    }
    assert!(!copy.exists());
    // Damaged on the host: nothing is left of what came.
    fs::write(&file, "ten bytes!").unwrap();
    artifact(&url, &["push", text(&file)]).await.0.unwrap();
    let digest = digest_of(b"ten bytes!");
    let hex = &digest["sha256:".len()..];
    let stored =
        config.serve.data.join("artifact-repository/sha256").join(&hex[..2]).join(&hex[2..4]).join(hex);
    fs::remove_file(&stored).unwrap();
    fs::write(&stored, "tan bytes!").unwrap();
    let before = fs::read_dir(dir.path()).unwrap().count();
    let error = artifact(&url, &["pull", &digest, "-o", text(&copy)]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable, "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "no half file");
    artifact(&url, &["verify", &digest]).await.0.unwrap_err();
    // Its name is there, so it is sent only when it is told to be.
    artifact(&url, &["push", text(&file)]).await.0.unwrap();
    artifact(&url, &["verify", &digest]).await.0.unwrap_err();
    artifact(&url, &["push", text(&file), "--again"]).await.0.unwrap();
    artifact(&url, &["verify", &digest]).await.0.unwrap();
    host.shutdown().await;
    let (ended, _) = artifact(&url, &["ls"]).await;
    assert_eq!(ended.unwrap_err().exit(), Exit::Unreachable);
}
