//! Names of the fields in spans and trace messages. `tracing` wants them as
//! literals where they are used; a name that is not here is a mistake, and
//! those who search messages find the list.

pub const STREAM_NAME: &str = "stream.name";
pub const STREAM_POSITION: &str = "stream.position";
pub const TASK_ID: &str = "task.id";
/// A task of the host itself (`tasks.rs`), not of a processor.
pub const TASK_NAME: &str = "task.name";
pub const TASK_GENERATION: &str = "task.generation";
pub const TENANT: &str = "tenant";
pub const PLUGIN_NAME: &str = "plugin.name";
pub const PLUGIN_VERSION: &str = "plugin.version";
pub const PLUGIN_DIGEST: &str = "plugin.digest";
pub const TABLE_NAME: &str = "table.name";
pub const CHANNEL_ID: &str = "channel.id";
pub const NODE_ID: &str = "node.id";
pub const CONTROL_VERSION: &str = "control.version";
/// A lane of a plugin, with `tenant` and `plugin.name`.
pub const LANE: &str = "lane";
/// What a guest said, as it said it.
pub const TEXT: &str = "text";
/// Guest messages over the rate limit since the last one that went through.
pub const DROPPED: &str = "dropped";
/// Events of a batch or commit.
pub const EVENTS: &str = "events";
/// To what a rebuild has come.
pub const REBUILD_STEP: &str = "rebuild.step";
/// The error's stable code.
pub const ERROR_KIND: &str = "error.kind";
/// `host`, `guest` or `caller`.
pub const ERROR_BLAME: &str = "error.blame";

/// Every name.
pub const ALL: &[&str] = &[
    STREAM_NAME,
    STREAM_POSITION,
    TASK_ID,
    TASK_NAME,
    TASK_GENERATION,
    TENANT,
    PLUGIN_NAME,
    PLUGIN_VERSION,
    PLUGIN_DIGEST,
    TABLE_NAME,
    CHANNEL_ID,
    NODE_ID,
    CONTROL_VERSION,
    LANE,
    TEXT,
    DROPPED,
    EVENTS,
    REBUILD_STEP,
    ERROR_KIND,
    ERROR_BLAME,
];
