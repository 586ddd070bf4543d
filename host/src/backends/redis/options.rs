//! Where the log lies and what it promises.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::checkpoints::LogMark;
use crate::limits::{DEDUP_EVENTS_MAX, REDIS_APPEND_WAIT_MAX, REDIS_EVENTS_MAX, TAIL_BYTES_MAX};
use crate::streams::Retention;

/// When an append is acknowledged. What an acknowledgement does not stand on, it does not promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisAck {
    /// `Replicated { replicas: 1 }` where the server has replicas when the host first reaches it, `Synced` otherwise.
    #[default]
    Auto,
    /// When the server has it in memory. Weaker: its crash loses acknowledged events.
    Memory,
    /// When the server has synced it to its append-only file: by `appendfsync always`, or by WAITAOF where there is that.
    Synced,
    /// When so many replicas have it. A failover then keeps it as long as one of them is promoted; the replicas'
    /// own disks are theirs.
    Replicated { replicas: u32 },
}

/// What an acknowledgement stands on, once the server was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Memory,
    /// The server syncs before it answers.
    AppendAlways,
    /// WAITAOF is asked.
    WaitAof,
    /// WAIT is asked.
    Replicated {
        replicas: u32,
    },
}

impl Durability {
    /// Everything that [`Self::as_str`] answers.
    pub const NAMES: [&str; 4] = ["memory", "synced", "synced_by_waitaof", "replicated"];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::AppendAlways => "synced",
            Self::WaitAof => "synced_by_waitaof",
            Self::Replicated { .. } => "replicated",
        }
    }
}

/// One server, or the sentinels that know which one.
#[derive(Clone)]
pub struct RedisAddress(pub(super) Place);

#[derive(Clone)]
pub(super) enum Place {
    Single(ConnectionInfo),
    Sentinels { sentinels: Vec<ConnectionInfo>, primary: String, server: ConnectionInfo },
}

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address of Redis: {why}; write redis://host:6379, rediss://host:6379 (TLS) or redis+sentinel://host:26379,host:26379/name"
)]
pub struct InvalidAddress {
    why: String,
}

impl FromStr for RedisAddress {
    type Err = InvalidAddress;

    /// `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, and for sentinels
    /// `redis+sentinel://[user:password@]host:port,host:port/name[/db]`, whose user and password are the server's
    /// (`rediss+sentinel://…` when the server wants TLS).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why: &str| InvalidAddress { why: why.to_owned() };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("it has no ://"))?;
        match scheme {
            "redis" | "rediss" => Ok(Self(Place::Single(info(text)?))),
            "redis+sentinel" | "rediss+sentinel" => {
                let node = scheme.trim_end_matches("+sentinel");
                let (credentials, rest) = match rest.rsplit_once('@') {
                    Some((credentials, rest)) => (format!("{credentials}@"), rest),
                    None => (String::new(), rest),
                };
                let (hosts, path) =
                    rest.split_once('/').ok_or_else(|| invalid("the primary's name is missing"))?;
                let (primary, db) = path.split_once('/').unwrap_or((path, "0"));
                if primary.is_empty() || hosts.is_empty() {
                    return Err(invalid("a list of sentinels and the primary's name are needed"));
                }
                let sentinels = hosts
                    .split(',')
                    .map(|host| {
                        let port = if host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']')) {
                            ""
                        } else {
                            ":26379"
                        };
                        info(&format!("redis://{host}{port}"))
                    })
                    .collect::<Result<_, _>>()?;
                let server = info(&format!("{node}://{credentials}127.0.0.1/{db}"))?;
                Ok(Self(Place::Sentinels { sentinels, primary: primary.to_owned(), server }))
            }
            other => Err(invalid(&format!("`{other}` is no scheme of it"))),
        }
    }
}

fn info(url: &str) -> Result<ConnectionInfo, InvalidAddress> {
    let secured = url.starts_with("rediss:");
    let info = url.into_connection_info().map_err(|error| {
        // The text of an address holds a password.
        InvalidAddress { why: error.category().to_owned() }
    })?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            Err(InvalidAddress { why: "a certificate is always checked; leave #insecure out".into() })
        }
        ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. }
            if secured == matches!(info.addr(), ConnectionAddr::TcpTls { .. }) =>
        {
            Ok(info)
        }
        _ => Err(InvalidAddress { why: "it is no address of TCP".into() }),
    }
}

impl fmt::Display for RedisAddress {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Single(info) => info.addr().fmt(f),
            Place::Sentinels { sentinels, primary, .. } => {
                let list: Vec<String> = sentinels.iter().map(|info| info.addr().to_string()).collect();
                write!(f, "{primary} of the sentinels {}", list.join(","))
            }
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisAddress({self})")
    }
}

/// What a log on Redis is opened with.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub address: RedisAddress,
    /// Authorities that the server's certificate is checked against (PEM), where it has TLS; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Names the log: its keys begin with `{name}`, so that several logs share a server.
    pub name: String,
    pub ack: RedisAck,
    /// By default the newest `REDIS_EVENTS_MAX`, since it is all in memory.
    pub retention: Retention,
    pub dedup_events_max: usize,
    /// Entries that one change stream keeps, about; none or 0 keeps what retention keeps.
    pub change_stream_events_max: Option<u64>,
    pub tail_bytes_max: usize,
    /// How far the log was when the host last saw it; none for a host that never has.
    pub known: Option<LogMark>,
    /// How long an append is tried over lost connections and failovers.
    pub append_wait_max: Duration,
}

impl RedisOptions {
    pub fn new(address: RedisAddress) -> Self {
        Self {
            address,
            ca_file: None,
            name: "millrace".into(),
            ack: RedisAck::Auto,
            retention: Retention { age: None, events: Some(REDIS_EVENTS_MAX) },
            dedup_events_max: DEDUP_EVENTS_MAX,
            change_stream_events_max: None,
            tail_bytes_max: TAIL_BYTES_MAX,
            known: None,
            append_wait_max: REDIS_APPEND_WAIT_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_their_password() {
        let shown = |text: &str| text.parse::<RedisAddress>().map(|address| format!("{address} {address:?}"));
        assert_eq!(shown("redis://u:secret@h:7000/2").unwrap(), "h:7000 RedisAddress(h:7000)");
        let sentinels = shown("redis+sentinel://:secret@a:1,b/main/3").unwrap();
        assert!(sentinels.starts_with("main of the sentinels a:1,b:26379 "), "{sentinels}");
        assert!(!sentinels.contains("secret"));
        let address: RedisAddress = "rediss+sentinel://:pw@a:1/main/3".parse().unwrap();
        let Place::Sentinels { server, sentinels, .. } = address.0 else { panic!() };
        assert!(matches!(server.addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        assert_eq!((server.redis_settings().password(), server.redis_settings().db()), (Some("pw"), 3));
        assert_eq!(sentinels[0].redis_settings().password(), None);
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_forms_that_are() {
        for text in [
            "",
            "h:1",
            "http://h",
            "redis+sentinel://a:1",
            "redis+sentinel:///main",
            "redis://h:nonsense",
            "rediss://h:1/#insecure",
            "redis+unix:///tmp/s",
        ] {
            let refused = text.parse::<RedisAddress>().unwrap_err().to_string();
            assert!(refused.contains("redis+sentinel://host:26379"), "{text}: {refused}");
        }
    }
}
