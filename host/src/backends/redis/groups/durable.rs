//! Waiting until what groups have written is as durable as the log's events: one wait for all who ask meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use crate::backends::redis::faults::{backend, remote};
use crate::backends::redis::link::RedisLink;
use crate::backends::redis::options::Durability;
use crate::backends::redis::scripts::{list, number};
use crate::error::{BackendError, RemoteFault};
use crate::limits::REDIS_DURABLE_WAIT;

/// How long the mark that is waited for stays.
const MARK_SECONDS: u32 = 24 * 3600;

#[derive(Debug)]
pub(super) struct Barrier {
    link: RedisLink,
    /// Waits that were begun.
    begun: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// Of its own: it is blocked while it waits.
    connection: Option<MultiplexedConnection>,
    /// The last wait that was over in time.
    reached: u64,
}

impl Barrier {
    pub(super) fn new(link: RedisLink) -> Self {
        Self { link, begun: AtomicU64::new(0), turn: Mutex::default() }
    }

    /// Returns once everything that the server had answered before has come to stay.
    pub(super) async fn reached(&self, durability: Durability) -> Result<(), BackendError> {
        let (command, wanted) = match durability {
            Durability::Memory | Durability::AppendAlways => return Ok(()),
            Durability::Replicated { replicas } => {
                let mut wait = redis::cmd("WAIT");
                wait.arg(replicas);
                (wait, replicas)
            }
            Durability::WaitAof => {
                let mut wait = redis::cmd("WAITAOF");
                wait.arg(1).arg(0);
                (wait, 1)
            }
        };
        let asked = self.begun.load(Ordering::SeqCst);
        let mut turn = self.turn.lock().await;
        if turn.reached > asked {
            // Somebody's wait was begun after this was asked.
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        // Whoever is dropped here leaves a connection in the middle of an answer: it goes, too.
        let mut connection = match turn.connection.take() {
            Some(connection) => connection,
            None => self.link.own().await?,
        };
        let reached = self.wait(&mut connection, command).await?;
        turn.connection = Some(connection);
        if reached < wanted {
            let what = format_args!("a group's change: {reached} of {wanted} have it in time");
            return Err(remote(RemoteFault::NotReplicated, what));
        }
        turn.reached = number;
        Ok(())
    }

    async fn wait(
        &self,
        connection: &mut MultiplexedConnection,
        mut wait: redis::Cmd,
    ) -> Result<u32, BackendError> {
        let mut commands = redis::pipe();
        commands.cmd("SET").arg(self.link.key("groups:barrier")).arg("").arg("EX").arg(MARK_SECONDS).ignore();
        wait.arg(REDIS_DURABLE_WAIT.as_millis().to_string());
        commands.add_command(wait);
        let (reached,): (Value,) = commands
            .query_async(connection)
            .await
            .map_err(|error| backend("waiting until a group's change is durable", &error))?;
        let reached = match list(reached.clone()) {
            Some(counts) => counts.first().and_then(number),
            None => number(&reached),
        };
        Ok(reached.unwrap_or(0))
    }
}
