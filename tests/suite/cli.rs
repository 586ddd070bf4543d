//! Claims about the command line and the configuration.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{Command, CommandFactory as _, Parser as _};
use millrace::cli::{
    Align, Answers, AnswersEnd, Backoff, Chunk, ChunkLimits, Chunker, Cli, CliError, Connect, Exit, Output,
    Pace, PublishReport, SseParser, Window, aligned, printable, publish_reader,
};
use millrace::config::{Config, ConfigError, Layers, Right, Setting};
use millrace_tests::ports::Port;

// Configuration.

#[test]
fn later_layers_win_and_each_value_knows_its_source() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = write(
        dir.path(),
        "[store]\nretention_events = 10\ndedup_events_max = 20\n[serve]\ndrain_ms_max = 7\n",
    );
    let mut layers = Layers::new();
    layers.file(&file).expect("a good file");
    layers
        .environment(variables(&[("MILLRACE_STORE__RETENTION_EVENTS", "11"), ("MILLRACE_URL", "http://x")]));
    layers.flag("--bind", "serve.bind", "127.0.0.1:1");
    layers.assignment("serve.drain_ms_max=9").expect("an assignment");
    let resolved = layers.resolve().expect("a configuration");
    assert_eq!(resolved.config.store.retention_events, Some(11));
    assert_eq!(resolved.config.store.dedup_events_max, 20);
    assert_eq!(resolved.config.serve.bind, SocketAddr::from(([127, 0, 0, 1], 1)));
    assert_eq!(resolved.config.serve.drain_max(), Duration::from_millis(9));
    let source = |key: &str| setting(&resolved.settings, key).source.clone();
    assert_eq!(source("store.retention_events"), "env MILLRACE_STORE__RETENTION_EVENTS");
    assert_eq!(source("store.dedup_events_max"), format!("file {}", file.display()));
    assert_eq!(source("serve.bind"), "flag --bind");
    assert_eq!(source("serve.drain_ms_max"), "flag --set");
    assert_eq!(source("store.disk_free_bytes_min"), "default");
}

#[test]
fn defaults_are_those_of_the_limits() {
    let config = Layers::new().resolve().expect("defaults").config;
    assert_eq!(config, Config::default());
    assert_eq!(config.serve.bind, SocketAddr::from(([127, 0, 0, 1], 7070)));
    assert_eq!(config.processors.guest_call_max(), millrace::limits::GUEST_CALL_MAX);
    assert_eq!(config.store.retention_age(), None);
}

#[test]
fn unknown_key_is_named_with_its_place_and_the_nearest() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = write(dir.path(), "[store]\nretention_event = 10\n");
    let error = Layers::new().file(&file).expect("a file").resolve().expect_err("a typing error");
    let text = error.to_string();
    assert!(text.contains("store.retention_event`"), "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
    assert!(text.contains("`store.retention_events`"), "{text}");
    assert_eq!(CliError::from(error).exit(), Exit::Config);

    let mut layers = Layers::new();
    layers.environment(variables(&[("MILLRACE_SERV__BIND", "127.0.0.1:1")]));
    let text = layers.resolve().expect_err("no such section").to_string();
    assert!(text.contains("env MILLRACE_SERV__BIND") && text.contains("`serve`"), "{text}");
}

#[test]
fn unknown_key_of_a_plugin_or_a_token_is_refused() {
    for text in [
        "[plugins.board]\ngrant = [\"clock\"]\n",
        "[[auth.tokens]]\ntokn = \"a\"\ntenant = \"a\"\nrights = [\"read\"]\n",
    ] {
        assert!(
            matches!(resolve(text), Err(ConfigError::UnknownKey { .. } | ConfigError::Invalid { .. })),
            "{text}"
        );
    }
    let config = resolve("[plugins.board]\nlanes = 2\n[plugins.board.config]\nanything = \"goes\"\n")
        .expect("settings");
    assert_eq!(config.plugins["board"].config["anything"], "goes");
}

