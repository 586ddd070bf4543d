//! What is refused before it runs, with which error; and where bytes are kept.

use std::os::unix::fs::PermissionsExt;

use millrace::error::Classify;
use millrace::plugins::{ArtifactStore, FileArtifacts, PluginError, PluginSettings, WasmRuntime};

use super::rig::{component, load, options};

fn refused(bytes: &[u8]) -> PluginError {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    load(&runtime, bytes, &PluginSettings::default()).expect_err("it is refused")
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a good module")
}

#[test]
fn what_is_no_component_is_told_apart() {
    let whole = component("crossing");
    let cases: [(&[u8], &str); 5] = [
        (b"", "fewer than 8 bytes"),
        (b"#!/bin/sh\nexit 0\n", "does not begin like WebAssembly"),
        (&wat("(module)"), "core module; build it for wasm32-wasip2"),
        (&whole[..whole.len() / 2], "this is not a WebAssembly component"),
        (&[&whole[..40], &[0xff; 64]].concat(), "this is not a WebAssembly component"),
    ];
    for (bytes, says) in cases {
        let error = refused(bytes);
        assert_eq!(error.code(), "not_a_component");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_component_of_another_world_is_told_so() {
    let error = refused(&wat("(component)"));
    assert_eq!(
        (error.code(), error.to_string().contains("it exports nothing")),
        ("wrong_world", true),
        "{error}"
    );
    let other = wat(r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#);
    let error = refused(&other);
    assert!(
        error.to_string().contains("exports wasi:cli/run@0.2.0, not millrace:processor/handler"),
        "{error}"
    );
    let later = wat(r#"(component (instance $i) (export "millrace:processor/handler@0.2.0" (instance $i)))"#);
    let error = refused(&later);
    assert_eq!(error.code(), "wrong_world");
    assert!(error.to_string().contains("version `0.2.0`; this host speaks 0.1"), "{error}");
    let empty = wat(r#"(component (instance $i) (export "millrace:processor/handler@0.1.0" (instance $i)))"#);
    assert_eq!(refused(&empty).code(), "wrong_world", "the name alone is not enough");
}

#[test]
fn a_component_of_another_shape_is_told_to_be_built_anew() {
    let shape = wat(r#"(component
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (instance $h
                (export "describe" (func $f)) (export "load" (func $f)) (export "handle" (func $f))
                (export "flush" (func $f)) (export "snapshot" (func $f)))
            (export "millrace:processor/handler@0.1.0" (instance $h)))"#);
    let error = refused(&shape);
    assert_eq!(error.code(), "wrong_world", "{error}");
    assert!(error.to_string().contains("build it against this host's version of millrace-guest"), "{error}");
}

#[test]
fn an_import_that_the_host_does_not_have_is_named() {
    let served = wat(r#"(component (import "wasi:http/incoming-handler@0.2.0" (instance)))"#);
    let error = refused(&served);
    assert_eq!(error.code(), "import_unknown");
    assert!(error.to_string().contains("`wasi:http/incoming-handler@0.2.0`"), "{error}");
    let own = wat(r#"(component (import "millrace:processor/network@0.1.0" (instance)))"#);
    assert_eq!(refused(&own).code(), "import_unknown");
    let later = wat(r#"(component (import "millrace:processor/log@0.7.0" (instance)))"#);
    assert_eq!(refused(&later).code(), "wrong_world");
}

#[test]
fn a_component_over_the_limit_is_not_looked_at() {
    let error = refused(&vec![0; (64 << 20) + 1]);
    assert_eq!(error.to_string(), "the component has 67108865 bytes; component_bytes_max is 67108864");
}

#[test]
fn an_artifact_answers_its_digest_and_its_bytes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let artifacts = FileArtifacts::open(dir.path()).expect("the folder opens");
    let digest = artifacts.put(b"some bytes").expect("they can be kept");
    assert_eq!(digest.len(), 64);
    assert_eq!(artifacts.put(b"some bytes").expect("they can be kept twice"), digest);
    assert_eq!(artifacts.get(&digest).expect("they are there"), b"some bytes");
    let missing = "0".repeat(64);
    assert_eq!(artifacts.get(&missing).expect_err("there is none").code(), "artifact_missing");
}

#[test]
fn a_damaged_artifact_is_not_handed_out_and_is_mended_by_another_put() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let artifacts = FileArtifacts::open(dir.path()).expect("the folder opens");
    let digest = artifacts.put(b"some bytes").expect("they can be kept");
    let path = dir.path().join(format!("{digest}.wasm"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
    std::fs::write(&path, b"other bytes").expect("ours");
    assert_eq!(artifacts.get(&digest).expect_err("it is damaged").code(), "artifact_damaged");
    artifacts.put(b"some bytes").expect("they can be kept again");
    assert_eq!(artifacts.get(&digest).expect("it is mended"), b"some bytes");
}

#[test]
fn what_a_crash_has_left_half_written_is_gone_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let artifacts = FileArtifacts::open(dir.path()).expect("the folder opens");
    let digest = artifacts.put(b"some bytes").expect("they can be kept");
    std::fs::write(dir.path().join(".tmpHalf"), b"some").expect("ours");
    let artifacts = FileArtifacts::open(dir.path()).expect("the folder opens again");
    assert!(!dir.path().join(".tmpHalf").exists());
    assert_eq!(artifacts.get(&digest).expect("it is there"), b"some bytes");
}

#[test]
fn a_digest_cannot_name_another_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("secret.wasm"), b"secret").expect("ours");
    let artifacts = FileArtifacts::open(dir.path().join("artifacts")).expect("the folder opens");
    for digest in ["../secret", "", "..", &"/".repeat(64), &"é".repeat(32)] {
        assert_eq!(artifacts.get(digest).expect_err("no digest").code(), "artifact_missing");
    }
}
