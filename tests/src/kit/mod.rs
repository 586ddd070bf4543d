//! The conformance kit: what a guest must do whatever it is written in. `tests/kit/README.md` has its rules.

mod run;
mod vector;

/// The guest in Rust, to be run as native code, too.
#[path = "../../../plugins/misbehaving/guests/kit.rs"]
mod guest;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millrace::plugins::{PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{Manifest, OrderingKey, ProcessorFactory, Subscription};
use millrace::streams::{AggregateScopes, Scope};
use millrace::tables::{Column, ColumnType, TableSchema};
use serde_json::Value;

pub use guest::Kit;
pub use run::{PARTITIONS, Partition, run};
pub use vector::{Vector, vectors, vectors_in};

use crate::guests::{guest as path_of, load_shared, sharing_code};
use crate::native::Native;

/// The groups of vectors, by the names of their files.
pub const GROUPS: [&str; 8] =
    ["load", "crossing", "effects", "failures", "keyed", "config", "flush", "snapshot"];

/// What the kit's guest is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    Rust,
    Js,
    Python,
    /// Text, without an SDK.
    Wat,
    /// Rust that was never WebAssembly.
    Native,
}

/// What an operator sets for a plugin.
pub type Settings = BTreeMap<String, String>;
/// A guest under an operator's settings.
pub type Guest<'a> = dyn Fn(&Settings) -> Arc<dyn ProcessorFactory> + 'a;
type Loaded = BTreeMap<(&'static str, Settings), Arc<dyn ProcessorFactory>>;

impl Language {
    /// The plugin's name.
    pub fn plugin(self) -> &'static str {
        match self {
            Self::Rust | Self::Native => "kit",
            Self::Js => "kit-js",
            Self::Python => "kit-python",
            Self::Wat => "kit-wat",
        }
    }

    /// The component.
    pub fn component(self) -> Vec<u8> {
        match self {
            Self::Wat => wat::parse_str(text_of_the_guest()).unwrap_or_else(|error| panic!("{error}")),
            _ => std::fs::read(path_of(self.plugin())).expect("a built guest can be read"),
        }
    }

    /// The guest with these settings, loaded once a process.
    pub fn factory(self, settings: &Settings) -> Arc<dyn ProcessorFactory> {
        if self == Self::Native {
            return Arc::new(Native::<Kit>::new().with_settings(settings.clone()));
        }
        load_once(self.plugin(), &|| self.component(), settings)
    }
}

/// A component that does what the kit says, with these settings: loaded once a process under a name of its own.
pub fn load_once(
    name: &'static str,
    component: &dyn Fn() -> Vec<u8>,
    settings: &Settings,
) -> Arc<dyn ProcessorFactory> {
    static LOADED: Mutex<Loaded> = Mutex::new(BTreeMap::new());
    static RUNTIME: OnceLock<WasmRuntime> = OnceLock::new();
    // Time enough for a guest with an engine in it, and megabytes of payload, on a busy machine.
    let call_max = Duration::from_secs(60);
    let shared = RUNTIME.get_or_init(|| {
        let options = RuntimeOptions { instances_max: 16, call_max, ..RuntimeOptions::default() };
        WasmRuntime::new(sharing_code(options)).expect("the runtime starts")
    });
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match loaded.entry((name, settings.clone())) {
        Entry::Occupied(found) => Arc::clone(found.get()),
        Entry::Vacant(place) => {
            let factory = load_shared(shared, &component(), &granted(settings.clone()));
            Arc::clone(place.insert(factory.expect("the guest loads")))
        }
    }
}

/// What an operator gives the kit's guest beside its settings: it appends to channels.
pub fn granted(config: Settings) -> PluginSettings {
    let (grants, channels) = (vec!["channels".into()], vec!["*".into()]);
    PluginSettings { config, grants, channels, ..PluginSettings::default() }
}

/// The guest in WebAssembly text.
pub fn text_of_the_guest() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kit/guests/kit.wat");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a guest through vectors in every way: a batch means the fold of its events.
pub fn check(guest: &Guest<'_>, vectors: &[Vector]) {
    for partition in PARTITIONS {
        let wrong = faults(guest, vectors, partition);
        assert!(wrong.is_empty(), "{partition:?}:\n{}", wrong.join("\n"));
    }
}