#[test]
fn values_that_cannot_be_are_refused_with_key_and_source() {
    for (text, key) in [
        ("[serve]\nbind = \"nowhere\"\n", "serve.bind"),
        ("[serve]\nbind = \"0.0.0.0:7070\"\n", "serve.bind"),
        ("[serve]\ndrain_ms_max = 0\n", "serve.drain_ms_max"),
        ("[store]\nretention_events = \"many\"\n", "store.retention_events"),
        ("[store]\nwal_bytes_soft_max = 500\nwal_bytes_hard_max = 400\n", "store.wal_bytes_soft_max"),
        ("[processors]\ncommit_events_max = 1\n", "processors.commit_events_max"),
        ("[plugins.a]\nlanes = 65\n", "plugins.a.lanes"),
        ("[telemetry]\nformat = \"xml\"\n", "telemetry.format"),
        ("[[auth.tokens]]\ntenant = \"a\"\nrights = [\"read\"]\n", "auth.tokens[0]"),
        ("[[auth.tokens]]\ntoken = \"x\"\ntenant = \"No\"\nrights = [\"read\"]\n", "auth.tokens[0]"),
        ("[[auth.tokens]]\ntoken = \"x\"\ntenant = \"a\"\nrights = []\n", "auth.tokens[0]"),
    ] {
        match resolve(text) {
            Err(ConfigError::Invalid { key: found, origin, .. }) => {
                assert_eq!(found, key, "{text}");
                assert!(origin.starts_with("file "), "{origin}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(resolve("[store\n"), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn tokens_open_other_addresses_and_are_masked() {
    let text = "[serve]\nbind = \"0.0.0.0:7070\"\n[[auth.tokens]]\ntoken = \"open sesame\"\ntenant = \"acme\"\nrights = [\"publish\", \"read\"]\n";
    let dir = tempfile::tempdir().expect("a folder");
    let file = write(dir.path(), text);
    let resolved = Layers::new().file(&file).expect("a file").resolve().expect("a configuration");
    let token = &resolved.config.auth.tokens[0];
    assert_eq!(token.rights, [Right::Publish, Right::Read]);
    let shown = &setting(&resolved.settings, "auth.tokens").value;
    assert!(shown.contains("acme") && !shown.contains("sesame"), "{shown}");
    assert!(!format!("{:?}", resolved.config).contains("sesame"));
    let hex: String = token.digest().expect("a digest").iter().map(|byte| format!("{byte:02x}")).collect();
    let hashed =
        format!("[[auth.tokens]]\ntoken_sha256 = \"{hex}\"\ntenant = \"acme\"\nrights = [\"admin\"]\n");
    let other = resolve(&hashed).expect("a configuration");
    assert_eq!(other.auth.tokens[0].digest(), token.digest());
}

// Help and errors.

#[test]
fn help_of_every_command_has_examples() {
    fn visit(command: &mut Command, path: &str, seen: &mut usize) {
        *seen += 1;
        let help = command.render_long_help().to_string();
        assert!(help.contains("Examples:"), "`{path} --help` has no examples");
        assert!(help.contains("millrace"), "`{path} --help` names the binary");
        for inner in command.get_subcommands_mut() {
            let path = format!("{path} {}", inner.get_name());
            visit(inner, &path, seen);
        }
    }
    let mut seen = 0;
    visit(&mut Cli::command(), "millrace", &mut seen);
    assert!(seen >= 17, "{seen} commands");
}

#[test]
fn help_lists_every_exit_code() {
    let help = Cli::command().render_long_help().to_string();
    for exit in
        [Exit::Fine, Exit::Failure, Exit::Usage, Exit::Unreachable, Exit::Refused, Exit::Denied, Exit::Config]
    {
        assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
    }
}

#[test]
fn errors_are_one_sentence_and_a_next_step() {
    let nobody = Port::hold();
    let url = format!("http://127.0.0.1:{}", nobody.number());
    for (arguments, exit) in [
        (vec!["status", "--url", &url], Exit::Unreachable),
        (vec!["query", "flights", "--url", &url], Exit::Unreachable),
        (vec!["plugin", "list", "--url", &url], Exit::Unreachable),
        (vec!["tail", "--url", &url], Exit::Unreachable),
        (vec!["tail", "--from", "tail", "--url", &url], Exit::Usage),
        (vec!["status", "--url", "https://x"], Exit::Usage),
        (vec!["publish", "no-such-file", "--url", &url], Exit::Failure),
        (vec!["plugin", "deploy", "no-such-file", "--url", &url], Exit::Failure),
        (vec!["config", "--set", "nothing"], Exit::Config),
        (vec!["config", "--set", "store.nothing=1"], Exit::Config),
        (
            vec![
                "publish",
                "--aggregate",
                "a",
                "--agg-id",
                "b",
                "--version",
                "1",
                "--type",
                "c",
                "--payload",
                "{",
                "--url",
                &url,
            ],
            Exit::Usage,
        ),
        (
            vec![
                "publish",
                "--aggregate",
                "a",
                "--agg-id",
                "b",
                "--version",
                "1",
                "--type",
                "c",
                "--url",
                &url,
            ],
            Exit::Unreachable,
        ),
    ] {
        let (ended, _) = command(&arguments);
        let error = ended.expect_err("nothing listens there");
        assert_eq!(error.exit(), exit, "{arguments:?}: {error}");
        assert!(
            !error.sentence().contains('\n') && !error.sentence().ends_with('.'),
            "{arguments:?}: {error}"
        );
        assert!(!error.next_step().is_empty(), "{arguments:?}: {error}");
    }
}

#[test]
fn config_prints_values_with_their_sources() {
    let (ended, text) = command(&["config", "--set", "store.retention_events=5", "--bind", "127.0.0.1:9"]);
    ended.expect("a configuration");
    let line = text.lines().find(|line| line.starts_with("store.retention_events")).expect("the setting");
    assert!(line.contains('5') && line.ends_with("flag --set"), "{line}");
    let (ended, text) = command(&["config", "--json", "--set", "store.retention_events=5"]);
    ended.expect("a configuration");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let settings = json["settings"].as_array().expect("a list");
    assert!(settings.iter().any(|s| s["key"] == "store.retention_events" && s["source"] == "flag --set"));
}

#[test]
fn text_from_others_cannot_steer_a_terminal() {
    assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
    assert_eq!(printable("größe ✈"), "größe ✈");
}

#[test]
fn tables_are_aligned_by_characters() {
    let rows = [vec!["ä".to_owned(), "1".into()], vec!["bcd".into(), "100".into()]];
    assert_eq!(
        aligned(&[("K", Align::Left), ("N", Align::Right)], &rows),
        ["K      N", "ä      1", "bcd  100"]
    );
}

// Publishing: the pure parts.

#[test]
fn pace_is_even_and_does_not_burst_after_a_pause() {
    let mut pace = Pace::new(100.0);
    let second = Duration::from_secs(1);
    assert_eq!(pace.wait(Duration::ZERO, 10), Duration::ZERO);
    assert_eq!(pace.wait(Duration::ZERO, 10), second / 10);
    assert_eq!(pace.wait(second / 10, 10), second / 10);
    // Held up for a minute: a quarter of a second may be caught up, not the minute.
    let now = Duration::from_secs(60);
    let mut sent = 0;
    while pace.wait(now, 1).is_zero() {
        sent += 1;
    }
    assert!((20..=30).contains(&sent), "{sent} events at once");
}

#[test]
fn backoff_doubles_to_a_bound_with_jitter() {
    let mut backoff = Backoff::default();
    let lowest: Vec<u128> = (0..8).map(|_| backoff.next(0).as_millis()).collect();
    assert_eq!(lowest, [50, 100, 200, 400, 800, 1_600, 2_500, 2_500]);
    backoff.reset();
    assert!(backoff.next(999) < Duration::from_millis(100));
}

#[test]
fn chunks_hold_whole_lines_without_blank_ones() {
    let input = "a\n\n b \r\n\t\nc";
    let chunks = chunk_all(input, ChunkLimits { bytes_min: 1, events_max: u64::MAX });
    let text: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
    assert_eq!(text, b"a\n b \r\nc\n");
    assert_eq!(chunks.iter().map(|chunk| chunk.events).sum::<u64>(), 3);
}

#[test]
fn chunks_of_a_rate_are_small_and_those_of_a_file_large() {
    let input: String = (0..100_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let whole = chunk_all(&input, ChunkLimits::for_rate(None, true));
    assert!(whole.len() < 20, "{}", whole.len());
    let paced = chunk_all(&input, ChunkLimits::for_rate(Some(5_000.0), true));
    assert!(paced.iter().all(|chunk| chunk.events <= 100));
    for chunks in [whole, paced] {
        let text: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
        assert!(text == input.as_bytes());
        assert_eq!(chunks.iter().map(|chunk| chunk.events).sum::<u64>(), 100_000);
    }
}

#[test]
fn window_goes_on_with_the_first_event_without_an_answer() {
    let mut window = Window::default();
    for text in ["a\nb\n", "c\nd\ne\n", "f\n"] {
        window.push(chunk(text));
    }
    window.mark_sent();
    window.mark_sent();
    window.answer(3).expect("three were sent");
    assert!(window.answer(3).is_err(), "six were not");
    let mut window = Window::default();
    for text in ["a\nb\n", "c\nd\ne\n", "f\n"] {
        window.push(chunk(text));
        window.mark_sent();
    }
    window.answer(3).expect("three were sent");
    window.restart();
    let mut again = Vec::new();
    while let Some(chunk) = window.next_unsent() {
        again.extend_from_slice(&chunk.bytes);
        window.mark_sent();
    }
    assert_eq!(again, b"d\ne\nf\n");
    window.answer(3).expect("three were left");
    assert!(window.is_empty());
}

#[test]
fn answers_are_counted_however_they_are_cut() {
    let text = concat!(
        "{\"position\":\"e.1\",\"id\":\"a\",\"repeated\":false}\n",
        "{\"error\":{\"status\":400,\"code\":\"invalid\",\"detail\":\"`version` is 0\"}}\n",
        "{\"position\":\"e.2\",\"id\":\"b\",\"repeated\":true}\n",
    );
    let window = |events: usize| {
        let mut window = Window::default();
        window.push(chunk(&"x\n".repeat(events)));
        window.mark_sent();
        window
    };
    for size in 1..text.len() {
        let (mut answers, mut window) = (Answers::default(), window(3));
        text.as_bytes().chunks(size).for_each(|part| answers.feed(part, &mut window).expect("answers"));
        assert_eq!((answers.events, answers.repeated, answers.refused), (3, 1, 1), "cut at {size}");
        assert_eq!(answers.position().as_deref(), Some("e.2"));
        assert_eq!(answers.refusals, ["event 2: `version` is 0 (invalid)"]);
        assert!(window.is_empty());
    }
    let taken = "{\"position\":\"e.1\",\"id\":\"a\",\"repeated\":false}\n";
    for (error, end) in [
        (
            "{\"status\":503,\"code\":\"disk_low\"}",
            AnswersEnd::Again("the host answered 503 (disk_low)".into()),
        ),
        (
            "{\"status\":413,\"code\":\"upload_bytes_max\",\"title\":\"long\"}",
            AnswersEnd::NextUpload("long (upload_bytes_max)".into()),
        ),
    ] {
        let mut answers = Answers::default();
        let text = format!("{taken}{{\"error\":{error}}}\n");
        assert_eq!(answers.feed(text.as_bytes(), &mut window(2)), Err(end));
        assert_eq!(
            (answers.events, answers.refused),
            (1, 0),
            "an event that may be taken later has no answer"
        );
    }
    let unasked = Answers::default().feed(taken.repeat(2).as_bytes(), &mut window(1));
    assert!(matches!(unasked, Err(AnswersEnd::Unexpected(_))), "{unasked:?}");
}

#[test]
fn innocent_events_go_again_in_ever_smaller_uploads() {
    let lines: String = (1..=1_000).map(|n| format!("{n}\n")).collect();
    let mut window = Window::default();
    window.push(chunk(&lines));
    let mut sizes = Vec::new();
    // A host that refuses every batch for its first event.
    let mut refused = Vec::new();
    while !window.is_empty() {
        window.restart();
        let events = window.next_unsent().expect("something is left").events;
        window.mark_sent();
        sizes.push(events);
        refused.push(window.next_answered().expect("it was sent"));
        window.answer(1).expect("it was sent");
        for _ in 1..events {
            assert!(window.answer_innocent().expect("it was sent"));
        }
    }
    refused.sort_unstable();
    assert_eq!(refused, (1..=1_000).collect::<Vec<_>>(), "each is refused once, under its own number");
    assert_eq!(sizes[..4], [1_000, 999, 500, 250]);
    let mut alone = Window::default();
    alone.push(chunk("a\n"));
    for _ in 0..20 {
        alone.restart();
        alone.mark_sent();
        if !alone.answer_innocent().expect("it was sent") {
            return;
        }
    }
    panic!("an event that is refused alone is not sent for ever");
}

#[test]
fn event_stream_is_read_however_it_is_cut() {
    let text = ": ping\n\nid: e.1\nevent: event\ndata: {\"a\":\ndata: 1}\n\nretry: 5\ndata:x\r\n\r\n";
    for size in 1..text.len() {
        let mut parser = SseParser::default();
        let frames: Vec<_> =
            text.as_bytes().chunks(size).flat_map(|part| parser.feed(part).expect("frames")).collect();
        assert_eq!(frames.len(), 2, "cut at {size}");
        assert_eq!((frames[0].id.as_deref(), frames[0].data.as_str()), (Some("e.1"), "{\"a\":\n1}"));
        assert_eq!(frames[1].data, "x");
    }
}

// Publishing, against a server that breaks off.

#[test]
fn publish_resumes_with_the_first_unanswered_event() {
    let server = BreakingServer::start(vec![Some(7), Some(0), Some(1_500), None]);
    let report = publish(&server, 5_000, Some(Duration::from_secs(30))).expect("published");
    assert_eq!((report.events, report.refused, report.retries), (5_000, 0, 3));
    assert_eq!(report.position.as_deref(), Some("e.5000"));
    let taken = server.taken();
    assert_eq!(taken, (0..5_000).map(|n| n.to_string()).collect::<Vec<_>>(), "each event once, in order");
}

#[test]
fn publish_without_retry_says_how_far_it_came() {
    let server = BreakingServer::start(vec![Some(7)]);
    let error = publish(&server, 100, None).expect_err("the server broke off");
    assert_eq!(error.exit(), Exit::Unreachable);
    assert!(error.sentence().contains("7 events"), "{error}");
    assert!(error.next_step().contains("--retry"), "{error}");
}

#[test]
fn publish_gives_up_when_nothing_answers_any_more() {
    let server = BreakingServer::start(vec![Some(7)]);
    let error = publish(&server, 100, Some(Duration::from_millis(300))).expect_err("the server is gone");
    assert_eq!(error.exit(), Exit::Unreachable);
    assert!(error.next_step().contains("--give-up-after"), "{error}");
}

#[test]
fn empty_input_and_slow_input_are_published_too() {
    let server = BreakingServer::start(vec![None, None]);
    assert_eq!(publish(&server, 0, None).expect("nothing to do").events, 0);
    assert_eq!(publish(&server, 3, None).expect("published").events, 3);
}

/// A host's upload, as far as a publisher sees it: each connection answers so many events and breaks off.
struct BreakingServer {
    address: SocketAddr,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    order: Vec<String>,
    known: BTreeSet<String>,
}

impl BreakingServer {
    fn start(connections: Vec<Option<usize>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let taken: Arc<Mutex<Taken>> = Arc::default();
        let shared = Arc::clone(&taken);
        std::thread::spawn(move || {
            for answers in connections {
                let (stream, _) = listener.accept().expect("a connection");
                // A connection that ends early is what this server is for.
                let _ = serve(stream, answers, &shared);
            }
        });
        Self { address, taken }
    }

    fn taken(&self) -> Vec<String> {
        self.taken.lock().expect("not poisoned").order.clone()
    }
}

fn serve(stream: TcpStream, answers: Option<usize>, taken: &Mutex<Taken>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    writer.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    let (mut rest, mut left) = (Vec::new(), answers.unwrap_or(usize::MAX));
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let mut data = vec![0; size + 2];
        reader.read_exact(&mut data)?;
        if size == 0 {
            return writer.write_all(b"0\r\n\r\n");
        }
        rest.extend_from_slice(&data[..size]);
        let mut answer = String::new();
        while let Some(end) = rest.iter().position(|b| *b == b'\n').filter(|_| left > 0) {
            let id = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest.drain(..=end);
            left -= 1;
            let mut taken = taken.lock().expect("not poisoned");
            let repeated = !taken.known.insert(id.clone());
            if !repeated {
                taken.order.push(id.clone());
            }
            answer.push_str(&format!(
                "{{\"position\":\"e.{}\",\"id\":\"{id}\",\"repeated\":{repeated}}}\n",
                taken.order.len()
            ));
        }
        if !answer.is_empty() {
            writer.write_all(format!("{:x}\r\n{answer}\r\n", answer.len()).as_bytes())?;
        }
        if left == 0 {
            return Ok(());
        }
    }
}

fn publish(
    server: &BreakingServer,
    events: usize,
    give_up_after: Option<Duration>,
) -> Result<PublishReport, CliError> {
    let input: String = (0..events).map(|n| format!("{n}\n")).collect();
    let connect = Connect { url: format!("http://{}", server.address), token: None };
    let limits = ChunkLimits { bytes_min: 1, events_max: 400 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(publish_reader(&connect, io::Cursor::new(input), limits, None, give_up_after))
}

// Helpers.

fn command(arguments: &[&str]) -> (Result<(), CliError>, String) {
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let written = Written::default();
    let cli = Cli::try_parse_from(["millrace"].iter().chain(arguments)).expect("a command line");
    let ended = millrace::cli::run(cli, &mut Output::new(written.clone()));
    let bytes = written.0.lock().expect("not poisoned").clone();
    (ended, String::from_utf8(bytes).expect("UTF-8"))
}

fn resolve(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a folder");
    let file = write(dir.path(), text);
    let mut layers = Layers::new();
    layers.file(&file)?;
    Ok(layers.resolve()?.config)
}

fn write(dir: &Path, text: &str) -> std::path::PathBuf {
    let path = dir.join("millrace.toml");
    std::fs::write(&path, text).expect("a file");
    path
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn setting<'a>(settings: &'a [Setting], key: &str) -> &'a Setting {
    settings.iter().find(|setting| setting.key == key).expect("the setting is listed")
}

fn chunk(text: &str) -> Chunk {
    Chunk { bytes: text.to_owned().into(), events: text.lines().count() as u64, input_bytes: 0 }
}

fn chunk_all(input: &str, limits: ChunkLimits) -> Vec<Chunk> {
    let mut chunker = Chunker::new(input.as_bytes(), limits, Arc::default());
    std::iter::from_fn(|| chunker.next_chunk().expect("readable")).collect()
}
