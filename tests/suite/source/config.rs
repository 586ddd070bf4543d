//! Settings of a source: each wrong one is told by its key.

use std::time::Duration;

use millrace::config::{Config, GrpcSourceConfig, Layers, SourceCheckpoints, Span};
use millrace::error::Classify as _;
use millrace::gateway::PROBLEMS;
use millrace::processors::source::{CursorPolicy, Scope, SourceError, SourceFault};

/// What a file says, read.
fn read(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("millrace.toml");
    std::fs::write(&file, text).unwrap();
    let mut layers = Layers::new();
    layers.file(&file).map_err(|error| error.to_string())?;
    layers.resolve().map(|resolved| resolved.config).map_err(|error| error.to_string())
}

/// The least that a source needs, and a line.
fn with(line: &str) -> Result<Config, String> {
    read(&format!("[source.grpc]\nendpoint = \"http://127.0.0.1:1\"\nclient_id = \"me\"\n{line}\n"))
}

#[test]
fn the_eleven_settings_have_the_names_and_defaults_of_the_other_runtimes() {
    let usual = GrpcSourceConfig {
        endpoint: "http://127.0.0.1:1".into(),
        client_id: "me".into(),
        kinds: Vec::new(),
        entry_channels: Vec::new(),
        entry_content_types: Vec::new(),
        entry_roles: Vec::new(),
        scope: Scope::Admin,
        after_cursor: String::new(),
        justification: String::new(),
        checkpoint_interval: Span(Duration::from_secs(5)),
        reconnect_min: Span(Duration::from_secs(1)),
        reconnect_max: Span(Duration::from_secs(30)),
        ..GrpcSourceConfig::default()
    };
    assert_eq!(with("").unwrap().source.grpc.unwrap(), usual);
    let text = r#"
        [source.grpc]
        endpoint = "http://127.0.0.1:1"
        client_id = "another"
        kinds = ["entry", "conversation"]
        entry_channels = ["history", "context"]
        entry_content_types = ["history", "history/lc4j"]
        entry_roles = ["USER"]
        scope = "user"
        after_cursor = "start"
        justification = "audit"
        checkpoint_interval = "250ms"
        reconnect_min = "2s"
        reconnect_max = "1m"
    "#;
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let said = GrpcSourceConfig {
        client_id: "another".into(),
        kinds: texts(&["entry", "conversation"]),
        entry_channels: texts(&["history", "context"]),
        entry_content_types: texts(&["history", "history/lc4j"]),
        entry_roles: texts(&["USER"]),
        scope: Scope::User,
        after_cursor: "start".into(),
        justification: "audit".into(),
        checkpoint_interval: Span(Duration::from_millis(250)),
        reconnect_min: Span(Duration::from_secs(2)),
        reconnect_max: Span(Duration::from_secs(60)),
        ..usual
    };
    assert_eq!(read(text).unwrap().source.grpc.unwrap(), said);
}

/// Those that the other runtimes do not have.
#[test]
fn what_else_a_source_does_by_itself() {
    let grpc = with("").unwrap().source.grpc.unwrap();
    assert_eq!((grpc.on_cursor_lost, grpc.checkpoints), (CursorPolicy::Fail, SourceCheckpoints::Store));
    assert_eq!((grpc.tenant.as_str(), grpc.overlap_events), ("default", 64));
    assert_eq!(
        (grpc.idle_max, grpc.recheck),
        (Span(Duration::from_secs(600)), Span(Duration::from_secs(300)))
    );
}

#[test]
fn r06_bad_scope_is_refused_before_start() {
    let error = with("scope = \"everything\"").unwrap_err();
    assert!(error.contains("source.grpc.scope") && error.contains("everything"), "{error}");
    assert_eq!("nobody".parse::<Scope>().unwrap_err(), "`nobody` is no scope; it is `user` or `admin`");
    for (said, meant) in [("", Scope::Admin), ("admin", Scope::Admin), ("user", Scope::User)] {
        let config = with(&format!("scope = \"{said}\"")).unwrap();
        assert_eq!(config.source.grpc.unwrap().scope, meant, "`{said}`");
    }
}

