//! The scripts that run inside the server, each atomic, and the keys that they work on.

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

/// A script, by the digest that the server knows it under.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    digest: std::sync::OnceLock<String>,
}

pub(super) static APPEND: Script = Script::new(concat!(
    include_str!("lua/append.lua"),
    "local said, write = log_append(KEYS, ARGV)\nif write then write() end\nreturn said\n"
));
pub(super) static SYNC: Script = Script::new(include_str!("lua/sync.lua"));
pub(super) static READ: Script = Script::new(include_str!("lua/read.lua"));
pub(super) static CHANGES: Script = Script::new(include_str!("lua/changes.lua"));
pub(super) static SCOPES: Script = Script::new(include_str!("lua/scopes.lua"));
/// A full server refuses scripts that write. This one does not grow, and without it nothing would run.
pub(super) static LEASE: Script =
    Script::new(concat!("#!lua flags=allow-oom\n", include_str!("lua/lease.lua")));
/// Nor this one, which is what makes room.
pub(super) static TRIM: Script = Script::new(concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/groups/state.lua"),
    include_str!("lua/trim.lua")
));
/// Nor this one.
pub(super) static CAP: Script = Script::new(concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/groups/state.lua"),
    include_str!("lua/cap.lua")
));
pub(super) static GROUP_TAKE: Script = Script::new(concat!(
    include_str!("lua/groups/state.lua"),
    include_str!("lua/groups/turns.lua"),
    include_str!("lua/groups/take.lua")
));
pub(super) static GROUP_SETTLE: Script = Script::new(concat!(
    include_str!("lua/groups/state.lua"),
    include_str!("lua/groups/turns.lua"),
    include_str!("lua/groups/settle.lua")
));
pub(super) static GROUP_MANAGE: Script = Script::new(concat!(
    include_str!("lua/groups/state.lua"),
    include_str!("lua/groups/turns.lua"),
    include_str!("lua/groups/manage.lua")
));
pub(super) static CACHE_GET: Script = Script::new(include_str!("lua/cache_get.lua"));
pub(super) static CACHE_PUT: Script = Script::new(include_str!("lua/cache_put.lua"));
pub(super) static PRESENCE: Script = Script::new(include_str!("lua/presence.lua"));
pub(super) static CLUSTER: Script = Script::new(include_str!("lua/cluster.lua"));
pub(super) static CHANNEL_APPEND: Script = Script::new(concat!(
    include_str!("lua/append.lua"),
    include_str!("lua/channels/state.lua"),
    include_str!("lua/channels/append.lua")
));
pub(super) static CHANNEL_MANAGE: Script =
    Script::new(concat!(include_str!("lua/channels/state.lua"), include_str!("lua/channels/manage.lua")));
/// This one makes room, so a full server takes it.
pub(super) static CHANNEL_REMOVE: Script = Script::new(concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/channels/state.lua"),
    include_str!("lua/channels/remove.lua")
));
pub(super) static CHANNEL_READ: Script =
    Script::new(concat!(include_str!("lua/channels/state.lua"), include_str!("lua/channels/read.lua")));
pub(super) static CONTROL_APPEND: Script = Script::new(include_str!("lua/control/append.lua"));
/// This one makes room, so a full server takes it.
pub(super) static CONTROL_TRIM: Script =
    Script::new(concat!("#!lua flags=allow-oom\n", include_str!("lua/control/trim.lua")));
pub(super) static CONTROL_BOARD: Script = Script::new(include_str!("lua/control/board.lua"));
pub(super) static ARTIFACT_CHANGE: Script = Script::new(include_str!("lua/artifacts/change.lua"));
/// This one makes room, so a full server takes it.
pub(super) static ARTIFACT_REMOVE: Script =
    Script::new(concat!("#!lua flags=allow-oom\n", include_str!("lua/artifacts/remove.lua")));

impl Script {
    const fn new(text: &'static str) -> Self {
        Self { text, digest: std::sync::OnceLock::new() }
    }

    /// Runs it; `fill` adds the arguments behind the keys. A server that does not know it yet is given it: it forgets
    /// scripts when it starts, and a promoted replica never had them.
    pub(super) async fn run(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[&[u8]],
        fill: impl Fn(&mut redis::Cmd),
    ) -> Result<Value, RedisError> {
        let digest = match self.digest.get() {
            Some(digest) => digest,
            None => {
                let digest = self.load(connection).await?;
                self.digest.get_or_init(|| digest)
            }
        };
        let mut command = redis::cmd("EVALSHA");
        command.arg(digest).arg(keys.len());
        for key in keys {
            command.arg(*key);
        }
        fill(&mut command);
        match command.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.load(connection).await?;
                command.query_async(connection).await
            }
            answer => answer,
        }
    }

    /// Makes it known to a server.
    pub(super) async fn load(&self, connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
        redis::cmd("SCRIPT").arg("LOAD").arg(self.text).query_async(connection).await
    }
}

