//! Guests written by hand, as WebAssembly text: they speak the world without the SDK, and so can do what it
//! would never let through.
//!
//! A [`Handwritten`] without further words behaves: it notes each event in a table of its own, keeps a byte
//! of state, and does nothing else. An attack replaces one of its pieces, mostly what happens on an event
//! whose type has six letters, such as `poison`.

/// A host function, or a few, that a guest may call. Each is a core function of the name in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Import {
    /// `config.get` (`$config`: address and length of a name, where the answer goes).
    Config,
    /// `log.write` (`$log`: level, address, length).
    Log,
    /// A clock's pollable (`$after`: nanoseconds), and waiting for one (`$block`).
    Wait,
    /// Waiting for several (`$poll`: address and number of handles, where the answer goes).
    Poll,
    /// `exit` (`$exit`: 0 or 1).
    Exit,
    /// Random bytes (`$random`: how many, where the answer goes).
    Random,
    /// Standard output (`$stdout`), and writing to it (`$print`: handle, address, length, where the answer goes).
    Print,
}

/// Where things lie in the first four pages of memory; the heap follows.
pub const OUTCOME: u32 = 0x800;
pub const SNAPSHOT: u32 = 0xc00;
pub const LOADED: u32 = 0xc40;
pub const FLUSHED: u32 = 0xc80;
pub const MANIFEST: u32 = 0x100;
const TABLE: u32 = 0x180;
const COLUMN: u32 = 0x1a0;
const COLUMN_NAME: u32 = 0x1c0;
const STATE_TYPE: u32 = 0x1d0;
const VERSION: u32 = 0x1e0;
const NAME: u32 = 0x200;
const TABLE_NAME: u32 = 0x280;
/// The effect records of a call, 56 bytes each, and the bytes that they point at. Room for 100 events.
pub const RECORDS: u32 = 0x4000;
pub const EFFECTS: u32 = 0x8000;
const HEAP: u32 = 0x1_0000;

/// A guest: its name, and its pieces of text.
#[derive(Clone, Debug)]
pub struct Handwritten {
    name: String,
    imports: Vec<Import>,
    pages: u32,
    functions: String,
    on_poison: String,
    before_return: String,
    describe: String,
    load: String,
    flush: String,
    snapshot: String,
    realloc: String,
    after_return: Option<String>,
    state: bool,
}

