//! Makes processors out of components: tells what is wrong with one before it runs, compiles it or takes
//! it from the precompiled cache, and asks what it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::{self, wire};
use super::cache::Cache;
use super::engine;
use super::instance::{Instance, Linked, WasmProcessor};
use super::sandbox::{Grants, Guest, Sandbox};
use super::{PluginError, PluginRuntime, PluginSettings};
use crate::limits::{
    COMPONENT_BYTES_MAX, GUEST_CALL_CEILING, GUEST_CALL_MAX, GUEST_MANIFEST_BYTES_MAX,
    GUEST_MEMORY_BYTES_CEILING, GUEST_MEMORY_BYTES_MAX, INSTANCES_MAX,
};
use crate::processors::{
    InvalidManifest, Manifest, OrderingKey, Processor, ProcessorFactory, Subscription, TaskContext, Trap,
};
use crate::tables::{Column, ColumnType, TableSchema};

/// How a runtime is set up. A plugin's own settings go before these.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Where precompiled components are kept; none compiles at every load.
    pub cache_dir: Option<PathBuf>,
    pub instances_max: usize,
    pub memory_bytes_max: usize,
    pub call_max: Duration,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            instances_max: INSTANCES_MAX,
            memory_bytes_max: GUEST_MEMORY_BYTES_MAX,
            call_max: GUEST_CALL_MAX,
        }
    }
}

/// Implements [`PluginRuntime`] on wasmtime.
pub struct WasmRuntime {
    engine: Engine,
    linker: Linker<Guest>,
    cache: Option<Cache>,
    options: RuntimeOptions,
}

impl std::fmt::Debug for WasmRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmRuntime").field("options", &self.options).finish_non_exhaustive()
    }
}

impl WasmRuntime {
    pub fn new(options: RuntimeOptions) -> Result<Self, PluginError> {
        let engine = engine::new(options.instances_max)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).map_err(|error| engine_failed(&error))?;
        bindings::Processor::add_to_linker::<_, wasmtime::component::HasSelf<Guest>>(&mut linker, |guest| {
            guest
        })
        .map_err(|error| engine_failed(&error))?;
        let cache = options.cache_dir.clone().map(|dir| Cache::open(dir, &engine)).transpose()?;
        Ok(Self { engine, linker, cache, options })
    }

    fn compile(&self, bytes: &[u8], digest: &str) -> Result<Component, PluginError> {
        if let Some(cache) = &self.cache
            && let Some(component) = cache.get(&self.engine, digest)
        {
            return Ok(component);
        }
        let not_a_component =
            |error: &wasmtime::Error| PluginError::NotAComponent { detail: error.root_cause().to_string() };
        let Some(cache) = &self.cache else {
            return Component::new(&self.engine, bytes).map_err(|error| not_a_component(&error));
        };
        let compiled = self.engine.precompile_component(bytes).map_err(|error| not_a_component(&error))?;
        cache.put(digest, &compiled)?;
        cache.get(&self.engine, digest).ok_or_else(|| PluginError::Storage {
            detail: format!("the precompiled component {digest} cannot be read back"),
        })
    }

    fn link(&self, component: &Component) -> Result<Linked, PluginError> {
        check_world(component, &self.engine)?;
        let wrong_world = |error: &wasmtime::Error| PluginError::WrongWorld { detail: format!("{error:#}") };
        let linked = self.linker.instantiate_pre(component).map_err(|error| wrong_world(&error))?;
        Linked::new(linked).map_err(|error| wrong_world(&error))
    }

    /// Asks the component what it is, without any grant.
    fn describe(&self, linked: &Linked) -> Result<Manifest, PluginError> {
        let sandbox = Sandbox {
            plugin: "".into(),
            memory_bytes_max: self.options.memory_bytes_max,
            grants: Grants::default(),
            config: Arc::default(),
        };
        let failed = |trap: Trap| PluginError::Describe { detail: trap.to_string() };
        let mut instance = Instance::new(linked, &sandbox, None, self.options.call_max).map_err(failed)?;
        let manifest = instance.describe().map_err(failed)?;
        let text = manifest.name.len()
            + manifest.summary.len()
            + manifest
                .subscription
                .types
                .iter()
                .chain(&manifest.subscription.aggregates)
                .map(String::len)
                .sum::<usize>();
        if text > GUEST_MANIFEST_BYTES_MAX {
            return Err(PluginError::Describe {
                detail: format!(
                    "the manifest has {text} bytes; guest_manifest_bytes_max is {GUEST_MANIFEST_BYTES_MAX}"
                ),
            });
        }
        let manifest = convert(manifest)?;
        manifest.validate()?;
        Ok(manifest)
    }
}

