//! What an operator may give a plugin: nothing by default, exactly what is named when it is, and a clear word
//! where it is missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace::checkpoints::EffectRef;
use millrace::config::{ConfigError, Layers};
use millrace::error::Classify;
use millrace::plugins::{EnvValue, PluginError, PluginSettings, WasmRuntime};
use millrace::processors::{Processor, ProcessorFactory, Trap, TrapKind};
use millrace::tables::{Cell, Cells};

use super::rig::{batch, component, context, load, options};

pub(super) fn settings(grants: &[&str]) -> PluginSettings {
    PluginSettings { grants: grants.iter().map(|grant| (*grant).to_owned()).collect(), ..Default::default() }
}

fn runtime() -> WasmRuntime {
    WasmRuntime::new(options()).expect("the runtime starts")
}

fn loaded(runtime: &WasmRuntime, guest: &str, settings: &PluginSettings) -> Arc<dyn ProcessorFactory> {
    load(runtime, &component(guest), settings).expect("the guest loads")
}

pub(super) fn refused(guest: &str, settings: &PluginSettings) -> PluginError {
    load(&runtime(), &component(guest), settings).expect_err("it is refused")
}

fn instance(factory: &dyn ProcessorFactory) -> Box<dyn Processor> {
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    instance
}

/// The rows that one event writes: key to texts of cells.
fn rows(
    instance: &mut dyn Processor,
    event: (&str, &str, &str),
) -> Result<BTreeMap<String, Vec<String>>, Trap> {
    let outcome = instance.handle(&batch(&[event], 0))?;
    let mut rows = BTreeMap::new();
    for effect in outcome.effects.iter() {
        let EffectRef::Put { key, cells, .. } = effect else { panic!("{effect:?}") };
        let text = |cell| match cell {
            Cell::Text(text) => String::from(text),
            Cell::Int(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        let cells: Vec<String> = Cells::new(cells).map(|cell| text(cell.expect("a sound cell"))).collect();
        rows.insert(key.to_owned(), cells);
    }
    Ok(rows)
}

/// The cells of the one row that an event writes.
pub(super) fn row(instance: &mut dyn Processor, event: (&str, &str, &str)) -> Vec<String> {
    let rows = rows(instance, event).expect("the guest behaves");
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.into_values().next().expect("there is one")
}

#[test]
fn a_plugin_that_wants_more_than_it_has_is_told_what_to_add_where() {
    for (guest, plugin, grant, beside) in [
        ("wants_clock", "wants-clock", "clock", ""),
        ("reads_env", "reads-env", "env", "the variables to plugins.reads-env.env"),
        ("reads_file", "reads-file", "read_dir", "the folder to plugins.reads-file.read_dir"),
    ] {
        let error = refused(guest, &PluginSettings::default());
        assert_eq!(error.code(), "grant_missing");
        let says = error.to_string();
        assert!(says.contains(&format!("plugin {plugin} lacks the grant `{grant}`")), "{says}");
        assert!(
            says.contains(&format!("add it to plugins.{plugin}.grants")) && says.contains(beside),
            "{says}"
        );
    }
}

#[test]
fn what_is_not_meant_by_the_settings_is_refused_by_its_key() {
    let hosts = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
    let variable = |name: &str| BTreeMap::from([(name.to_owned(), EnvValue("secret".into()))]);
    let cases = [
        (settings(&["env"]), "grants", "`env` is granted without `env`"),
        (settings(&["http"]), "grants", "`http` is granted without `http_hosts`"),
        (settings(&["read_dir"]), "grants", "`read_dir` is granted without `read_dir`"),
        (settings(&["channels"]), "grants", "`channels` is granted without `channels`"),
        (
            PluginSettings { channels: vec!["answers".into()], ..settings(&[]) },
            "channels",
            "`grants` does not name",
        ),
        (
            PluginSettings { channels: vec!["a/b".into()], ..settings(&["channels"]) },
            "channels",
            "`a/b` is no channel's name",
        ),
        (PluginSettings { env: variable("A"), ..settings(&[]) }, "env", "`grants` does not name"),
        (
            PluginSettings { http_hosts: hosts(&["a.org"]), ..settings(&[]) },
            "http_hosts",
            "`grants` does not name",
        ),
        (
            PluginSettings { read_dir: Some("x".into()), ..settings(&[]) },
            "read_dir",
            "`grants` does not name",
        ),
        (
            PluginSettings { env: variable("A=B"), ..settings(&["env"]) },
            "env",
            "cannot be an environment variable",
        ),
        (PluginSettings { http_hosts: hosts(&["*"]), ..settings(&["http"]) }, "http_hosts", "`*` is no host"),
        (
            PluginSettings { read_dir: Some("no/such/folder".into()), ..settings(&["read_dir"]) },
            "read_dir",
            "no/such/folder cannot be read",
        ),
        (
            PluginSettings { call_ms_max: Some(300_001), ..settings(&[]) },
            "call_ms_max",
            "300001 is over guest_call_ms_ceiling = 300000",
        ),
        (
            PluginSettings { memory_bytes_max: Some(3 << 30), ..settings(&[]) },
            "memory_bytes_max",
            "3221225472 is over guest_memory_bytes_ceiling = 2147483648",
        ),
    ];
    for (settings, key, says) in cases {
        let error = refused("crossing", &settings);
        assert_eq!(error.code(), "plugin_settings_invalid", "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("`plugins.crossing.{key}`")) && text.contains(says), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn a_guest_finds_the_variables_that_it_was_given_and_no_others() {
    assert!(std::env::vars().next().is_some(), "this process has variables that must not show");
    let value = |text: &str| EnvValue(text.into());
    let env = BTreeMap::from([("KEY".to_owned(), value("s3cret")), ("ZONE".to_owned(), value("ü"))]);
    let settings = PluginSettings { env, ..settings(&["env"]) };
    let factory = loaded(&runtime(), "reads_env", &settings);
    let found = rows(&mut *instance(&*factory), ("a", "x", "1")).expect("it behaves");
    let expected = [("KEY", "s3cret"), ("ZONE", "ü")];
    assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).into());
    assert!(!format!("{settings:?}{factory:?}").contains("s3cret"), "{settings:?}");
}

#[test]
fn a_folder_is_read_and_neither_written_nor_left() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let inside = dir.path().join("given");
    fs::create_dir(&inside).expect("ours");
    fs::write(inside.join("table.csv"), "a,b").expect("ours");
    fs::write(dir.path().join("secret"), "hidden").expect("ours");
    symlink(dir.path().join("secret"), inside.join("absolute")).expect("ours");
    symlink("../secret", inside.join("relative")).expect("ours");
    let given = PluginSettings { read_dir: Some(inside.clone()), ..settings(&["read_dir"]) };
    let runtime = runtime();
    let factory = loaded(&runtime, "reads_file", &given);
    let mut guest = instance(&*factory);
    assert_eq!(row(&mut *guest, ("/data/table.csv", "file.read", "1")), ["a,b", ""]);
    assert_eq!(row(&mut *guest, ("/data", "file.list", "1")), ["absolute relative table.csv", ""]);
    for event in [
        ("/data/absolute", "file.read", "1"),
        ("/data/relative", "file.read", "1"),
        ("/data/../secret", "file.read", "1"),
        ("/etc/passwd", "file.read", "1"),
        ("/", "file.list", "1"),
        ("/data/table.csv", "file.write", "1"),
        ("/data/new.csv", "file.write", "1"),
        ("/data/table.csv", "file.remove", "1"),
    ] {
        let cells = row(&mut *guest, event);
        assert!(cells[0].is_empty() && !cells[1].is_empty(), "{event:?}: {cells:?}");
    }
    assert_eq!(fs::read_to_string(inside.join("table.csv")).expect("it is there"), "a,b");
    assert!(!inside.join("new.csv").exists());

    fs::remove_dir_all(&inside).expect("ours");
    let Err(trap) = factory.instantiate(context()) else { panic!("it has no folder") };
    assert_eq!(trap.kind, TrapKind::Host, "it is not the guest's fault");
    assert!(trap.message.contains("cannot be read"), "{}", trap.message);
}

#[test]
fn a_guest_that_closes_nothing_ends_at_the_resources_limit_by_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("a"), "a").expect("ours");
    let given = PluginSettings { read_dir: Some(dir.path().to_owned()), ..settings(&["read_dir"]) };
    let factory = loaded(&runtime(), "reads_file", &given);
    let trap = rows(&mut *instance(&*factory), ("/data/a", "file.hoard", "1")).expect_err("it hoards");
    assert_eq!(trap.kind, TrapKind::Limit, "{trap}");
    assert!(trap.message.contains("guest_resources_max is 1024"), "{trap}");
}

