//! Compiling in a child of the host's own executable: what a component costs there, it costs nobody else, and
//! whatever comes back that is not the child's whole answer is no code.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace::error::{Blame, Classify};
use millrace::plugins::{PluginError, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace_tests::workspace_binary;

use super::rig::{batch, component, context, load, options};

fn own() -> RuntimeOptions {
    RuntimeOptions { compiler: Some(workspace_binary("millrace")), ..options() }
}

fn refused(options: RuntimeOptions, bytes: &[u8]) -> PluginError {
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    load(&runtime, bytes, &PluginSettings::default()).expect_err("it is refused")
}

fn works(options: RuntimeOptions) {
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let factory =
        load(&runtime, &component("crossing"), &PluginSettings::default()).expect("the guest loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it works").handled, 1);
}

/// An unsigned number in LEB128.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &leb(content.len())[..], content].concat()
}

/// A component with this many functions, each of which computes for this many steps: small to send, valid, and
/// as long to compile as somebody likes.
pub(crate) fn bomb(functions: usize, steps: usize) -> Vec<u8> {
    // local.get 0, local.get 0, i32.const 7, i32.mul, i32.add, local.set 0
    let body = [0x20, 0, 0x20, 0, 0x41, 7, 0x6c, 0x6a, 0x21, 0].repeat(steps);
    let body = [&[0][..], &body, &[0x0b]].concat();
    let body = [leb(body.len()), body].concat();
    let types = section(1, &[1, 0x60, 1, 0x7f, 0]);
    let declared = section(3, &[leb(functions), vec![0; functions]].concat());
    let code = section(10, &[leb(functions), body.repeat(functions)].concat());
    let module = [b"\0asm\x01\0\0\0".to_vec(), types, declared, code].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
}

#[test]
fn a_child_compiles_and_the_host_keeps_what_it_answered() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    works(RuntimeOptions { cache_dir: Some(dir.path().to_owned()), ..own() });
    // The next start needs no compiler, since the entry is the host's own.
    let none = RuntimeOptions { compiler: Some("no/such/compiler".into()), ..options() };
    works(RuntimeOptions { cache_dir: Some(dir.path().to_owned()), ..none });
}

#[test]
fn a_bomb_ends_at_the_time_it_may_take() {
    let options = RuntimeOptions { compile_max: Duration::from_millis(200), ..own() };
    let error = refused(options, &bomb(40_000, 20));
    assert_eq!((error.code(), error.blame()), ("compile_limit", Blame::Guest), "{error}");
    assert!(error.to_string().ends_with("compile_ms_max = 200; raise processors.compile_ms_max"), "{error}");
}

#[test]
fn a_bomb_ends_at_the_memory_it_may_take() {
    let bytes_max = 400 << 20;
    let options = RuntimeOptions { compile_memory_bytes_max: bytes_max, ..own() };
    let error = refused(options, &bomb(1, 700_000));
    assert_eq!((error.code(), error.blame()), ("compile_limit", Blame::Guest), "{error}");
    assert!(error.to_string().contains(&format!("compile_memory_bytes_max = {bytes_max}")), "{error}");
}

#[test]
fn what_is_no_component_is_told_apart_by_the_child_too() {
    let whole = component("crossing");
    let cut = &whole[..whole.len() / 2];
    let (near, far) = (refused(options(), cut), refused(own(), cut));
    assert_eq!(far.code(), "not_a_component");
    assert_eq!(near.to_string(), far.to_string());
}

fn script(dir: &Path, name: &str, lines: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("ours");
    fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("ours");
    path
}

#[test]
fn a_child_that_is_killed_crashes_or_talks_nonsense_is_an_error_and_no_code() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let cache = dir.path().join("cache");
    let cases = [
        ("garbage", "cat > /dev/null; echo garbage", "its answer is not what it should be"),
        ("nothing", "cat > /dev/null", "its answer is not what it should be"),
        (
            "cut",
            r"cat > /dev/null; printf 'mrcode01\000\377\000\000\000\000\000\000\000xxx'",
            "its answer is not what",
        ),
        (
            "long",
            r"cat > /dev/null; printf 'mrcode01\000\001\000\000\000\000\000\000\000xxx'",
            "its answer is not what",
        ),
        (
            "kind",
            r"cat > /dev/null; printf 'mrcode01\007\001\000\000\000\000\000\000\000x'",
            "its answer is not what",
        ),
        ("code", r"cat > /dev/null; printf 'mrcode01\000\001\000\000\000\000\000\000\000x'", "engine failed"),
        (
            "failing",
            r"cat > /dev/null; printf 'mrcode01\000\001\000\000\000\000\000\000\000x'; echo why >&2; exit 3",
            "it ended with code 3: why",
        ),
        ("deaf", "exit 0", "its answer is not what it should be"),
        ("crash", "kill -SEGV $$", "it was ended by signal 11"),
        ("killed", "kill -KILL $$", "it was ended by signal 9"),
    ];
    for (name, lines, says) in cases {
        let compiler = Some(script(dir.path(), name, lines));
        let error = refused(
            RuntimeOptions { compiler, cache_dir: Some(cache.clone()), ..options() },
            &component("crossing"),
        );
        assert!(matches!(error.code(), "compiler_failed" | "engine_failed"), "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert_eq!(error.blame(), Blame::Host);
        assert_eq!(
            fs::read_dir(&cache).expect("the folder is there").count(),
            1,
            "{name}: only the key is kept"
        );
    }
    let missing = RuntimeOptions { compiler: Some(dir.path().join("missing")), ..options() };
    assert!(refused(missing, &component("crossing")).to_string().contains("does not start"));
}

#[test]
fn a_child_that_never_answers_is_ended() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, lines) in [("waits", "exec sleep 1000"), ("spins", "while :; do :; done")] {
        let compiler = Some(script(dir.path(), name, lines));
        let options = RuntimeOptions { compiler, compile_max: Duration::from_millis(200), ..options() };
        assert_eq!(refused(options, &component("crossing")).code(), "compile_limit", "{name}");
    }
}
