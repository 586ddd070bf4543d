//! Where the servers are and what the stream promises.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_nats::ServerAddr;

use crate::limits::{NATS_ACK_WAIT, NATS_DUPLICATES_WINDOW, NATS_EVENTS_AGE_MAX};

/// Servers of one cluster.
#[derive(Clone)]
pub struct NatsAddress(pub(super) Vec<ServerAddr>);

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address of NATS: {why}; write nats://host:4222, tls://host:4222 (TLS) or several of one cluster with commas"
)]
pub struct InvalidNatsAddress {
    why: String,
}

impl FromStr for NatsAddress {
    type Err = InvalidNatsAddress;

    /// `nats://[user:password@]host[:port]` or `nats://token@host`, `tls://…` where TLS is demanded; several with commas, of
    /// which the first says who asks. What a URL has to escape cannot stand in a password or token.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why: &str| InvalidNatsAddress { why: why.to_owned() };
        let mut servers = Vec::new();
        for part in text.split(',') {
            let (scheme, _) = part.split_once("://").ok_or_else(|| invalid("it has no ://"))?;
            if !matches!(scheme, "nats" | "tls") {
                return Err(invalid(&format!("`{scheme}` is no scheme of it")));
            }
            // The text of an address holds a password.
            let server: ServerAddr = part.parse().map_err(|_| invalid("it is no URL"))?;
            if server.host().is_empty() {
                return Err(invalid("the host is missing"));
            }
            servers.push(server);
        }
        Ok(Self(servers))
    }
}

impl NatsAddress {
    /// User and password, or a token alone.
    pub(super) fn login(&self) -> Option<(&str, Option<&str>)> {
        let server = self.0.iter().find(|server| server.has_user_pass())?;
        Some((server.username()?, server.password()))
    }
}

impl fmt::Display for NatsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, server) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

impl fmt::Debug for NatsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsAddress({self})")
    }
}

/// How a feed on NATS is opened.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    pub address: NatsAddress,
    /// A file with a user's JWT and seed, as `nsc` writes it.
    pub credentials: Option<PathBuf>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// What all names on the server begin with: two fleets on one server have two of them.
    pub name: String,
    /// This host. Two hosts of one name would take each other's events.
    pub host: String,
    /// Servers of the cluster that hold the stream, 1 to 5.
    pub replicas: u8,
    /// How old an event becomes in the stream. Far longer than a host may be away, and than snapshots are apart.
    pub events_age_max: Duration,
    /// For how long the server knows the id of an event again; not longer than events are kept.
    pub duplicates_window: Duration,
    /// After how long the server hands out again what was not acknowledged.
    pub ack_wait: Duration,
}

impl NatsOptions {
    pub fn new(address: NatsAddress, name: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            address,
            credentials: None,
            ca_file: None,
            name: name.into(),
            host: host.into(),
            replicas: 1,
            events_age_max: NATS_EVENTS_AGE_MAX,
            duplicates_window: NATS_DUPLICATES_WINDOW,
            ack_wait: NATS_ACK_WAIT,
        }
    }

    /// The server refuses one that is longer than events are kept.
    pub(super) fn window(&self) -> Duration {
        self.duplicates_window.min(self.events_age_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_their_password() {
        let shown = |text: &str| text.parse::<NatsAddress>().map(|address| format!("{address} {address:?}"));
        assert_eq!(shown("nats://u:secret@h:7000").unwrap(), "h:7000 NatsAddress(h:7000)");
        assert_eq!(shown("tls://a,nats://token@b:1").unwrap(), "a:4222,b:1 NatsAddress(a:4222,b:1)");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_forms_that_are() {
        for text in ["", "h:1", "http://h", "ws://h", "nats://h:nonsense", "nats://a,", "redis://u:secret@h"]
        {
            let refused = text.parse::<NatsAddress>().unwrap_err().to_string();
            assert!(refused.contains("tls://host:4222") && !refused.contains("secret"), "{text}: {refused}");
        }
    }
}