impl Handwritten {
    /// A guest that behaves. The name is that of the plugin; its table is called `t_NAME`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            imports: Vec::new(),
            pages: 4,
            functions: String::new(),
            on_poison: String::new(),
            before_return: String::new(),
            describe: String::new(),
            load: String::new(),
            flush: String::new(),
            snapshot: String::new(),
            realloc: String::new(),
            after_return: None,
            state: true,
        }
    }

    #[must_use]
    pub fn import(mut self, import: Import) -> Self {
        self.imports.push(import);
        self
    }

    /// The size of its memory at the start, in pages of 64 KiB.
    #[must_use]
    pub fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    /// More fields of the module: functions, tables, globals, a start function.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.functions.push_str(text);
        self
    }

    /// What runs on an event whose type has six letters, before it is noted like any other.
    #[must_use]
    pub fn on_poison(mut self, text: &str) -> Self {
        self.on_poison = text.into();
        self
    }

    /// What is done to the finished [`OUTCOME`] of a batch that had such an event in it; the local `$count`
    /// is how many events there were.
    #[must_use]
    pub fn before_return(mut self, text: &str) -> Self {
        self.before_return = text.into();
        self
    }

    /// What runs at the beginning of an export. `describe`, `flush` and `snapshot` then return the address of
    /// their answers, which may have been changed.
    #[must_use]
    pub fn in_describe(mut self, text: &str) -> Self {
        self.describe = text.into();
        self
    }

    #[must_use]
    pub fn in_load(mut self, text: &str) -> Self {
        self.load = text.into();
        self
    }

    #[must_use]
    pub fn in_flush(mut self, text: &str) -> Self {
        self.flush = text.into();
        self
    }

    #[must_use]
    pub fn in_snapshot(mut self, text: &str) -> Self {
        self.snapshot = text.into();
        self
    }

    /// What runs at the beginning of every allocation.
    #[must_use]
    pub fn in_realloc(mut self, text: &str) -> Self {
        self.realloc = text.into();
        self
    }

    /// What runs when the host has taken the answer of `handle`.
    #[must_use]
    pub fn after_return(mut self, text: &str) -> Self {
        self.after_return = Some(text.into());
        self
    }

    #[must_use]
    pub fn without_state(mut self) -> Self {
        self.state = false;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn table(&self) -> String {
        format!("t_{}", self.name.replace('-', "_"))
    }

    /// The component. Panics with the reason where the text is wrong, which is the test's fault.
    pub fn component(&self) -> Vec<u8> {
        wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The component's text: a core module that owns the memory, one that allocates in it, since the host
    /// wants both before it hands its functions over, and one that is the guest.
    pub fn text(&self) -> String {
        let has = |import| self.imports.contains(&import);
        let either = |import, text: &str| if has(import) { text.to_owned() } else { String::new() };
        let pollable = if has(Import::Wait) || has(Import::Poll) { POLLABLE } else { "" };
        let logs = either(Import::Log, r#"(import "host" "log" (func $log (param i32 i32 i32)))"#);
        let hosts = HOST_IMPORTS.iter().map(|(import, _, core, _)| either(*import, core)).collect::<String>();
        let instances = HOST_IMPORTS.iter().map(|(import, ty, _, _)| either(*import, ty)).collect::<String>();
        let lowered = HOST_IMPORTS
            .iter()
            .filter(|(import, ..)| *import != Import::Log)
            .map(|(import, _, _, lower)| either(*import, lower))
            .collect::<String>();
        let log_lowered = either(Import::Log, LOG_LOWERED);
        let names = [
            (Import::Config, r#"(export "config" (func $config-core))"#),
            (Import::Log, r#"(export "log" (func $log-core))"#),
            (Import::Wait, r#"(export "after" (func $after-core)) (export "block" (func $block-core))"#),
            (Import::Poll, r#"(export "poll" (func $poll-core))"#),
            (Import::Exit, r#"(export "exit" (func $exit-core))"#),
            (Import::Random, r#"(export "random" (func $random-core))"#),
            (Import::Print, r#"(export "stdout" (func $stdout-core)) (export "print" (func $print-core))"#),
        ];
        let host = names.iter().map(|(import, export)| either(*import, export)).collect::<String>();
        let log_host = either(Import::Log, names[1].1);
        let post = if self.after_return.is_some() { r#"(post-return (core func $c "post"))"# } else { "" };
        let (pages, realloc, guest) = (self.pages, &self.realloc, self.guest(&hosts));
        format!(
            r#"(component $C
  {pollable} {instances}
  (core module $A
    (memory (export "memory") {pages})
    (global (export "heap") (mut i32) (i32.const {HEAP}))
    (global (export "evil") (mut i32) (i32.const 0)))
  (core instance $a (instantiate $A))
  (alias core export $a "memory" (core memory $memory))
  {log_lowered}
  (core module $B
    {SHARED} {logs}
    (func (export "realloc") (param $old i32) (param $had i32) (param $align i32) (param $size i32) (result i32)
      {realloc}
      (local.set $old (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
      (global.set $heap (i32.add (local.get $old) (local.get $size)))
      (block $fits (loop $more
        (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
        (drop (memory.grow (i32.const 16)))
        (br $more)))
      (local.get $old)))
  (core instance $b (instantiate $B (with "a" (instance $a)) (with "host" (instance {log_host}))))
  (alias core export $b "realloc" (core func $realloc))
  {lowered}
  {guest}
  (core instance $c (instantiate $G (with "a" (instance $a)) (with "host" (instance {host}))))
  {TYPES}
  (func $describe (result $manifest) (canon lift (core func $c "describe") (memory $memory) (realloc $realloc)))
  (func $load (param "context" $context) (param "saved" (option $saved-state)) (result (result (error string)))
    (canon lift (core func $c "load") (memory $memory) (realloc $realloc)))
  (func $handle (param "arena" (list u8)) (param "events" $event-records) (result $outcome)
    (canon lift (core func $c "handle") (memory $memory) (realloc $realloc) {post}))
  (func $flush (param "reason" $flush-reason) (result (result $effects (error $failure)))
    (canon lift (core func $c "flush") (memory $memory) (realloc $realloc)))
  (func $snapshot (result (list u8)) (canon lift (core func $c "snapshot") (memory $memory) (realloc $realloc)))
  (instance $handler
    (export "describe" (func $describe)) (export "load" (func $load)) (export "handle" (func $handle))
    (export "flush" (func $flush)) (export "snapshot" (func $snapshot)))
  (export "millrace:processor/handler@0.1.0" (instance $handler)))"#
        )
    }

    fn guest(&self, hosts: &str) -> String {
        let Self { functions, describe, load, flush, snapshot, on_poison, before_return, .. } = self;
        let data = self.data();
        let post = self
            .after_return
            .as_ref()
            .map_or_else(String::new, |code| format!(r#"(func (export "post") (param i32) {code})"#));
        format!(
            r#"(core module $G
    {SHARED} {hosts}
    {functions}
    {data}
    (func $attack {on_poison})
    (func (export "describe") (result i32) {describe} (i32.const {MANIFEST}))
    (func (export "load") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      {load} (i32.const {LOADED}))
    (func (export "flush") (param i32) (result i32) {flush} (i32.const {FLUSHED}))
    (func (export "snapshot") (result i32) {snapshot} (i32.const {SNAPSHOT}))
    {post}
    {HANDLE}
      (if (local.get $poisoned) (then {before_return}))
      (global.set $heap (i32.const {HEAP}))
      (i32.const {OUTCOME})))"#
        )
    }

    /// The manifest and the answers that never change.
    fn data(&self) -> String {
        let name = self.name.as_str();
        let table = self.table();
        let state = if self.state { [1, STATE_TYPE, 3] } else { [0; 3] };
        let mut manifest = vec![NAME, length(name), VERSION, 5, NAME, 0];
        manifest.extend(state);
        // The ordering key, the subscription, the tables, the grants, when to flush, and no changes.
        manifest.extend([0, 0, 0, 0, 0, 0, 0, TABLE, 1, 0, 0, 0, 0, 0, 0]);
        let segments = [
            (MANIFEST, words(&manifest)),
            (TABLE, words(&[TABLE_NAME, length(&table), COLUMN, 1, 0, 1_000])),
            // A boolean, not nullable.
            (COLUMN, words(&[COLUMN_NAME, 4, 0])),
            (COLUMN_NAME, b"seen".to_vec()),
            (STATE_TYPE, b"s/1".to_vec()),
            (VERSION, b"1.0.0".to_vec()),
            (NAME, name.as_bytes().to_vec()),
            (TABLE_NAME, table.into_bytes()),
            (SNAPSHOT, words(&[STATE_TYPE, 1])),
        ];
        segments
            .iter()
            .map(|(at, bytes)| {
                let text: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
                format!("(data (i32.const {at}) \"{text}\")\n")
            })
            .collect()
    }
}

/// Notes each event as a row: `put`, the agg-id as the key, a cell that says true.
const HANDLE: &str = r#"
  (func (export "handle")
    (param $arena i32) (param $bytes i32) (param $words i32) (param $length i32) (result i32)
    (local $count i32) (local $n i32) (local $from i32) (local $key i32) (local $out i32) (local $record i32)
    (local $poisoned i32)
    (local.set $count (i32.div_u (local.get $length) (i32.const 72)))
    (local.set $out (i32.const 0x8000))
    (local.set $record (i32.const 0x4000))
    (block $done (loop $next
      (br_if $done (i32.eq (local.get $n) (local.get $count)))
      (local.set $from (i32.add (local.get $arena)
        (i32.add (i32.load offset=32 (local.get $words)) (i32.load offset=40 (local.get $words)))))
      (local.set $key (i32.sub (i32.load offset=44 (local.get $words)) (i32.load offset=40 (local.get $words))))
      (if (i32.eq (i32.const 6)
            (i32.sub (i32.load offset=48 (local.get $words)) (i32.load offset=44 (local.get $words))))
        (then (local.set $poisoned (i32.const 1)) (call $attack)))
      (memory.copy (local.get $out) (local.get $from) (local.get $key))
      (i32.store8 (i32.add (local.get $out) (local.get $key)) (i32.const 2))
      (memory.fill (local.get $record) (i32.const 0) (i32.const 56))
      (i32.store offset=8 (local.get $record) (local.get $n))
      (i32.store offset=32 (local.get $record) (i32.sub (local.get $out) (i32.const 0x8000)))
      (i32.store offset=36 (local.get $record) (local.get $key))
      (i32.store offset=52 (local.get $record) (i32.const 1))
      (local.set $out (i32.add (local.get $out) (i32.add (local.get $key) (i32.const 1))))
      (local.set $record (i32.add (local.get $record) (i32.const 56)))
      (local.set $words (i32.add (local.get $words) (i32.const 72)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br $next)))
    (memory.fill (i32.const 0x800) (i32.const 0) (i32.const 40))
    (i32.store (i32.const 0x800) (local.get $count))
    (i32.store (i32.const 0x804) (i32.const 0x8000))
    (i32.store (i32.const 0x808) (i32.sub (local.get $out) (i32.const 0x8000)))
    (i32.store (i32.const 0x80c) (i32.const 0x4000))
    (i32.store (i32.const 0x810) (i32.mul (local.get $count) (i32.const 56)))
"#;

/// What both modules share with the one that owns the memory.
const SHARED: &str = r#"(import "a" "memory" (memory 0))
    (import "a" "heap" (global $heap (mut i32)))
    (import "a" "evil" (global $evil (mut i32)))"#;

const POLLABLE: &str = r#"
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))
    (export "poll" (func (param "in" (list (borrow $p))) (result (list u32))))))
  (alias export $poll "pollable" (type $pollable))"#;

const LOG_LOWERED: &str = r#"(core func $log-core (canon lower (func $log "write") (memory $memory)))"#;

/// Each import: its type, what the guest calls it, and how it is handed over.
const HOST_IMPORTS: [(Import, &str, &str, &str); 7] = [
    (
        Import::Config,
        r#"(import "millrace:processor/config@0.1.0" (instance $config
            (export "get" (func (param "name" string) (result (option string))))))"#,
        r#"(import "host" "config" (func $config (param i32 i32 i32)))"#,
        r#"(core func $config-core (canon lower (func $config "get") (memory $memory) (realloc $realloc)))"#,
    ),
    (
        Import::Log,
        r#"(import "millrace:processor/log@0.1.0" (instance $log
            (type $l (enum "debug" "info" "warn" "error"))
            (export "level" (type $level (eq $l)))
            (export "write" (func (param "level" $level) (param "message" string)))))"#,
        r#"(import "host" "log" (func $log (param i32 i32 i32)))"#,
        LOG_LOWERED,
    ),
    (
        Import::Wait,
        r#"(import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
            (alias outer $C $pollable (type $outer))
            (export "pollable" (type $p (eq $outer)))
            (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))"#,
        r#"(import "host" "after" (func $after (param i64) (result i32)))
           (import "host" "block" (func $block (param i32)))"#,
        r#"(core func $after-core (canon lower (func $clock "subscribe-duration")))
           (core func $block-core (canon lower (func $poll "[method]pollable.block")))"#,
    ),
    (
        Import::Poll,
        "",
        r#"(import "host" "poll" (func $poll (param i32 i32 i32)))"#,
        r#"(core func $poll-core (canon lower (func $poll "poll") (memory $memory) (realloc $realloc)))"#,
    ),
    (
        Import::Exit,
        r#"(import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))"#,
        r#"(import "host" "exit" (func $exit (param i32)))"#,
        r#"(core func $exit-core (canon lower (func $exit "exit")))"#,
    ),
    (
        Import::Random,
        r#"(import "wasi:random/random@0.2.0" (instance $random
            (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))"#,
        r#"(import "host" "random" (func $random (param i64 i32)))"#,
        r#"(core func $random-core
            (canon lower (func $random "get-random-bytes") (memory $memory) (realloc $realloc)))"#,
    ),
    (
        Import::Print,
        r#"(import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
        (alias export $error "error" (type $io-error))
        (import "wasi:io/streams@0.2.0" (instance $streams
            (alias outer $C $io-error (type $outer))
            (export "error" (type $e (eq $outer)))
            (type $s (variant (case "last-operation-failed" (own $e)) (case "closed")))
            (export "stream-error" (type $stream-error (eq $s)))
            (export "output-stream" (type $o (sub resource)))
            (export "[method]output-stream.write" (func (param "self" (borrow $o))
                (param "contents" (list u8)) (result (result (error $stream-error)))))))
        (alias export $streams "output-stream" (type $output-stream))
        (import "wasi:cli/stdout@0.2.0" (instance $stdout
            (alias outer $C $output-stream (type $outer))
            (export "output-stream" (type $o (eq $outer)))
            (export "get-stdout" (func (result (own $o))))))"#,
        r#"(import "host" "stdout" (func $stdout (result i32)))
           (import "host" "print" (func $print (param i32 i32 i32 i32)))"#,
        r#"(core func $stdout-core (canon lower (func $stdout "get-stdout")))
           (core func $print-core (canon lower (func $streams "[method]output-stream.write") (memory $memory)))"#,
    ),
];

/// The types of `wit/v0.1/types.wit`. An exported function may only speak of exported types.
const TYPES: &str = r#"
  (type $effects' (record (field "arena" (list u8)) (field "records" (list u8))))
  (export $effects "effects" (type $effects'))
  (type $failure-kind' (enum "retry" "reject" "fatal"))
  (export $failure-kind "failure-kind" (type $failure-kind'))
  (type $failure' (record (field "index" u32) (field "kind" $failure-kind) (field "message" string)))
  (export $failure "failure" (type $failure'))
  (type $outcome' (record (field "handled" u32) (field "effects" $effects)
    (field "failure" (option $failure))))
  (export $outcome "outcome" (type $outcome'))
  (type $flush-reason' (enum "tick" "shutdown" "swap"))
  (export $flush-reason "flush-reason" (type $flush-reason'))
  (type $saved-state' (record (field "content-type" string) (field "state" (list u8))))
  (export $saved-state "saved-state" (type $saved-state'))
  (type $context' (record (field "tenant" string) (field "lane" u32) (field "lanes" u32)))
  (export $context "context" (type $context'))
  (type $ordering-key' (variant (case "aggregate") (case "payload-field" string) (case "single")))
  (export $ordering-key "ordering-key" (type $ordering-key'))
  (type $subscription' (record (field "types" (list string)) (field "aggregates" (list string))))
  (export $subscription "subscription" (type $subscription'))
  (type $column-type' (enum "bool" "int" "float" "text" "bytes" "json" "timestamp"))
  (export $column-type "column-type" (type $column-type'))
  (type $column' (record (field "name" string) (field "type" $column-type) (field "nullable" bool)
    (field "filterable" bool) (field "sortable" bool)))
  (export $column "column" (type $column'))
  (type $table' (record (field "name" string) (field "columns" (list $column)) (field "versioned" bool)
    (field "window-rows-max" u32)))
  (export $table "table" (type $table'))
  (type $change-field' (record (field "name" string) (field "member" string)))
  (export $change-field "change-field" (type $change-field'))
  (type $change-scope' (variant (case "id") (case "tenant") (case "field" $change-field)))
  (export $change-scope "change-scope" (type $change-scope'))
  (type $change-scopes' (record (field "aggregate" string) (field "scopes" (list $change-scope))))
  (export $change-scopes "change-scopes" (type $change-scopes'))
  (type $manifest' (record (field "name" string) (field "version" string) (field "summary" string)
    (field "state-content-type" (option string)) (field "ordering-key" $ordering-key)
    (field "subscription" $subscription) (field "tables" (list $table)) (field "grants" (list string))
    (field "flush-interval-ms" (option u32)) (field "changes" (list $change-scopes))))
  (export $manifest "manifest" (type $manifest'))
  (type $event-records (list u8))"#;

fn length(text: &str) -> u32 {
    u32::try_from(text.len()).expect("names are short")
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