/// What happens to whoever asks.
pub(super) struct Server {
    pub(super) authority: String,
    /// Requests that came through.
    pub(super) asked: Arc<AtomicUsize>,
    /// Connections.
    pub(super) met: Arc<AtomicUsize>,
}

/// Answers by path: `/hello`, `/moved` to it, `/flood` without end, `/silent` after the head, `/take` what is
/// sent, and nothing at all at `/never`.
pub(super) fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("an address").to_string();
    let (asked, met) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = Server { authority, asked: Arc::clone(&asked), met: Arc::clone(&met) };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            met.fetch_add(1, Ordering::SeqCst);
            let asked = Arc::clone(&asked);
            std::thread::spawn(move || answer(stream, &asked));
        }
    });
    server
}

pub(super) fn answer(mut stream: impl Read + Write, asked: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    // A guest that has enough closes its end; there is nothing to do about it here.
    let _ = match path {
        "/hello" => {
            let host =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("host: ").map(str::to_owned));
            let body = format!("hello from {}", host.unwrap_or_default());
            stream.write_all(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes(),
            )
        }
        "/moved" => stream.write_all(b"HTTP/1.1 302 Found\r\nlocation: /hello\r\ncontent-length: 0\r\n\r\n"),
        "/flood" => {
            let piece = [b'y'; 1 << 16];
            let begun = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            begun.and_then(|()| {
                loop {
                    stream.write_all(&piece)?;
                }
            })
        }
        "/take" => {
            let taken = std::io::copy(&mut stream, &mut std::io::sink());
            taken.map(drop)
        }
        _ => {
            let _ = if path == "/silent" { stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n") } else { Ok(()) };
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
    };
}

fn fetcher(hosts: &[&str], call_ms_max: u64) -> Box<dyn Processor> {
    fetcher_with(hosts, call_ms_max, settings(&["http"]))
}

pub(super) fn fetcher_with(hosts: &[&str], call_ms_max: u64, given: PluginSettings) -> Box<dyn Processor> {
    let given = PluginSettings {
        http_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        call_ms_max: Some(call_ms_max),
        ..given
    };
    instance(&*loaded(&runtime(), "fetches", &given))
}

#[test]
fn an_import_of_http_needs_the_grant_whatever_the_manifest_says() {
    let error = refused("fetches", &PluginSettings::default());
    assert_eq!(error.code(), "grant_missing");
    let says = error.to_string();
    assert!(says.contains("plugin fetches lacks the grant `http`, which its import `wasi:http/"), "{says}");
    assert!(
        says.contains("add it to plugins.fetches.grants, and the hosts to plugins.fetches.http_hosts"),
        "{says}"
    );
}

#[test]
fn a_host_of_the_list_answers_and_redirects_are_the_guests_affair() {
    let server = server();
    let mut guest = fetcher(&[&server.authority], 20_000);
    let hello = format!("{}/hello", server.authority);
    let says = format!("hello from {}", server.authority);
    assert_eq!(row(&mut *guest, (&hello, "http.get", "0")), ["200", &says.len().to_string(), &says, ""]);
    let moved = format!("{}/moved", server.authority);
    assert_eq!(row(&mut *guest, (&moved, "http.get", "0"))[0], "302");
    assert_eq!(server.asked.load(Ordering::SeqCst), 2, "nobody followed it");
}

#[test]
fn a_host_that_is_not_listed_is_denied_and_never_asked() {
    let server = server();
    let port = server.authority.rsplit(':').next().expect("a port").to_owned();
    // Neither another port, nor a name below a wildcard that points to this machine.
    let below = format!("*.0.0.1.nip:{port}");
    for hosts in [["example.com", "127.0.0.1"], ["localhost", &below], ["*.example.org", "10.0.0.1"]] {
        let mut guest = fetcher(&hosts, 20_000);
        for to in [
            server.authority.clone(),
            format!("user@{}", server.authority),
            format!("[::ffff:127.0.0.1]:{port}"),
        ] {
            let cells = row(&mut *guest, (&format!("{to}/hello"), "http.get", "0"));
            assert!(cells[0] == "0" && !cells[3].is_empty(), "{hosts:?} {to}: {cells:?}");
        }
        let cells = row(&mut *guest, (&format!("{}/hello", server.authority), "http.get", "0"));
        assert!(cells[3].contains("HttpRequestDenied"), "{cells:?}");
    }
    assert_eq!(server.met.load(Ordering::SeqCst), 0);
}

#[test]
fn an_answer_ends_at_its_bound_and_so_does_a_request() {
    let server = server();
    let mut guest = fetcher(&[&server.authority], 60_000);
    let cells = row(&mut *guest, (&format!("{}/flood", server.authority), "http.get", "0"));
    let bytes: u64 = cells[1].parse().expect("a number");
    assert!(bytes <= 4 << 20 && bytes > 3 << 20, "{cells:?}");
    assert!(cells[3].contains("HttpResponseBodySize") || cells[3].contains("body size"), "{cells:?}");
    let cells = row(&mut *guest, (&format!("{}/take", server.authority), "http.post", "5000000"));
    assert!(cells[3].contains("HttpRequestBodySize"), "{cells:?}");
}

#[test]
fn whoever_waits_for_another_host_ends_with_its_call() {
    let server = server();
    for (path, kind, number) in
        [("silent", "http.get", "0"), ("never", "http.get", "0"), ("never", "http.unsent", "1000000")]
    {
        let mut guest = fetcher(&[&server.authority], 300);
        let ended = rows(&mut *guest, (&format!("{}/{path}", server.authority), kind, number));
        // The request ends with the call; which of the two the guest sees first is a matter of moments.
        match ended {
            Err(trap) => {
                assert_eq!(trap.kind, TrapKind::Timeout, "{path}: {trap}");
                assert!(
                    trap.message.contains("guest_call_ms_max = 300; raise plugins.fetches.call_ms_max"),
                    "{trap}"
                );
            }
            Ok(rows) => assert!(rows.values().all(|cells| !cells[3].is_empty()), "{path}: {rows:?}"),
        }
    }
}

#[test]
fn an_instance_has_few_requests_under_way() {
    let server = server();
    let mut guest = fetcher(&[&server.authority], 60_000);
    for turn in 0..50 {
        let before = server.asked.load(Ordering::SeqCst);
        // Each of them is answered and not read, and so still under way.
        let cells = row(&mut *guest, (&format!("{}/silent", server.authority), "http.many", "20"));
        assert_eq!(cells[1], "12", "8 of 20 may be, in turn {turn}: {cells:?}");
        assert_eq!(server.asked.load(Ordering::SeqCst), before + 8);
        // They ended with the call's handles.
        let cells = row(&mut *guest, (&format!("{}/hello", server.authority), "http.get", "0"));
        assert_eq!(cells[0], "200", "turn {turn}: {cells:?}");
    }
}

#[test]
fn what_a_guest_never_lets_go_of_ends_with_its_call() {
    let server = server();
    let mut guest = fetcher(&[&server.authority], 60_000);
    for turn in 0..20 {
        let cells = row(&mut *guest, (&format!("{}/silent", server.authority), "http.kept", "8"));
        assert_eq!(cells[3], "", "turn {turn}");
        let cells = row(&mut *guest, (&format!("{}/hello", server.authority), "http.get", "0"));
        assert_eq!(cells[0], "200", "turn {turn}: {cells:?}");
    }
}

#[test]
fn what_a_guest_lets_go_of_makes_room_within_the_same_call() {
    let server = server();
    let mut guest = fetcher(&[&server.authority], 60_000);
    let silent = format!("{}/silent", server.authority);
    for (kind, turns) in [("http.turns", "200"), ("http.given-up", "50")] {
        let cells = row(&mut *guest, (&silent, kind, turns));
        assert_eq!(cells[1..], [turns, "", ""], "{kind}: {cells:?}");
    }
}

/// The error of a config file.
fn config_refused(text: &str) -> ConfigError {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("millrace.toml");
    fs::write(&file, text).expect("ours");
    Layers::new().file(&file).expect("a file").resolve().expect_err("it is refused")
}

#[test]
fn settings_that_cannot_be_given_are_refused_at_the_start() {
    for (text, key, says) in [
        (
            "[plugins.a]\ngrants = [\"disk\"]\n",
            "plugins.a.grants",
            "`disk` is not a grant; there are: clock, random, env",
        ),
        ("[plugins.a]\ngrants = [\"http\"]\n", "plugins.a.grants", "without `http_hosts`"),
        ("[plugins.a]\nhttp_hosts = [\"a.org\"]\n", "plugins.a.http_hosts", "the grant `http`"),
        (
            "[plugins.a]\ngrants = [\"http\"]\nhttp_hosts = [\"http://a.org\"]\n",
            "plugins.a.http_hosts",
            "write the name alone",
        ),
        (
            "[plugins.a]\nmemory_bytes_max = 3000000000\n",
            "plugins.a.memory_bytes_max",
            "3000000000 is over guest_memory_bytes_ceiling = 2147483648",
        ),
        (
            "[plugins.a]\ncall_ms_max = 300001\n",
            "plugins.a.call_ms_max",
            "300001 is over guest_call_ms_ceiling = 300000",
        ),
        ("[processors]\nguest_fuel_max = 0\n", "processors.guest_fuel_max", "it counts from 1"),
        ("[processors]\nguest_call_ms_max = 300001\n", "processors.guest_call_ms_max", "300001 is over"),
        (
            "[processors]\nguest_memory_bytes_max = 3000000000\n",
            "processors.guest_memory_bytes_max",
            "3000000000 is over",
        ),
        ("[processors]\ncompile_ms_max = 0\n", "processors.compile_ms_max", "it counts from 1"),
    ] {
        let ConfigError::Invalid { key: found, detail, .. } = config_refused(text) else { panic!("{text}") };
        assert_eq!(found, key, "{text}");
        assert!(detail.contains(says), "{text}: {detail}");
    }
}

#[test]
fn variables_keep_their_case_and_their_secret_in_every_layer() {
    let mut layers = Layers::new();
    layers.environment([
        ("MILLRACE_PLUGINS__BOARD__ENV__API_KEY".to_owned(), "s3cret".to_owned()),
        ("MILLRACE_PLUGINS__BOARD__GRANTS".to_owned(), "[env]".to_owned()),
    ]);
    layers.assignment("plugins.board.env.Zone=s3cret-too").expect("an assignment");
    let resolved = layers.resolve().expect("a configuration");
    let env = &resolved.config.plugins["board"].env;
    assert_eq!(
        env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())).collect::<Vec<_>>(),
        [("API_KEY", "s3cret"), ("Zone", "s3cret-too")]
    );
    let shown = format!("{:?}{:?}", resolved.settings, resolved.config);
    assert!(shown.contains("plugins.board.env.API_KEY") && !shown.contains("s3cret"), "{shown}");
}
