//! Compiling, in a process of its own: the compiler is the largest program that a stranger's bytes reach,
//! and what it costs grows faster than they do.
//!
//! Promises: a host that names its executable compiles in a child of it, with bounds on address space, time
//! and output, at a lower priority, without the host's environment, one at a time; whatever becomes of that
//! child, the host goes on and says what happened. What comes back is native code, so it is kept in
//! [`Precompiled`], which only this module and the cache's check make. Without an executable (a library's
//! user, a test), the same code runs in the process itself, unbounded.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::{Metering, PluginError, engine};
use crate::limits::{
    COMPILE_NICE, COMPONENT_BYTES_MAX, GUEST_MESSAGE_BYTES_MAX, PRECOMPILED_ENTRY_BYTES_MAX,
};

/// The first argument by which an executable knows that it is the child.
const COMMAND: &str = "compile-component";
/// How the child's answer begins: a name, what follows (code, or why there is none), and its length.
const MAGIC: [u8; 8] = *b"mrcode01";
const HEAD_BYTES: usize = MAGIC.len() + 1 + 8;
const CODE: u8 = 0;
const REFUSED: u8 = 1;
/// What a process says last when its allocator gets no more.
const OUT_OF_MEMORY: [&str; 3] = ["memory allocation of", "Cannot allocate memory", "os error 12"];

/// Native code that this host's own compiler has made.
#[derive(Debug)]
pub(super) struct Precompiled(Vec<u8>);

impl Precompiled {
    /// For the cache, once it has checked that these bytes, in memory, are what it was given by `put`.
    pub(super) fn vouched(code: Vec<u8>) -> Self {
        Self(code)
    }

    pub(super) fn code(&self) -> &[u8] {
        &self.0
    }

    /// Copies the code to where it can run. Nothing of it runs yet.
    pub(super) fn load(&self, engine: &Engine) -> Result<Component, wasmtime::Error> {
        #[expect(unsafe_code, reason = "running compiled code is what an engine is for")]
        // SAFETY: the bytes are `Engine::precompile_component`'s, and in memory, where nobody changes them. They
        // come from this process; or from a child of the host's own executable, over a pipe that no third
        // process holds, as one whole answer; or from the cache, whose MAC over these very bytes was made under
        // a key that only this host has, when they had come in one of the two other ways. Wasmtime itself
        // checks that they are for this version and these settings.
        unsafe {
            Component::deserialize(engine, &self.0)
        }
    }
}

/// Compiles components for one engine.
#[derive(Debug)]
pub(super) struct Compiler {
    /// The host's own executable; none compiles here.
    executable: Option<PathBuf>,
    metering: Metering,
    memory_bytes_max: u64,
    time_max: Duration,
    /// Children take their turns: two would take twice the memory, and both cores.
    turn: Mutex<()>,
}

impl Compiler {
    pub(super) fn new(
        executable: Option<PathBuf>,
        metering: Metering,
        memory_bytes_max: u64,
        time_max: Duration,
    ) -> Self {
        Self { executable, metering, memory_bytes_max, time_max, turn: Mutex::default() }
    }

    /// Blocks until the component is compiled, or has reached a bound.
    pub(super) fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Precompiled, PluginError> {
        match &self.executable {
            None => here(engine, component).map_err(|detail| PluginError::NotAComponent { detail }),
            Some(executable) => {
                // It protects nothing that a panic could have left half done.
                let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.in_a_child(executable, component)
            }
        }
    }

    fn in_a_child(&self, executable: &Path, component: &[u8]) -> Result<Precompiled, PluginError> {
        let failed = |detail: String| PluginError::Compiler { detail };
        let mut command = Command::new(executable);
        command.arg(COMMAND).arg(self.memory_bytes_max.to_string()).arg(self.cpu_seconds().to_string());
        command.arg(self.metering.as_str());
        // It needs nothing of what the host knows, such as tokens.
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = command.spawn();
        let mut child =
            started.map_err(|error| failed(format!("{} does not start: {error}", executable.display())))?;
        let ended = converse(&mut child, component, self.time_max);
        // Where it has ended, neither does anything; where it has not, it does now, and is waited for.
        let _ = child.kill();
        let status = child.wait().map_err(|error| failed(format!("its end is not known: {error}")))?;
        let Some(Said { answer, errors }) = ended else {
            return Err(self.too_long());
        };
        if answer.len() as u64 > answer_bytes_max() {
            let max = PRECOMPILED_ENTRY_BYTES_MAX;
            return Err(PluginError::CompileLimit { limit: "precompiled_entry_bytes_max", max });
        }
        match Answer::read(answer) {
            Some(Answer::Code(code)) if status.success() => Ok(Precompiled(code)),
            Some(Answer::Refused(detail)) if status.success() && !out_of_memory(&detail) => {
                Err(PluginError::NotAComponent { detail })
            }
            Some(Answer::Refused(detail)) => Err(self.explain(status, &detail)),
            _ => Err(self.explain(status, &errors)),
        }
    }

    fn too_long(&self) -> PluginError {
        let max = u64::try_from(self.time_max.as_millis()).unwrap_or(u64::MAX);
        PluginError::CompileLimit { limit: "compile_ms_max", max }
    }

