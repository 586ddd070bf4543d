//! Makes processors out of components: tells what is wrong with one before it runs, compiles it or takes
//! it from the precompiled cache, and asks what it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};

use super::cache::Cache;
use super::code::{Code, Loader};
use super::compiler::Compiler;
use super::describe;
use super::grants::{self, Grants};
use super::instance::{Instance, Linked, OutputBounds, WasmProcessor};
use super::sandbox::{Guest, Sandbox, cut};
use super::{ArtifactStore, Autopsy, Metering, PluginError, PluginRuntime, PluginSettings, Scene, autopsy};
use super::{bindings, engine};
use super::{http, wait};
use crate::limits::{
    COMPILE_MAX, COMPILE_MEMORY_BYTES_MAX, COMPONENT_BYTES_MAX, GUEST_CALL_MAX, GUEST_DESCRIBE_MAX,
    GUEST_DESCRIBE_MEMORY_BYTES_MAX, GUEST_FUEL_MAX, GUEST_MEMORY_BYTES_MAX, GUEST_STATE_BYTES_MAX,
    INSTANCES_MAX, PRECOMPILED_BYTES_MAX,
};
use crate::processors::{Manifest, Processor, ProcessorFactory, TaskContext, Trap, TrapKind};
use crate::tables::TableSchema;

/// How a runtime is set up. A plugin's own settings go before these.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Where precompiled components are kept; none compiles at every load.
    pub cache_dir: Option<PathBuf>,
    /// Other processes keep theirs in the same folder: nothing in it is removed, whatever it comes to.
    pub cache_shared: bool,
    pub instances_max: usize,
    pub memory_bytes_max: usize,
    pub state_bytes_max: usize,
    pub call_max: Duration,
    /// What bounds the work of a call; what it waits for is bounded by `call_max` in any case.
    pub metering: Metering,
    /// Of one call, where fuel bounds it.
    pub fuel_max: u64,
    /// The executable that compiles, in a process of its own with the two bounds below: the host's own, whose
    /// `main` asks [`compiler_main`](super::compiler_main) first. None compiles in this process, unbounded.
    pub compiler: Option<PathBuf>,
    pub compile_memory_bytes_max: u64,
    pub compile_max: Duration,
    /// Of all precompiled components together.
    pub precompiled_bytes_max: u64,
    /// Where a component is read again whose code was given back and is gone from the cache, too. None never
    /// gives code back.
    pub artifacts: Option<Arc<dyn ArtifactStore>>,
    /// The channels are in memory, and so neither in a commit of a processor nor in reach of its outbox: none may append.
    pub channels_elsewhere: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            cache_shared: false,
            instances_max: INSTANCES_MAX,
            memory_bytes_max: GUEST_MEMORY_BYTES_MAX,
            state_bytes_max: GUEST_STATE_BYTES_MAX,
            call_max: GUEST_CALL_MAX,
            metering: Metering::default(),
            fuel_max: GUEST_FUEL_MAX,
            compiler: None,
            compile_memory_bytes_max: COMPILE_MEMORY_BYTES_MAX,
            compile_max: COMPILE_MAX,
            precompiled_bytes_max: PRECOMPILED_BYTES_MAX,
            artifacts: None,
            channels_elsewhere: false,
        }
    }
}

/// What a component imports beyond the world's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imports {
    /// By their names, such as `wasi:cli/environment@0.2.6`.
    pub foreign: Vec<String>,
    /// It can ask a clock. Without the grant for it, it is handed one event a call.
    pub reads_clock: bool,
}

/// Implements [`PluginRuntime`] on wasmtime.
pub struct WasmRuntime {
    loader: Arc<Loader>,
    options: RuntimeOptions,
}

impl std::fmt::Debug for WasmRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmRuntime").field("options", &self.options).finish_non_exhaustive()
    }
}

impl WasmRuntime {
    pub fn new(options: RuntimeOptions) -> Result<Self, PluginError> {
        Self::on(engine::new(options.instances_max, options.metering)?, options)
    }

    /// A runtime of its own for an autopsy, without a cache: code for its engine is good for nothing else.
    pub(super) fn for_autopsy(&self) -> Result<Self, PluginError> {
        Self::on(
            engine::for_autopsy(self.options.metering)?,
            RuntimeOptions { cache_dir: None, compiler: None, artifacts: None, ..self.options.clone() },
        )
    }