#[test]
fn wrong_settings_are_told_by_their_keys() {
    for (line, key, why) in [
        ("endpont = \"x\"", "source.grpc.endpont", "source.grpc.endpoint"),
        ("checkpoint_interval = 5", "source.grpc.checkpoint_interval", "5s"),
        ("checkpoint_interval = \"5\"", "source.grpc.checkpoint_interval", "10m"),
        ("reconnect_min = \"2m\"", "source.grpc.reconnect_min", "reconnect_max = 30s"),
        ("scope = \"nobody\"", "source.grpc.scope", "it is `user` or `admin`"),
        ("tenant = \"No Name\"", "source.grpc.tenant", "a-z"),
        ("api_key = \"a\"\napi_key_file = \"b\"", "source.grpc.api_key_file", "one of the two"),
        (
            "bearer_token = \"a\"\nbearer_token_file = \"b\"",
            "source.grpc.bearer_token_file",
            "one of the two",
        ),
        ("ca_file = \"a\"", "source.grpc.ca_file", "https://"),
        ("server_name = \"a\"", "source.grpc.server_name", "https://"),
        ("client_cert_file = \"a\"", "source.grpc.client_cert_file", "client_key_file"),
        ("on_cursor_lost = \"guess\"", "source.grpc.on_cursor_lost", "guess"),
        ("on_cursor_lost = \"rebuild\"", "source.grpc.rebuilds", "names of the plugins"),
        ("rebuilds = [\"a\"]", "source.grpc.rebuilds", "rebuild"),
        ("checkpoints = \"nowhere\"", "source.grpc.checkpoints", "nowhere"),
        ("overlap_events = 5000", "source.grpc.overlap_events", "source_ring_cursors"),
        ("idle_max = \"19s\"", "source.grpc.idle_max", "source_idle_least = 20s"),
        ("recheck = \"4999ms\"", "source.grpc.recheck", "source_recheck_least = 5s"),
    ] {
        let error = with(line).unwrap_err();
        assert!(error.contains(key) && error.contains(why), "{line}: {error}");
    }
    for line in ["idle_max = \"0s\"", "idle_max = \"20s\"", "recheck = \"0s\"", "recheck = \"5s\""] {
        assert!(with(line).is_ok(), "{line}");
    }
}

#[test]
fn what_is_missing_is_told_by_its_key() {
    let long =
        format!("[source.grpc]\nendpoint = \"http://127.0.0.1:1\"\nclient_id = \"{}\"", "x".repeat(257));
    for (text, key) in [
        ("[source.grpc]\nclient_id = \"me\"", "source.grpc.endpoint"),
        ("[source.grpc]\nclient_id = \"me\"\nendpoint = \"127.0.0.1:1\"", "source.grpc.endpoint"),
        ("[source.grpc]\nclient_id = \"me\"\nendpoint = \"http://\"", "source.grpc.endpoint"),
        ("[source.grpc]\nendpoint = \"http://127.0.0.1:1\"\nclient_id = \" \"", "source.grpc.client_id"),
        ("[source.grpc]\nendpoint = \"http://127.0.0.1:1\"", "source.grpc.client_id"),
        ("[source.grpc]\nendpoint = \"http://a b\"\nclient_id = \"me\"", "source.grpc.endpoint"),
        (
            "[source.grpc]\nendpoint = \"http://127.0.0.1:1\"\nclient_id = \"m\u{fc}\"",
            "source.grpc.client_id",
        ),
        (long.as_str(), "client_name_bytes_max = 256"),
        ("[source.grcp]\nclient_id = \"me\"", "source.grcp"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
}

/// Whoever takes the source over would otherwise begin where it must not.
#[test]
fn a_shared_log_needs_checkpoints_that_every_host_can_read() {
    let shared = |line: &str| {
        let source = "[source.grpc]\nendpoint = \"http://127.0.0.1:1\"\nclient_id = \"me\"\n";
        read(&format!("[serve]\nlog = \"redis://127.0.0.1:1\"\n{source}{line}\n"))
    };
    for line in ["", "checkpoints = \"store\""] {
        let error = shared(line).unwrap_err();
        assert!(error.contains("source.grpc.checkpoints") && error.contains("remote"), "{line}: {error}");
    }
    let grpc = shared("checkpoints = \"remote\"").unwrap().source.grpc.unwrap();
    assert_eq!(grpc.checkpoints, SourceCheckpoints::Remote);
    assert_eq!(with("").unwrap().source.grpc.unwrap().checkpoints, SourceCheckpoints::Store);
}

#[test]
fn secrets_of_a_source_are_masked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("millrace.toml");
    let text = "[source.grpc]\nendpoint = \"https://h:1\"\nclient_id = \"me\"\napi_key = \"hush1\"\nbearer_token = \"hush2\"\n";
    std::fs::write(&file, text).unwrap();
    let resolved = Layers::new().file(&file).unwrap().resolve().unwrap();
    let shown: String = resolved.settings.iter().map(|setting| format!("{setting:?}")).collect();
    assert!(shown.contains("source.grpc.api_key") && !shown.contains("hush"), "{shown}");
    assert!(!format!("{:?}", resolved.config).contains("hush"));
}

/// What `/v1/sources` names as the reason is to be found at `/docs`, with what to do.
#[test]
fn every_code_of_a_source_has_a_problem() {
    use SourceFault::{
        ContentType, CursorLost, Denied, Exhausted, ForeignCheckpoint, Load, MessageTooLarge, Processor,
        Refused, Store, TakenOver, TooLarge, Unreachable, Unreadable,
    };
    let faults = [
        Unreachable,
        Exhausted,
        Denied,
        Refused,
        ForeignCheckpoint,
        TakenOver,
        ContentType,
        Load,
        CursorLost,
        TooLarge,
        MessageTooLarge,
        Unreadable,
        Processor,
        Store,
    ];
    for error in faults.map(|fault| SourceError::stop(fault, "of this test")) {
        let problem = PROBLEMS.iter().find(|problem| problem.code == error.code());
        let problem = problem.unwrap_or_else(|| panic!("`{}` has no problem", error.code()));
        assert_eq!(problem.blame, error.blame(), "{}", error.code());
    }
}