/// What the keys of leases begin with, behind the log's name.
pub(super) const LEASES: &str = "lease:";

/// The keys of one log. All have its name in braces, so that they lie together wherever keys are spread.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Hash: epoch, position, trimmed, base (where this life began), time (of the newest entry), ids_from (`ids` has what
    /// came after it), scopes (their version), tenants (how many there are), evictions (the server's run and how many keys
    /// it had removed when it was looked at last), evicted (1: among keys that it removed may be the log's).
    pub(super) meta: Vec<u8>,
    /// Stream: entries with the id `{last position}-{events}` and the fields t(enant), a(ppended at), e(vents), and
    /// s(tream) where that is another one than `events`, or c(hange streams) by the number of the event in the entry.
    pub(super) events: Vec<u8>,
    /// Hash of the dedup window. Its fields are keys of (tenant, stream, id), 16 bytes; a value is the hash of the content
    /// (16 bytes), the event's number in the group that it was appended with (2 bytes), and as text what its position is
    /// more than that. And the hash before it.
    pub(super) ids: Vec<u8>,
    pub(super) older_ids: Vec<u8>,
    /// Set of every tenant that has appended.
    pub(super) tenants: Vec<u8>,
    /// Streams by tenant, with the ids of the tenant's entries of `events` and nothing else.
    pub(super) index: Vec<u8>,
    /// Streams by tenant and stream, of change streams and those with a name of their own: the positions of their events,
    /// with where these lie in their entries.
    pub(super) streams: Vec<u8>,
    /// Hashes by aggregate: the last known values of field scopes.
    pub(super) values: Vec<u8>,
    /// Sets by tenant: its streams with a name of their own.
    pub(super) names: Vec<u8>,
    /// The change scopes as JSON.
    pub(super) scopes: Vec<u8>,
    /// Hashes by name: leases, whose generations fence appends.
    pub(super) leases: Vec<u8>,
    /// What consumer groups are kept under, and the list of them: `lua/groups/state.lua` says how.
    pub(super) group: Vec<u8>,
    pub(super) groups: Vec<u8>,
    /// What processes and channels are kept under: `lua/channels/state.lua` says how.
    pub(super) channels: Vec<u8>,
    /// What a reader writes so that it can wait for replicas: all before it in the replication stream is with them, too.
    pub(super) barrier: Vec<u8>,
}

impl Keys {
    pub(super) fn new(name: &str) -> Self {
        let key = |rest: &str| format!("{{{name}}}:{rest}").into_bytes();
        Self {
            meta: key("meta"),
            events: key("events"),
            ids: key("ids"),
            older_ids: key("ids:older"),
            tenants: key("tenants"),
            index: key("tenant:"),
            streams: key("stream:"),
            values: key("values:"),
            names: key("streams:"),
            scopes: key("scopes"),
            leases: key(LEASES),
            group: key("group:"),
            groups: key("groups"),
            channels: key("channels:"),
            barrier: key("barrier"),
        }
    }

    /// Those of `lua/append.lua`.
    pub(super) fn of_appends(&self) -> [&[u8]; 10] {
        [
            &self.meta,
            &self.events,
            &self.ids,
            &self.older_ids,
            &self.tenants,
            &self.index,
            &self.streams,
            &self.values,
            &self.names,
            &self.leases,
        ]
    }

    /// Those of the scripts that know of consumer groups.
    pub(super) fn of_groups(&self) -> [&[u8]; 6] {
        [&self.meta, &self.events, &self.streams, &self.index, &self.group, &self.groups]
    }

    pub(super) fn index_of(&self, tenant: &str) -> Vec<u8> {
        [&self.index[..], tenant.as_bytes()].concat()
    }

    pub(super) fn stream_of(&self, tenant: &str, stream: &str) -> Vec<u8> {
        [&self.streams[..], tenant.as_bytes(), b":", stream.as_bytes()].concat()
    }

    pub(super) fn values_of(&self, aggregate: &str) -> Vec<u8> {
        [&self.values[..], aggregate.as_bytes()].concat()
    }
}

/// The parts of an answer that is a list.
pub(super) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    std::str::from_utf8(bytes(value)?).ok()
}

/// A number that a script answered as text or as itself.
pub(super) fn number<N: std::str::FromStr + TryFrom<i64>>(value: &Value) -> Option<N> {
    match value {
        Value::Int(number) => N::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}
