//! Leases on Redis: one hash each, changed by one script.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;
use tokio::time::Instant;

use super::faults::{backend, remote};
use super::link::RedisLink;
use super::scripts::{LEASE, LEASES, list, number, text};
use crate::cluster::{Asked, Fence, Lease, LeaseStore};
use crate::error::{BackendError, RemoteFault};

/// A [`LeaseStore`] beside the log of the same name, whose appends it can fence.
#[derive(Clone, Debug)]
pub struct RedisLeases {
    link: RedisLink,
}

impl RedisLeases {
    pub fn new(link: RedisLink) -> Self {
        Self { link }
    }

    async fn call(&self, name: &str, arguments: [&str; 3]) -> Result<Vec<Value>, BackendError> {
        let linked = self.link.shared().await?;
        let mut connection = linked.connection;
        let key = self.link.key(&format!("{LEASES}{name}"));
        let fill = |command: &mut redis::Cmd| {
            command.arg(&arguments[..]);
        };
        let answer = LEASE.run(&mut connection, &[&key], fill).await;
        let answer = answer.map_err(|error| backend(format_args!("asking for the lease `{name}`"), &error));
        let answer = self.link.ended(linked.number, answer).await?;
        list(answer).ok_or_else(shape)
    }
}

fn shape() -> BackendError {
    remote(RemoteFault::Unsupported, "asking for a lease: the answer has another shape")
}

impl LeaseStore for RedisLeases {
    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> BoxFuture<'_, Result<Asked, BackendError>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        async move {
            let asked = Instant::now();
            let answer = self.call(&name, [&holder, &ttl.as_micros().to_string(), ""]).await?;
            match &answer[..] {
                [Value::Int(1), generation] => {
                    let generation = number(generation).ok_or_else(shape)?;
                    let fence = Fence { name: name.into(), generation };
                    Ok(Asked::Granted(Lease { fence, holder: holder.into(), until: asked + ttl }))
                }
                [Value::Int(0), holder, left] => {
                    let left = Duration::from_micros(number(left).ok_or_else(shape)?);
                    Ok(Asked::Taken { holder: text(holder).ok_or_else(shape)?.to_owned(), left })
                }
                _ => Err(shape()),
            }
        }
        .boxed()
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), BackendError>> {
        let lease = lease.clone();
        async move {
            let generation = lease.fence.generation.to_string();
            self.call(&lease.fence.name, [&lease.holder, "0", &generation]).await.map(drop)
        }
        .boxed()
    }
}
