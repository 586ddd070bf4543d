//! The board: a key-value bucket with a key for each host, one for the mark, and one for who lets the stream begin.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::NatsControl;
use super::api::{
    ConsumerInfo, Place, Published, Refusal, STREAM_NAME_IN_USE, STREAM_NOT_FOUND, STREAM_SUBJECTS_OVERLAP,
    WRONG_LAST_SEQUENCE,
};
use super::link::{Linked, remote};
use crate::control::{Board, FleetMark, Result, check_report};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    CONTROL_HOSTS_MAX, NATS_ANSWER_WAIT_MAX, NATS_MAKING_LOOKS_MAX, NATS_MARK_TURNS_MAX, NATS_PULL_MAX,
    NATS_RETRY_WAIT_MIN,
};

const DOING: &str = "at the board of the control feed";

/// How long the server keeps a reader of all reports that has gone.
const READER_IDLE_NANOS: u64 = 10_000_000_000;

type Asked<T> = std::result::Result<T, BackendError>;

impl NatsControl {
    /// Puts a value under a subject of the bucket, which is made when it is not there.
    pub(super) async fn put(
        &self,
        linked: &Linked,
        subject: &str,
        expected: Option<u64>,
        value: Bytes,
    ) -> Asked<std::result::Result<Published, Refusal>> {
        let mut taken = None;
        for turn in 0..NATS_MAKING_LOOKS_MAX {
            if turn > 1 {
                // Another one makes it.
                tokio::time::sleep(NATS_RETRY_WAIT_MIN).await;
            }
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Expected-Stream", self.names.bucket_stream());
            if let Some(sequence) = expected {
                headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
            }
            if let Some(put) = linked.publish(DOING, subject.to_owned(), headers, value.clone()).await? {
                return Ok(put);
            }
            taken = self.make_bucket(linked).await?;
        }
        if let Some(refusal) = taken {
            return Err(refusal.into_error(DOING));
        }
        Err(remote(RemoteFault::Loading, format_args!("{DOING}: no bucket takes it")))
    }