    fn on(engine: Engine, options: RuntimeOptions) -> Result<Self, PluginError> {
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).map_err(|error| engine_failed(&error))?;
        http::add_to_linker(&mut linker).map_err(|error| engine_failed(&error))?;
        wait::add_to_linker(&mut linker).map_err(|error| engine_failed(&error))?;
        bindings::Processor::add_to_linker::<_, wasmtime::component::HasSelf<Guest>>(&mut linker, |guest| {
            guest
        })
        .map_err(|error| engine_failed(&error))?;
        let open = |dir| {
            let open = if options.cache_shared { Cache::open_shared } else { Cache::open };
            open(dir, &engine, options.precompiled_bytes_max)
        };
        let cache = options.cache_dir.clone().map(open).transpose()?;
        let compiler = Compiler::new(
            options.compiler.clone(),
            options.metering,
            options.compile_memory_bytes_max,
            options.compile_max,
        );
        let artifacts = options.artifacts.clone();
        Ok(Self { loader: Arc::new(Loader { engine, linker, cache, compiler, artifacts }), options })
    }

    fn link(&self, component: &Component) -> Result<Arc<Linked>, PluginError> {
        check_world(component, &self.loader.engine)?;
        Ok(Arc::new(self.loader.link(component)?))
    }

    /// Says what a component is, and which world it was built for, without making a plugin of it. Compiles, so it may
    /// take seconds, and blocks.
    pub fn examine(&self, bytes: &[u8]) -> Result<(Manifest, String), PluginError> {
        check_bytes(bytes)?;
        let component = self.loader.compile(bytes, &digest(bytes))?;
        let manifest = self.describe(&self.link(&component)?)?;
        Ok((manifest, world_of(&component, &self.loader.engine)))
    }

    /// What a component imports beyond the world's own. Compiles as [`Self::examine`] does.
    pub fn imports(&self, bytes: &[u8]) -> Result<Imports, PluginError> {
        check_bytes(bytes)?;
        let component = self.loader.compile(bytes, &digest(bytes))?;
        let engine = &self.loader.engine;
        let all = component.component_type();
        let names = all.imports(engine).map(|(name, _)| name.to_owned());
        Ok(Imports {
            foreign: names.filter(|name| !name.starts_with(WORLD)).collect(),
            reads_clock: reads_clock(&component, engine),
        })
    }

    /// Asks the component what it is, without any grant and under bounds of its own: whose settings count
    /// is known only from its answer.
    fn describe(&self, linked: &Arc<Linked>) -> Result<Manifest, PluginError> {
        let sandbox = Sandbox {
            plugin: "".into(),
            version: "".into(),
            state_bytes_max: self.options.state_bytes_max,
            memory_bytes_max: self.options.memory_bytes_max.max(GUEST_DESCRIBE_MEMORY_BYTES_MAX),
            call_limit: format!("`describe` has guest_describe_ms_max = {}", GUEST_DESCRIBE_MAX.as_millis())
                .into(),
            fuel_max: self.fuel_max(),
            grants: Grants::default(),
            config: Arc::default(),
        };
        let call_max = self.options.call_max.min(GUEST_DESCRIBE_MAX);
        Instance::check_types(linked, &sandbox, call_max)?;
        let mut instance = Instance::new(linked, &sandbox, None, call_max).map_err(failed)?;
        let manifest = instance.describe().map_err(failed)?;
        describe::accept(manifest)
    }

    fn fuel_max(&self) -> Option<u64> {
        (self.options.metering == Metering::Fuel).then_some(self.options.fuel_max)
    }

    /// What the operator's settings make of a plugin.
    fn sandbox(
        &self,
        manifest: &Manifest,
        settings: PluginSettings,
    ) -> Result<(Sandbox, Duration), PluginError> {
        let plugin = manifest.name.as_str();
        let grants = Grants::given(plugin, &settings)?;
        if self.options.channels_elsewhere && !grants.channels.is_empty() {
            return Err(PluginError::ChannelsElsewhere { plugin: plugin.into() });
        }
        let (call_max, call_limit) = match settings.call_ms_max {
            Some(own) => (Duration::from_millis(own), format!("raise plugins.{plugin}.call_ms_max")),
            None => (self.options.call_max, "raise processors.guest_call_ms_max".to_owned()),
        };
        let sandbox = Sandbox {
            plugin: plugin.into(),
            version: manifest.version.to_string().into(),
            state_bytes_max: settings.state_bytes_max.unwrap_or(self.options.state_bytes_max),
            memory_bytes_max: settings.memory_bytes_max.unwrap_or(self.options.memory_bytes_max),
            call_limit: call_limit.into(),
            fuel_max: self.fuel_max(),
            grants,
            config: Arc::new(settings.config),
        };
        Ok((sandbox, call_max))
    }
}

