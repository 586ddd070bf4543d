//! Waiting until what groups and channels have written is as durable as the log's events: one wait for all who ask meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use crate::backends::redis::connect::ask;
use crate::backends::redis::faults::{backend, ends_session, remote};
use crate::backends::redis::link::{Linked, RedisLink};
use crate::backends::redis::options::Durability;
use crate::backends::redis::scripts::{list, number};
use crate::error::{BackendError, RemoteFault};
use crate::limits::REDIS_DURABLE_WAIT;

/// How long the mark that is waited for stays.
const MARK_SECONDS: u32 = 24 * 3600;

/// How often it is waited before that counts as failed: a file that is synced every second may take longer than one.
const ROUNDS_MAX: usize = 3;

#[derive(Debug)]
pub(in crate::backends::redis) struct Barrier {
    link: RedisLink,
    /// Whose changes: a part of the mark's name, and the words for one.
    of: (&'static str, &'static str),
    /// Waits that were begun.
    begun: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// Of its own: it is blocked while it waits. And the shared connection that it leads to the same server as.
    connection: Option<(u64, MultiplexedConnection)>,
    /// The last wait that was over in time.
    reached: u64,
}

impl Barrier {
    pub(in crate::backends::redis) fn new(link: RedisLink, of: (&'static str, &'static str)) -> Self {
        Self { link, of, begun: AtomicU64::new(0), turn: Mutex::default() }
    }

    /// Returns once everything that the server had answered before on a connection has come to stay.
    pub(in crate::backends::redis) async fn reached(
        &self,
        durability: Durability,
        linked: &Linked,
    ) -> Result<(), BackendError> {
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
        let same = turn.connection.as_ref().is_some_and(|(number, _)| *number == linked.number);
        if turn.reached > asked && same {
            // Somebody's wait was begun after this was asked.
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        // Whoever is dropped here leaves a connection in the middle of an answer: it goes, too.
        let known = turn.connection.take().filter(|_| same);
        let (mut connection, is_new) = match known {
            Some((_, connection)) => (connection, false),
            None => (self.open(linked).await?, true),
        };
        let mut reached = self.rounds(&mut connection, &command, wanted).await;
        if reached.as_ref().is_err_and(ends_session) && !is_new {
            // It may have been cut alone, long ago.
            connection = self.open(linked).await?;
            reached = self.rounds(&mut connection, &command, wanted).await;
        }
        let reached = reached?;
        turn.connection = Some((linked.number, connection));
        if reached < wanted {
            let what = format_args!("{}: {reached} of {wanted} have it in time", self.of.1);
            return Err(remote(RemoteFault::NotReplicated, what));
        }
        turn.reached = number;
        Ok(())
    }

    /// A connection to the very run of the server that another one leads to: what is waited for is there.
    async fn open(&self, linked: &Linked) -> Result<MultiplexedConnection, BackendError> {
        let mut connection = self.link.own().await?;
        let mut shared = linked.connection.clone();
        let run = async |connection: &mut MultiplexedConnection| {
            let said: String =
                ask(connection, "asking what the server is", redis::cmd("INFO").arg("server")).await?;
            let line = said.lines().find(|line| line.starts_with("run_id:"));
            Ok::<_, BackendError>(line.map(str::to_owned))
        };
        if run(&mut connection).await? == run(&mut shared).await? {
            return Ok(connection);
        }
        Err(remote(RemoteFault::Unreachable, "the server is another one than a moment ago"))
    }

    /// Waits, and once more where that takes long. Answers how many have it.
    async fn rounds(
        &self,
        connection: &mut MultiplexedConnection,
        command: &redis::Cmd,
        wanted: u32,
    ) -> Result<u32, BackendError> {
        let mut reached = 0;
        for _ in 0..ROUNDS_MAX {
            reached = self.wait(connection, command).await?;
            if reached >= wanted {
                break;
            }
        }
        Ok(reached)
    }

    async fn wait(
        &self,
        connection: &mut MultiplexedConnection,
        wait: &redis::Cmd,
    ) -> Result<u32, BackendError> {
        let mut wait = wait.clone();
        let mut commands = redis::pipe();
        let mark = self.link.key(&format!("{}:barrier", self.of.0));
        commands.cmd("SET").arg(mark).arg("").arg("EX").arg(MARK_SECONDS).ignore();
        wait.arg(REDIS_DURABLE_WAIT.as_millis().to_string());
        commands.add_command(wait);
        let (reached,): (Value,) = commands
            .query_async(connection)
            .await
            .map_err(|error| backend(format_args!("waiting until {} is durable", self.of.1), &error))?;
        let reached = match list(reached.clone()) {
            Some(counts) => counts.first().and_then(number),
            None => number(&reached),
        };
        Ok(reached.unwrap_or(0))
    }
}