    /// Answers when its subjects are another's, or of one of its name that is being made.
    async fn make_bucket(&self, linked: &Linked) -> Asked<Option<Refusal>> {
        let stream = self.names.bucket_stream();
        let config = json!({
            "name": stream,
            "description": "what hosts of a Millrace fleet report",
            "subjects": [self.names.bucket_subject(">")],
            "retention": "limits",
            "discard": "new",
            "storage": "file",
            "num_replicas": self.options.replicas,
            "max_msgs_per_subject": 1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "max_age": 0,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        match linked.api::<Value>(DOING, format!("STREAM.CREATE.{stream}"), &config).await? {
            Ok(_) => Ok(None),
            Err(refusal) => match refusal.err_code {
                STREAM_NAME_IN_USE => Ok(None),
                STREAM_SUBJECTS_OVERLAP => Ok(Some(refusal)),
                _ => Err(refusal.into_error(DOING)),
            },
        }
    }

    /// Every entry of the bucket: its subject, when it was written (nanoseconds since 1970), its value.
    async fn entries(&self, linked: &Linked) -> Asked<Vec<(String, i64, Bytes)>> {
        let stream = self.names.bucket_stream();
        let config = json!({
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": self.names.bucket_subject(">"),
            "inactive_threshold": READER_IDLE_NANOS,
            "mem_storage": true,
            "num_replicas": 1,
        });
        let body = json!({ "stream_name": stream, "config": config });
        let made = linked.api::<ConsumerInfo>(DOING, format!("CONSUMER.CREATE.{stream}"), &body).await?;
        let reader = made.map_err(|refusal| refusal.into_error(DOING))?;
        let inbox = linked.client.new_inbox();
        let failed = |error: &dyn std::fmt::Display| {
            remote(RemoteFault::Unreachable, format_args!("{DOING}: {error}"))
        };
        let mut messages = linked.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        let mut left = reader.num_pending;
        let mut entries = Vec::new();
        while left > 0 && entries.len() <= CONTROL_HOSTS_MAX {
            let ask = json!({ "batch": NATS_PULL_MAX, "no_wait": true }).to_string();
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{}", reader.name);
            let asked = linked.client.publish_with_reply(subject, inbox.clone(), Bytes::from(ask)).await;
            asked.map_err(|error| failed(&error))?;
            let patience = Instant::now() + NATS_ANSWER_WAIT_MAX;
            for _ in 0..NATS_PULL_MAX {
                let message = tokio::select! {
                    message = tokio::time::timeout_at(patience, messages.next()) => message,
                    error = linked.lost() => return Err(error),
                };
                let message = message.map_err(|_| linked.late(DOING))?;
                let message = message.ok_or_else(|| failed(&"the subscription ended"))?;
                let Some(place) = message.reply.as_ref().and_then(|reply| Place::of(reply)) else {
                    // There are no more than that.
                    left = 0;
                    break;
                };
                left = place.pending;
                entries.push((message.subject.to_string(), place.published, message.payload));
                if left == 0 {
                    break;
                }
            }
        }
        let subject = format!("CONSUMER.DELETE.{stream}.{}", reader.name);
        // Otherwise the server removes it by itself.
        let _: std::result::Result<Value, _> = linked.api(DOING, subject, &json!({})).await?;
        Ok(entries)
    }

    async fn every_report(&self) -> Asked<Vec<(String, Duration, String)>> {
        let linked = self.link.linked().await?;
        let clock = self.names.bucket_subject("clock");
        // What is written last tells what time it is at the server.
        let put = self.put(&linked, &clock, None, Bytes::new()).await?;
        put.map_err(|refusal| refusal.into_error(DOING))?;
        let entries = self.entries(&linked).await?;
        let now = entries.iter().find(|(subject, ..)| *subject == clock).map_or(0, |(_, at, _)| *at);
        let mut reports = Vec::new();
        for (subject, at, value) in entries {
            let Some(host) = self.names.host_of(&subject) else { continue };
            let age = Duration::from_nanos(u64::try_from(now - at).unwrap_or(0));
            reports.push((host, age, String::from_utf8_lossy(&value).into_owned()));
        }
        reports.sort();
        reports.truncate(CONTROL_HOSTS_MAX);
        Ok(reports)
    }

    async fn remove_entry(&self, subject: &str) -> Asked<()> {
        let linked = self.link.linked().await?;
        let purge = format!("STREAM.PURGE.{}", self.names.bucket_stream());
        match linked.api::<Value>(DOING, purge, &json!({ "filter": subject })).await? {
            Err(refusal) if refusal.err_code != STREAM_NOT_FOUND => Err(refusal.into_error(DOING)),
            _ => Ok(()),
        }
    }

    /// The mark, and its revision: 0 when there is none.
    async fn known_mark(&self, linked: &Linked) -> Asked<(u64, Option<FleetMark>)> {
        let which = json!({ "last_by_subj": self.names.bucket_subject("mark") });
        let Some((revision, bytes)) = linked.message(&self.names.bucket_stream(), which).await? else {
            return Ok((0, None));
        };
        Ok((revision, serde_json::from_slice(&bytes).ok()))
    }
}

impl Board for NatsControl {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            check_report(host, report)?;
            let linked = self.link.linked().await?;
            let value = Bytes::copy_from_slice(report.as_bytes());
            let put = self.put(&linked, &self.names.report_subject(host), None, value).await?;
            put.map_err(|refusal| refusal.into_error(DOING))?;
            Ok(())
        }
        .boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        async move { Ok(self.every_report().await?) }.boxed()
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        let subject = self.names.report_subject(host);
        async move { Ok(self.remove_entry(&subject).await?) }.boxed()
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        let subject = self.names.bucket_subject("mark");
        async move { Ok(self.remove_entry(&subject).await?) }.boxed()
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        async move {
            let value = serde_json::to_vec(mark)
                .map_err(|error| BackendError::Failed { detail: format!("the mark: {error}") })?;
            let value = Bytes::from(value);
            let linked = self.link.linked().await?;
            for _ in 0..NATS_MARK_TURNS_MAX {
                let (revision, known) = self.known_mark(&linked).await?;
                if known.is_some_and(|known| known.version > mark.version) {
                    return Ok(());
                }
                let subject = self.names.bucket_subject("mark");
                match self.put(&linked, &subject, Some(revision), value.clone()).await? {
                    Ok(_) => return Ok(()),
                    // Somebody else was quicker.
                    Err(refusal) if refusal.err_code == WRONG_LAST_SEQUENCE => {}
                    Err(refusal) => return Err(refusal.into_error(DOING).into()),
                }
            }
            Err(remote(RemoteFault::Timeout, format_args!("{DOING}: others change the mark all the time"))
                .into())
        }
        .boxed()
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        async move {
            let linked = self.link.linked().await?;
            Ok(self.known_mark(&linked).await?.1)
        }
        .boxed()
    }
}