/// The end of an instance that was only to say what it is.
fn failed(trap: Trap) -> PluginError {
    PluginError::Describe { detail: trap.to_string() }
}

impl PluginRuntime for WasmRuntime {
    fn load(
        &self,
        bytes: &[u8],
        settings_of: &dyn Fn(&str) -> PluginSettings,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        Ok(Arc::new(self.factory(bytes, settings_of)?))
    }

    fn autopsy(
        &self,
        bytes: &[u8],
        settings: &PluginSettings,
        scene: &Scene<'_>,
    ) -> Result<Autopsy, PluginError> {
        autopsy::examine(&self.for_autopsy()?.factory(bytes, &|_| settings.clone())?, scene)
    }
}

impl WasmRuntime {
    fn factory(
        &self,
        bytes: &[u8],
        settings_of: &dyn Fn(&str) -> PluginSettings,
    ) -> Result<WasmFactory, PluginError> {
        check_bytes(bytes)?;
        let digest = digest(bytes);
        let component = self.loader.compile(bytes, &digest)?;
        let linked = self.link(&component)?;
        let manifest = self.describe(&linked)?;
        let plugin = manifest.name.as_str();
        let (sandbox, call_max) = self.sandbox(&manifest, settings_of(plugin))?;
        sandbox.grants.cover(plugin, &manifest.grants)?;
        if let Some(import) =
            http_import(&component, &self.loader.engine).filter(|_| sandbox.grants.http.is_none())
        {
            return Err(grants::missing(
                plugin,
                "http",
                &format!("its import `{}` needs", cut(&import, 200)),
            ));
        }
        // It described itself with more memory than it may have from now on.
        Instance::new(&linked, &sandbox, None, call_max).map_err(failed)?;
        let tables = manifest.tables.clone().into();
        let world = world_of(&component, &self.loader.engine);
        let one_by_one = !sandbox.grants.clock && reads_clock(&component, &self.loader.engine);
        let code = Code::new(Arc::clone(&self.loader), digest, linked);
        Ok(WasmFactory { code, manifest, world, sandbox, call_max, tables, one_by_one })
    }
}

/// A loaded component, from which each task gets its instance.
pub(super) struct WasmFactory {
    code: Code,
    manifest: Manifest,
    world: String,
    sandbox: Sandbox,
    call_max: Duration,
    tables: Arc<[TableSchema]>,
    one_by_one: bool,
}

impl std::fmt::Debug for WasmFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmFactory")
            .field("name", &self.manifest.name)
            .field("digest", &self.code.digest())
            .finish_non_exhaustive()
    }
}

impl WasmFactory {
    pub(super) fn processor(&self, context: TaskContext) -> Result<WasmProcessor, Trap> {
        if let Some(Err(message)) = self.sandbox.grants.read_dir.as_deref().map(grants::readable) {
            // It was there when the plugin was loaded. With an empty folder, it would give other rows.
            return Err(Trap::new(TrapKind::Host, message));
        }
        let linked = self.code.get().map_err(|error| {
            Trap::new(
                TrapKind::Host,
                format!("the plugin's code was given back and cannot be loaded: {error}"),
            )
        })?;
        let instance = Instance::new(&linked, &self.sandbox, Some(context.clone()), self.call_max)?;
        let bounds = OutputBounds {
            tables: Arc::clone(&self.tables),
            channels: self.sandbox.grants.channels.clone(),
            state_bytes_max: self.sandbox.state_bytes_max,
        };
        Ok(WasmProcessor::new(instance, context, bounds, self.one_by_one))
    }
}