/// What is wrong with a guest: for each vector that it does not follow, where it first differs.
pub fn faults(guest: &Guest<'_>, vectors: &[Vector], partition: Partition) -> Vec<String> {
    let mut wrong = Vec::new();
    for vector in vectors {
        match run(&*guest(&vector.config), vector, partition) {
            Ok(found) if found == vector.expect => {}
            Ok(found) => wrong.push(format!("{}: {}", vector.name, difference(&found, &vector.expect, ""))),
            Err(error) => wrong.push(format!("{}: {error}", vector.name)),
        }
    }
    wrong
}

/// The first place where the two differ.
fn difference(found: &Value, expected: &Value, place: &str) -> String {
    match (found, expected) {
        (Value::Array(left), Value::Array(right)) => {
            let index = left.iter().zip(right).position(|(left, right)| left != right);
            match index {
                Some(index) => difference(&left[index], &right[index], &format!("{place}[{index}]")),
                None => format!("{place} has {} and not {} parts", left.len(), right.len()),
            }
        }
        (Value::Object(left), Value::Object(right)) => {
            let names = left.keys().chain(right.keys());
            let mut differing = names.filter(|name| left.get(*name) != right.get(*name));
            let name = differing.next().map_or("", String::as_str);
            let part = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or_default();
            difference(&part(left), &part(right), &format!("{place}.{name}"))
        }
        _ => format!("{place} is {found} and not {expected}"),
    }
}

/// What the guest must say of itself.
pub fn expected_manifest(language: Language) -> Manifest {
    let column = |name: &str, column_type, flags: &str| Column {
        name: name.into(),
        column_type,
        nullable: flags.contains('n'),
        filterable: flags.contains('f'),
        sortable: flags.contains('s'),
    };
    let rows = [
        ("event_id", ColumnType::Text, "f"),
        ("aggregate", ColumnType::Text, ""),
        ("number", ColumnType::Int, "s"),
        ("happened_at", ColumnType::Timestamp, "fs"),
        ("place", ColumnType::Int, ""),
        ("schema", ColumnType::Int, ""),
        ("depth", ColumnType::Int, ""),
        ("scope", ColumnType::Text, "n"),
        ("kind", ColumnType::Text, "n"),
        ("cursor", ColumnType::Text, "n"),
        ("trace", ColumnType::Text, "n"),
        ("payload", ColumnType::Bytes, ""),
        ("doc", ColumnType::Json, ""),
        ("odd", ColumnType::Bool, ""),
        ("bits", ColumnType::Float, ""),
        ("nothing", ColumnType::Text, "nfs"),
    ];
    let reads = [("value", ColumnType::Bytes, "n"), ("entries", ColumnType::Int, "n")];
    let columns = |of: &[(&str, ColumnType, &str)]| {
        of.iter().map(|(name, kind, flags)| column(name, *kind, flags)).collect()
    };
    let scopes = |aggregate: &str, scopes: &[Scope]| AggregateScopes {
        aggregate: aggregate.into(),
        scopes: scopes.to_vec(),
    };
    let owner = Scope::Field { name: "of-owner".into(), member: "owner".into() };
    Manifest {
        name: language.plugin().into(),
        version: "1.2.3-kit.1".parse().expect("a semantic version"),
        summary: "Does what the type of an event says: é".into(),
        state_content_type: Some("k/2".into()),
        ordering_key: OrderingKey::PayloadField("key".into()),
        subscription: Subscription {
            types: vec!["*".into()],
            aggregates: vec!["thing".into(), "other*".into()],
        },
        tables: vec![
            TableSchema {
                name: "rows".into(),
                columns: columns(&rows),
                versioned: true,
                window_rows_max: 77,
            },
            TableSchema {
                name: "reads".into(),
                columns: columns(&reads),
                versioned: false,
                window_rows_max: 1_000,
            },
        ],
        grants: Vec::new(),
        flush_interval_ms: Some(1_000),
        changes: vec![scopes("thing", &[Scope::Id, Scope::Tenant, owner]), scopes("kit", &[Scope::Tenant])],
    }
}