    /// Twice what all cores can spend within the time, so that this ends only what outlives its parent.
    fn cpu_seconds(&self) -> u64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        (self.time_max.as_secs() + 1).saturating_mul(2 * cores)
    }

    /// Why there is no code although the child has ended in time.
    fn explain(&self, status: ExitStatus, errors: &str) -> PluginError {
        if out_of_memory(errors) {
            return PluginError::CompileLimit {
                limit: "compile_memory_bytes_max",
                max: self.memory_bytes_max,
            };
        }
        if status.signal() == Some(Signal::XCPU.as_raw()) {
            return self.too_long();
        }
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("it was ended by signal {signal}"),
            (None, Some(0)) => "its answer is not what it should be".into(),
            (None, code) => format!("it ended with code {}", code.unwrap_or_default()),
        };
        let words = super::sandbox::cut(errors.trim(), GUEST_MESSAGE_BYTES_MAX);
        let detail = if words.is_empty() { how } else { format!("{how}: {words}") };
        PluginError::Compiler { detail }
    }
}

fn out_of_memory(words: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|sign| words.contains(sign))
}

fn answer_bytes_max() -> u64 {
    PRECOMPILED_ENTRY_BYTES_MAX + HEAD_BYTES as u64
}

/// What a child has written until it closed both of its outputs.
struct Said {
    answer: Vec<u8>,
    errors: String,
}

/// Hands the child the component and takes its answer, for as long as the time allows.
fn converse(child: &mut Child, component: &[u8], time_max: Duration) -> Option<Said> {
    let (mut stdin, stdout, stderr) = (child.stdin.take()?, child.stdout.take()?, child.stderr.take()?);
    let (done, answered) = sync_channel(1);
    std::thread::scope(|threads| {
        threads.spawn(move || {
            // A child that has seen enough closes its end.
            let _ = stdin.write_all(component);
        });
        threads.spawn(move || {
            let errors = std::thread::spawn(move || {
                let mut errors = Vec::new();
                let _ = stderr.take(GUEST_MESSAGE_BYTES_MAX as u64).read_to_end(&mut errors);
                String::from_utf8_lossy(&errors).into_owned()
            });
            let mut answer = Vec::new();
            // One byte more than allowed says that there is too much; the rest is not read.
            let _ = stdout.take(answer_bytes_max() + 1).read_to_end(&mut answer);
            let errors = errors.join().unwrap_or_default();
            // Nobody listens any more when the time is over.
            let _ = done.send(Said { answer, errors });
        });
        let said = answered.recv_timeout(time_max).ok();
        if said.is_none() {
            // The threads end with its pipes.
            let _ = child.kill();
        }
        said
    })
}

/// What the child answers.
enum Answer {
    Code(Vec<u8>),
    Refused(String),
}

impl Answer {
    /// None for anything that is not one whole answer.
    fn read(mut bytes: Vec<u8>) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let (magic, head) = head.split_at(MAGIC.len());
        let length = u64::from_le_bytes(head[1..].try_into().ok()?);
        if magic != MAGIC || length != rest.len() as u64 {
            return None;
        }
        let kind = head[0];
        bytes.drain(..HEAD_BYTES);
        match kind {
            CODE => Some(Self::Code(bytes)),
            REFUSED => Some(Self::Refused(String::from_utf8_lossy(&bytes).into_owned())),
            _ => None,
        }
    }
}

fn here(engine: &Engine, component: &[u8]) -> Result<Precompiled, String> {
    let code = engine.precompile_component(component);
    code.map(Precompiled).map_err(|error| error.root_cause().to_string())
}

/// Runs as the child when the arguments (without the program's name) say so. An executable that is given to
/// a host as its compiler calls this before anything else.
pub fn compiler_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().take(5).collect();
    let [command, memory, seconds, metering] = arguments.as_slice() else { return None };
    if command != COMMAND {
        return None;
    }
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    let metering = metering.to_str().and_then(Metering::parse);
    let ended = match (number(memory), number(seconds), metering) {
        (Some(memory), Some(seconds), Some(metering)) => compile_as_told(memory, seconds, metering),
        _ => Err("it wants a number of bytes, one of seconds, and what calls are measured by".to_owned()),
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even this cannot be written, the code is all there is.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    })
}

/// Binds itself, then reads a component and answers with its code.
fn compile_as_told(memory: u64, seconds: u64, metering: Metering) -> Result<(), String> {
    // A host that is killed takes its compiler with it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    for (resource, max) in
        [(Resource::As, memory), (Resource::Cpu, seconds.max(1)), (Resource::Core, 0), (Resource::Fsize, 0)]
    {
        let limit = Rlimit { current: Some(max), maximum: Some(max) };
        rustix::process::setrlimit(resource, limit).map_err(|error| error.to_string())?;
    }
    // Lower is always permitted; and if not, it is only slower for the others.
    let _ = rustix::process::nice(COMPILE_NICE);
    let mut component = Vec::new();
    let read = std::io::stdin().take(COMPONENT_BYTES_MAX as u64).read_to_end(&mut component);
    read.map_err(|error| error.to_string())?;
    let engine = engine::for_compiling(metering).map_err(|error| error.to_string())?;
    let (kind, answer) = match here(&engine, &component) {
        Ok(Precompiled(code)) => (CODE, code),
        Err(detail) => (REFUSED, detail.into_bytes()),
    };
    let mut out = std::io::stdout().lock();
    let head = [&MAGIC[..], &[kind], &(answer.len() as u64).to_le_bytes()].concat();
    let written = out.write_all(&head).and_then(|()| out.write_all(&answer)).and_then(|()| out.flush());
    written.map_err(|error| error.to_string())
}