impl ProcessorFactory for WasmFactory {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        self.code.digest()
    }

    fn world(&self) -> Option<&str> {
        Some(&self.world)
    }

    fn state_bytes_max(&self) -> usize {
        self.sandbox.state_bytes_max
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        Ok(Box::new(self.processor(context)?))
    }

    fn rest(&self, idle: Duration) {
        self.code.rest(idle);
    }

    fn is_loaded(&self) -> bool {
        self.code.is_loaded()
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

/// The world that this host speaks, as it is named to people and in events.
pub const WORLD_NAME: &str = "millrace:processor@0.1.0";
/// What the world imports, and the version of it that this host speaks.
const WORLD: &str = "millrace:processor/";
const WORLD_VERSION: &str = "0.1";
const WORLD_IMPORTS: [&str; 4] = ["types", "log", "state", "config"];
/// Parts of WASI that standard libraries import whether a program uses them or
/// not. All are there and empty: no file, no network, and time and randomness
/// that tell nothing without a grant.
const WASI_IMPORTS: [&str; 6] =
    ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/", "wasi:sockets/"];

/// Outgoing HTTP, for a plugin with the grant.
const HTTP_IMPORTS: [&str; 2] = ["wasi:http/types@", "wasi:http/outgoing-handler@"];

/// The world that a component was built for. It was linked, so it has the export that says so.
fn world_of(component: &Component, engine: &Engine) -> String {
    let ty = component.component_type();
    let mut exports = ty.exports(engine);
    let version =
        exports.find_map(|(name, _)| name.strip_prefix("millrace:processor/handler@").map(str::to_owned));
    format!("millrace:processor@{}", version.unwrap_or_default())
}

/// Imports and exports by name; their types are checked when the component is linked.
fn check_world(component: &Component, engine: &Engine) -> Result<(), PluginError> {
    let ty = component.component_type();
    for (import, _) in ty.imports(engine) {
        let ours = import.strip_prefix(WORLD).map(|rest| rest.split_once('@').unwrap_or((rest, "")));
        match ours {
            Some((name, version)) if WORLD_IMPORTS.contains(&name) => check_version(import, version)?,
            None if WASI_IMPORTS.iter().chain(&HTTP_IMPORTS).any(|known| import.starts_with(known)) => {}
            _ => return Err(PluginError::ImportUnknown { import: import.chars().take(200).collect() }),
        }
    }
    let exports: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let handler = exports.iter().find_map(|name| name.strip_prefix("millrace:processor/handler@"));
    let Some(version) = handler else {
        let found = if exports.is_empty() { "nothing".into() } else { exports.join(", ") };
        let found = cut(&found, 200);
        let detail = format!("it exports {found}, not {WORLD}handler");
        return Err(PluginError::WrongWorld { detail });
    };
    check_version("millrace:processor/handler", version)
}

/// The first thing of `wasi:http` that it wants.
fn http_import(component: &Component, engine: &Engine) -> Option<String> {
    let ty = component.component_type();
    let mut imports = ty.imports(engine).map(|(name, _)| name.to_owned());
    imports.find(|name| HTTP_IMPORTS.iter().any(|known| name.starts_with(known)))
}

/// Whether it can ask a clock. Some tools import the interface for its types alone.
fn reads_clock(component: &Component, engine: &Engine) -> bool {
    component.component_type().imports(engine).any(|(import, extern_)| {
        import.starts_with("wasi:clocks/")
            && matches!(&extern_.ty, ComponentItem::ComponentInstance(instance)
                if instance.exports(engine).any(|(_, item)| matches!(item.ty, ComponentItem::ComponentFunc(_))))
    })
}

/// Before 1.0, a minor version is another world.
fn check_version(interface: &str, version: &str) -> Result<(), PluginError> {
    let fits = version.strip_prefix(WORLD_VERSION).is_some_and(|rest| rest.starts_with('.'));
    if fits {
        return Ok(());
    }
    let interface = cut(interface, 200);
    let version = cut(version, 40);
    let detail = format!(
        "it has {interface} in version `{version}`; this host speaks {WORLD_VERSION}: build it with the fitting SDK"
    );
    Err(PluginError::WrongWorld { detail })
}

pub(super) fn engine_failed(error: &wasmtime::Error) -> PluginError {
    PluginError::Engine { detail: format!("{error:#}") }
}
