//! Connections, and what the server behind them is and gives.

use std::collections::HashMap;
use std::path::Path;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, FromRedisValue, TlsCertificates, Value,
};

use super::faults::{backend, remote};
use super::options::{Durability, Place, RedisAck, RedisAddress};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{REDIS_ANSWER_WAIT_MAX, REDIS_CONNECT_WAIT_MAX};

/// A connection with a bound on every answer. It does not reconnect: what is behind a new one has to be checked first.
pub(super) async fn connect(
    info: &ConnectionInfo,
    ca_file: Option<&Path>,
) -> Result<MultiplexedConnection, BackendError> {
    let doing = || format!("connecting to {}", info.addr());
    let secured = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let client = match ca_file.filter(|_| secured) {
        None => Client::open(info.clone()),
        Some(path) => {
            let unread = |error| {
                remote(RemoteFault::Denied, format_args!("{} cannot be read: {error}", path.display()))
            };
            let root_cert = Some(tokio::fs::read(path).await.map_err(unread)?);
            Client::build_with_tls(info.clone(), TlsCertificates { client_tls: None, root_cert })
        }
    };
    let client = client.map_err(|error| backend(doing(), &error))?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(REDIS_CONNECT_WAIT_MAX))
        .set_response_timeout(Some(REDIS_ANSWER_WAIT_MAX));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .map_err(|error| backend(doing(), &error))
}

/// Where the primary is now.
pub(super) async fn locate(address: &RedisAddress) -> Result<ConnectionInfo, BackendError> {
    let (sentinels, primary, server) = match &address.0 {
        Place::Single(info) => return Ok(info.clone()),
        Place::Sentinels { sentinels, primary, server } => (sentinels, primary, server),
    };
    let mut last = remote(RemoteFault::Unreachable, format_args!("no sentinel knows of `{primary}`"));
    for sentinel in sentinels {
        match ask_sentinel(sentinel, primary).await {
            Ok(Some((host, port))) => {
                let addr = match server.addr() {
                    ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                        host,
                        port,
                        insecure: *insecure,
                        tls_params: tls_params.clone(),
                    },
                    _ => ConnectionAddr::Tcp(host, port),
                };
                return Ok(server.clone().set_addr(addr));
            }
            Ok(None) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_sentinel(
    sentinel: &ConnectionInfo,
    primary: &str,
) -> Result<Option<(String, u16)>, BackendError> {
    let mut connection = connect(sentinel, None).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
    let answer: Option<(String, u16)> = command
        .query_async(&mut connection)
        .await
        .map_err(|error| backend(format_args!("asking the sentinel {}", sentinel.addr()), &error))?;
    Ok(answer)
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Changes with every start of the server.
    pub(super) run_id: String,
    /// Such as `redis 7.0.15`.
    pub(super) version: String,
    pub(super) replicas: u32,
    append_only: bool,
    /// None when the server does not tell.
    append_sync: Option<String>,
    wait_aof: bool,
}

impl Server {
    /// Looks at a server, and refuses one that no log can be on.
    pub(super) async fn look(connection: &mut MultiplexedConnection) -> Result<Self, BackendError> {
        let said: String = ask(connection, "asking what the server is", &redis::cmd("INFO")).await?;
        let said = parse_info(&said);
        let get = |name: &str| said.get(name).copied().unwrap_or_default();
        let redis_version = get("redis_version");
        let version = match get("valkey_version") {
            "" => format!("redis {redis_version}"),
            valkey => format!("valkey {valkey}"),
        };
        let major: u32 = redis_version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            let detail = format_args!("the server is {version}; Redis 7 or Valkey 8 is needed");
            return Err(remote(RemoteFault::Unsupported, detail));
        }
        // Valkey has another name for it.
        if get("redis_mode") == "cluster" || get("server_mode") == "cluster" {
            let detail =
                "the server is part of a cluster; give the address of a single server or of sentinels";
            return Err(remote(RemoteFault::Unsupported, detail));
        }
        if get("loading") == "1" {
            return Err(remote(RemoteFault::Loading, version));
        }
        if get("role") != "master" {
            let detail = format_args!("the server follows {}:{}", get("master_host"), get("master_port"));
            return Err(remote(RemoteFault::ReadOnly, detail));
        }
        let setting = async |connection: &mut MultiplexedConnection, name: &str| {
            // Hosted servers do not let everybody look; what is not known is not counted on.
            let pair: Option<HashMap<String, String>> =
                redis::cmd("CONFIG").arg("GET").arg(name).query_async(connection).await.ok();
            pair.and_then(|mut pair| pair.remove(name))
        };
        let append_sync = setting(connection, "appendfsync").await;
        let command: Value =
            ask(connection, "asking for WAITAOF", redis::cmd("COMMAND").arg("INFO").arg("WAITAOF")).await?;
        let wait_aof =
            matches!(&command, Value::Array(found) if !matches!(found.first(), None | Some(Value::Nil)));
        Ok(Self {
            run_id: get("run_id").to_owned(),
            version,
            replicas: get("connected_slaves").parse().unwrap_or(0),
            append_only: get("aof_enabled") == "1",
            append_sync,
            wait_aof,
        })
    }

    /// What an acknowledgement can stand on here.
    pub(super) fn durability(&self, ack: RedisAck) -> Result<Durability, BackendError> {
        match ack {
            RedisAck::Memory => Ok(Durability::Memory),
            RedisAck::Replicated { replicas } => Ok(Durability::Replicated { replicas }),
            RedisAck::Auto if self.replicas > 0 => Ok(Durability::Replicated { replicas: 1 }),
            RedisAck::Auto | RedisAck::Synced => {
                if self.append_only && self.append_sync.as_deref() == Some("always") {
                    Ok(Durability::AppendAlways)
                } else if self.append_only && self.wait_aof {
                    Ok(Durability::WaitAof)
                } else {
                    let sync = self.append_sync.as_deref().unwrap_or("not told");
                    let only = if self.append_only { "yes" } else { "no" };
                    let detail = format_args!(
                        "the server has appendonly {only}, appendfsync {sync}, {} replicas and {} WAITAOF; \
                         set `appendonly yes` and `appendfsync always`, or add a replica, or say `ack = \"memory\"`",
                        self.replicas,
                        if self.wait_aof { "has" } else { "no" },
                    );
                    Err(remote(RemoteFault::NotDurable, detail))
                }
            }
        }
    }
}

fn parse_info(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

/// Sends a command and reads its answer.
pub(super) async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    doing: &str,
    command: &redis::Cmd,
) -> Result<T, BackendError> {
    command.query_async(connection).await.map_err(|error| backend(doing, &error))
}
