//! Guests written by hand, as WebAssembly text: they speak the world without the SDK, and so can do what it
//! would never let through.
//!
//! A [`Handwritten`] without further words behaves: it notes each event in a table of its own, keeps a byte
//! of state, and does nothing else. An attack replaces one of its pieces, mostly what happens on an event
//! whose type has six letters, such as `poison`.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interface that a processor exports, as the names of its functions begin.
const HANDLER: &str = "millrace:processor/handler@0.1.0";

/// What a core module may import besides the world's own functions, cut down to what the guests here use.
const WASI: &str = r"
package millrace-tests:handwritten;

world handwritten {
    include millrace:processor/processor@0.1.0;
    import wasi:io/poll@0.2.0;
    import wasi:clocks/monotonic-clock@0.2.0;
    import wasi:cli/exit@0.2.0;
    import wasi:cli/stdout@0.2.0;
    import wasi:random/random@0.2.0;
}

package wasi:io@0.2.0 {
    interface error { resource error; }
    interface poll {
        resource pollable { ready: func() -> bool; block: func(); }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
    }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource output-stream {
            write: func(contents: list<u8>) -> result<_, stream-error>;
        }
    }
}

package wasi:clocks@0.2.0 {
    interface monotonic-clock {
        use wasi:io/poll@0.2.0.{pollable};
        subscribe-duration: func(when: u64) -> pollable;
    }
}

package wasi:cli@0.2.0 {
    interface exit { exit: func(status: result); }
    interface stdout {
        use wasi:io/streams@0.2.0.{output-stream};
        get-stdout: func() -> output-stream;
    }
}

package wasi:random@0.2.0 {
    interface random { get-random-bytes: func(len: u64) -> list<u8>; }
}
";

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
/// The effect records of a call, 64 bytes each, and the bytes that they point at. Room for 100 events.
pub const RECORDS: u32 = 0x4000;
pub const EFFECTS: u32 = 0x8000;
const HEAP: u32 = 0x1_0000;

/// A guest: its name, and its pieces of text.
#[derive(Clone, Debug)]
pub struct Handwritten {
    name: String,
    imports: String,
    memory: String,
    functions: String,
    on_poison: String,
    before_return: String,
    describe: String,
    load: String,
    flush: String,
    snapshot: String,
    realloc: String,
    state: bool,
}

impl Handwritten {
    /// A guest that behaves. The name is that of the plugin; its table is called `t_NAME`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            imports: String::new(),
            memory: "(memory (export \"memory\") 4)".into(),
            functions: String::new(),
            on_poison: String::new(),
            before_return: String::new(),
            describe: String::new(),
            load: String::new(),
            flush: String::new(),
            snapshot: String::new(),
            realloc: String::new(),
            state: true,
        }
    }

    /// Core imports, such as `(import "…" "…" (func $log (param i32 i32 i32)))`.
    #[must_use]
    pub fn imports(mut self, text: &str) -> Self {
        self.imports.push_str(text);
        self
    }

    #[must_use]
    pub fn memory(mut self, text: &str) -> Self {
        self.memory = text.into();
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
        let text = self.text();
        let mut module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut resolve = Resolve::default();
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        resolve.push_dir(wit).expect("the world can be read");
        let package = resolve.push_str("handwritten.wit", WASI).expect("the imports are sound");
        let world = resolve.select_world(&[package], Some("handwritten")).expect("there is one");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
            .expect("the world can be embedded");
        ComponentEncoder::default()
            .validate(true)
            .module(&module)
            .and_then(|encoder| encoder.encode())
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    fn text(&self) -> String {
        let Self { imports, memory, functions, describe, load, flush, snapshot, realloc, .. } = self;
        let (on_poison, before_return) = (&self.on_poison, &self.before_return);
        let data = self.data();
        format!(
            r#"(module
  {imports}
  {memory}
  (global $heap (mut i32) (i32.const {HEAP}))
  (global $evil (mut i32) (i32.const 0))
  {functions}
  {data}
  (func $attack {on_poison})
  (func (export "{HANDLER}#describe") (result i32) {describe} (i32.const {MANIFEST}))
  (func (export "{HANDLER}#load") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    {load} (i32.const {LOADED}))
  (func (export "{HANDLER}#flush") (param i32) (result i32) {flush} (i32.const {FLUSHED}))
  (func (export "{HANDLER}#snapshot") (result i32) {snapshot} (i32.const {SNAPSHOT}))
  {HANDLE}
    (if (local.get $poisoned) (then {before_return}))
    (global.set $heap (i32.const {HEAP}))
    (i32.const {OUTCOME}))
  (func $allocate (export "cabi_realloc") (param $old i32) (param $had i32) (param $align i32)
    (param $size i32) (result i32)
    {realloc}
    (local.set $old (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $old) (local.get $size)))
    (block $fits (loop $more
      (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
      (drop (memory.grow (i32.const 16)))
      (br $more)))
    (local.get $old)))"#
        )
    }

    /// The manifest and the answers that never change.
    fn data(&self) -> String {
        let name = self.name.as_str();
        let table = self.table();
        let state = if self.state { [1, STATE_TYPE, 3] } else { [0; 3] };
        let mut manifest = vec![NAME, length(name), VERSION, 5, NAME, 0];
        manifest.extend(state);
        // The ordering key, the subscription, the tables, the grants, and when to flush.
        manifest.extend([0, 0, 0, 0, 0, 0, 0, TABLE, 1, 0, 0, 0, 0]);
        let segments = [
            (MANIFEST, words(&manifest)),
            (TABLE, words(&[TABLE_NAME, length(&table), COLUMN, 1, 0, 10])),
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
  (func (export "millrace:processor/handler@0.1.0#handle")
    (param $arena i32) (param $bytes i32) (param $words i32) (param $numbers i32) (result i32)
    (local $count i32) (local $n i32) (local $from i32) (local $key i32) (local $out i32) (local $record i32)
    (local $poisoned i32)
    (local.set $count (i32.div_u (local.get $numbers) (i32.const 9)))
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
      (memory.fill (local.get $record) (i32.const 0) (i32.const 64))
      (i32.store offset=8 (local.get $record) (local.get $n))
      (i32.store offset=36 (local.get $record) (i32.sub (local.get $out) (i32.const 0x8000)))
      (i32.store offset=40 (local.get $record) (local.get $key))
      (i32.store offset=56 (local.get $record) (i32.const 1))
      (local.set $out (i32.add (local.get $out) (i32.add (local.get $key) (i32.const 1))))
      (local.set $record (i32.add (local.get $record) (i32.const 64)))
      (local.set $words (i32.add (local.get $words) (i32.const 72)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br $next)))
    (memory.fill (i32.const 0x800) (i32.const 0) (i32.const 40))
    (i32.store (i32.const 0x800) (local.get $count))
    (i32.store (i32.const 0x804) (i32.const 0x8000))
    (i32.store (i32.const 0x808) (i32.sub (local.get $out) (i32.const 0x8000)))
    (i32.store (i32.const 0x80c) (i32.const 0x4000))
    (i32.store (i32.const 0x810) (local.get $count))
"#;

fn length(text: &str) -> u32 {
    u32::try_from(text.len()).expect("names are short")
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