impl PluginRuntime for WasmRuntime {
    fn load(
        &self,
        bytes: &[u8],
        settings_of: &dyn Fn(&str) -> PluginSettings,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        check_bytes(bytes)?;
        let digest = digest(bytes);
        let component = self.compile(bytes, &digest)?;
        let linked = self.link(&component)?;
        let manifest = self.describe(&linked)?;
        let settings = settings_of(&manifest.name);
        let grants = grants(&settings.grants)?;
        for wanted in &manifest.grants {
            let given = self::grants(std::slice::from_ref(wanted))?;
            if (given.clock && !grants.clock) || (given.random && !grants.random) {
                let import = if given.clock { "wasi:clocks" } else { "wasi:random" };
                return Err(PluginError::GrantMissing { import: import.into(), grant: wanted.clone() });
            }
        }
        let call_max = settings.call_ms_max.map_or(self.options.call_max, Duration::from_millis);
        let memory = settings.memory_bytes_max.unwrap_or(self.options.memory_bytes_max);
        let sandbox = Sandbox {
            plugin: manifest.name.as_str().into(),
            memory_bytes_max: memory.min(GUEST_MEMORY_BYTES_CEILING),
            grants,
            config: Arc::new(settings.config),
        };
        let tables = manifest.tables.clone().into();
        let call_max = call_max.min(GUEST_CALL_CEILING);
        Ok(Arc::new(WasmFactory { linked, manifest, digest, sandbox, call_max, tables }))
    }
}

/// A loaded component, from which each task gets its instance.
struct WasmFactory {
    linked: Linked,
    manifest: Manifest,
    digest: String,
    sandbox: Sandbox,
    call_max: Duration,
    tables: Arc<[TableSchema]>,
}

impl std::fmt::Debug for WasmFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmFactory")
            .field("name", &self.manifest.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl ProcessorFactory for WasmFactory {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        let instance = Instance::new(&self.linked, &self.sandbox, Some(context.clone()), self.call_max)?;
        Ok(Box::new(WasmProcessor::new(instance, context, Arc::clone(&self.tables))))
    }
}

/// SHA-256 of a component's bytes, as lower-case hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// What can be told from the first bytes.
fn check_bytes(bytes: &[u8]) -> Result<(), PluginError> {
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(PluginError::TooLarge { bytes: bytes.len(), max: COMPONENT_BYTES_MAX });
    }
    let detail = match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, 0, 1, 0]) => return Ok(()),
        Some([0, b'a', b's', b'm', ..]) => "it is a core module; build it for wasm32-wasip2",
        Some(_) => "it does not begin like WebAssembly (\\0asm)",
        None => "it has fewer than 8 bytes; is the file whole?",
    };
    Err(PluginError::NotAComponent { detail: detail.into() })
}

const WORLD_IMPORTS: [&str; 4] = ["types", "log", "state", "config"];
const WASI_IMPORTS: [&str; 5] = ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/"];

/// Imports and exports by name; their types are checked when the component is linked.
fn check_world(component: &Component, engine: &Engine) -> Result<(), PluginError> {
    let ty = component.component_type();
    for (import, _) in ty.imports(engine) {
        let ours = import
            .strip_prefix("millrace:processor/")
            .and_then(|rest| rest.split('@').next())
            .is_some_and(|name| WORLD_IMPORTS.contains(&name));
        if !ours && !WASI_IMPORTS.iter().any(|known| import.starts_with(known)) {
            return Err(PluginError::ImportUnknown { import: import.into() });
        }
    }
    let exports: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    if !exports.iter().any(|name| name.starts_with("millrace:processor/handler@")) {
        let found = if exports.is_empty() { "nothing".into() } else { exports.join(", ") };
        let detail = format!("it exports {found}, not millrace:processor/handler");
        return Err(PluginError::WrongWorld { detail });
    }
    Ok(())
}

fn grants(names: &[String]) -> Result<Grants, PluginError> {
    let mut grants = Grants::default();
    for name in names {
        match name.as_str() {
            "clock" => grants.clock = true,
            "random" => grants.random = true,
            _ => return Err(PluginError::GrantUnknown { grant: name.clone() }),
        }
    }
    Ok(grants)
}

fn engine_failed(error: &wasmtime::Error) -> PluginError {
    PluginError::Engine { detail: format!("{error:#}") }
}

fn convert(m: wire::Manifest) -> Result<Manifest, InvalidManifest> {
    let column = |c: wire::Column| Column {
        name: c.name,
        column_type: match c.type_ {
            wire::ColumnType::Bool => ColumnType::Bool,
            wire::ColumnType::Int => ColumnType::Int,
            wire::ColumnType::Float => ColumnType::Float,
            wire::ColumnType::Text => ColumnType::Text,
            wire::ColumnType::Bytes => ColumnType::Bytes,
            wire::ColumnType::Json => ColumnType::Json,
            wire::ColumnType::Timestamp => ColumnType::Timestamp,
        },
        nullable: c.nullable,
        filterable: c.filterable,
        sortable: c.sortable,
    };
    let table = |t: wire::Table| TableSchema {
        name: t.name,
        columns: t.columns.into_iter().map(column).collect(),
        versioned: t.versioned,
        window_rows_max: t.window_rows_max,
    };
    let version = m.version.parse().map_err(|_| InvalidManifest::Version { version: m.version.clone() })?;
    Ok(Manifest {
        name: m.name,
        version,
        summary: m.summary,
        state_content_type: m.state_content_type,
        ordering_key: match m.ordering_key {
            wire::OrderingKey::Aggregate => OrderingKey::Aggregate,
            wire::OrderingKey::PayloadField(field) => OrderingKey::PayloadField(field),
            wire::OrderingKey::Single => OrderingKey::Single,
        },
        subscription: Subscription { types: m.subscription.types, aggregates: m.subscription.aggregates },
        tables: m.tables.into_iter().map(table).collect(),
        grants: m.grants,
        flush_interval_ms: m.flush_interval_ms,
    })
}
