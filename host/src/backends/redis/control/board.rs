//! The board: hashes beside the feed, with the server's time.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;

use super::{RedisControl, odd};
use crate::backends::redis::faults::backend;
use crate::backends::redis::scripts::{CONTROL_BOARD, list, number, text};
use crate::control::{Board, FleetMark, Result, check_report};
use crate::error::BackendError;
use crate::limits::CONTROL_HOSTS_MAX;

impl RedisControl {
    pub(super) async fn ask(&self, command: &redis::Cmd) -> std::result::Result<Value, BackendError> {
        let mut linked = self.link.shared().await?;
        let answer = command.query_async(&mut linked.connection).await;
        let answer = answer.map_err(|error| backend("at the board of the control feed", &error));
        self.link.ended(linked.number, answer).await
    }
}

/// `{milliseconds} {report}` of a host.
fn report_of(host: &Value, said: &Value, now: u64) -> Option<(String, Duration, String)> {
    let (at, report) = text(said)?.split_once(' ')?;
    let age = Duration::from_millis(now.saturating_sub(at.parse().ok()?));
    Some((text(host)?.to_owned(), age, report.to_owned()))
}

impl Board for RedisControl {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            check_report(host, report)?;
            self.run(&CONTROL_BOARD, "reporting to the board", |command| {
                command.arg("report").arg(host).arg(report);
            })
            .await?;
            Ok(())
        }
        .boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        async move {
            let clock = list(self.ask(&redis::cmd("TIME")).await?).ok_or_else(odd)?;
            let part = |place: usize| clock.get(place).and_then(number::<u64>).ok_or_else(odd);
            let now = part(0)? * 1_000 + part(1)? / 1_000;
            let mut reports = Vec::new();
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(self.key("reports")).arg(&cursor).arg("COUNT").arg(100);
                let mut parts = list(self.ask(&scan).await?).ok_or_else(odd)?;
                let pairs = parts.pop().and_then(list).ok_or_else(odd)?;
                let found = pairs.chunks_exact(2).map(|pair| report_of(&pair[0], &pair[1], now));
                reports.extend(found.collect::<Option<Vec<_>>>().ok_or_else(odd)?);
                cursor = parts.first().and_then(text).ok_or_else(odd)?.to_owned();
                if cursor == "0" || reports.len() >= CONTROL_HOSTS_MAX {
                    break;
                }
            }
            // A scan may name a host twice.
            reports.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
            reports.dedup_by(|later, first| later.0 == first.0);
            reports.truncate(CONTROL_HOSTS_MAX);
            Ok(reports)
        }
        .boxed()
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.ask(redis::cmd("HDEL").arg(self.key("reports")).arg(host)).await?;
            Ok(())
        }
        .boxed()
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        async move {
            let json = serde_json::to_string(mark).map_err(|_| odd())?;
            self.run(&CONTROL_BOARD, "marking the board", |command| {
                command.arg("mark").arg(mark.version.0).arg(&json);
            })
            .await?;
            Ok(())
        }
        .boxed()
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            self.ask(redis::cmd("DEL").arg(self.key("mark"))).await?;
            Ok(())
        }
        .boxed()
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        async move {
            let answer = self.ask(redis::cmd("HGET").arg(self.key("mark")).arg("mark")).await?;
            if answer == Value::Nil {
                return Ok(None);
            }
            Ok(text(&answer).and_then(|json| serde_json::from_str(json).ok()))
        }
        .boxed()
    }
}
