//! Artifacts on Redis or Valkey. `lua/artifacts/change.lua` says which keys there are.
//!
//! Content lies in chunks, so that no value is large. They are written under the name of their upload, and expire; the
//! script that makes an artifact of them takes the expiry away, all in one step. So nothing is seen of a put that did not
//! come to its end, and nothing of it stays. A reader whose artifact is collected meanwhile is told that it is missing.
//! Times are the server's.

mod reading;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use redis::Value;

use super::connect::Server;
use super::faults::{backend, remote};
use super::groups::Barrier;
use super::link::{Linked, RedisLink};
use super::options::{Durability, RedisAck};
use super::scripts::{ARTIFACT_CHANGE, ARTIFACT_REMOVE, Script, list, number, text};
use crate::control::{
    ArtifactInfo, ArtifactRepository, ByteStream, ControlFeedError, Intake, Result, check_artifact_name,
    check_limit, check_note, digest_hex,
};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    ARTIFACT_CHUNK_BYTES_MAX, ARTIFACT_KEEP_TRIES_MAX, ARTIFACT_NOTES_MAX, ARTIFACT_PINS_MAX,
    ARTIFACT_SCAN_MAX, ARTIFACT_UPLOAD_KEEP,
};

type Answered<T> = std::result::Result<T, BackendError>;

/// An [`ArtifactRepository`] on a server. Connects when it is first used.
#[derive(Debug)]
pub struct RedisArtifactRepository {
    link: RedisLink,
    ack: RedisAck,
    prefix: Vec<u8>,
    /// What an answer stands on, by the connection that it was looked up on.
    durability: Mutex<Option<(u64, Durability)>>,
    barrier: Barrier,
    upload_keep: Duration,
}

/// Chunks that are no artifact yet.
struct Upload {
    name: String,
    chunks: usize,
}

impl RedisArtifactRepository {
    /// Keys begin with the link's name in braces, and `:artifacts:`.
    pub fn new(link: RedisLink, ack: RedisAck) -> Self {
        let prefix = link.key("artifacts:");
        let barrier = Barrier::new(link.clone(), ("artifacts", "an artifact"));
        let upload_keep = ARTIFACT_UPLOAD_KEEP;
        Self { link, ack, prefix, durability: Mutex::default(), barrier, upload_keep }
    }

    /// With another time after which the chunks of a put that did not come to its end go.
    #[must_use]
    pub fn with_upload_keep(self, upload_keep: Duration) -> Self {
        Self { upload_keep, ..self }
    }

    fn key(&self, rest: &str) -> Vec<u8> {
        [&self.prefix[..], rest.as_bytes()].concat()
    }

    async fn run(
        &self,
        script: &Script,
        doing: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Answered<(Vec<Value>, Linked)> {
        let mut linked = self.link.shared().await?;
        let answer = script.run(&mut linked.connection, &[&self.prefix], fill).await;
        let answer = self.link.ended(linked.number, answer.map_err(|error| backend(doing, &error))).await?;
        Ok((list(answer).ok_or_else(odd)?, linked))
    }

    async fn ask<T: redis::FromRedisValue>(&self, doing: &str, commands: &redis::Pipeline) -> Answered<T> {
        let mut linked = self.link.shared().await?;
        let answer = commands.query_async(&mut linked.connection).await;
        self.link.ended(linked.number, answer.map_err(|error| backend(doing, &error))).await
    }

    /// What an answer of this connection's server can stand on. A server that does not keep what it takes is refused.
    async fn durability(&self, linked: &Linked) -> Answered<Durability> {
        let known = *self.durability.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, durability)) = known.filter(|(number, _)| *number == linked.number) {
            return Ok(durability);
        }
        let server = Server::look(&mut linked.connection.clone()).await;
        let durability = self.link.ended(linked.number, server).await?.durability(self.ack)?;
        *self.durability.lock().unwrap_or_else(PoisonError::into_inner) = Some((linked.number, durability));
        Ok(durability)
    }

    /// Changes something, and returns what came of it once it is durable.
    async fn change(&self, doing: &str, digits: &str, arguments: &[&[u8]]) -> Answered<Vec<String>> {
        self.durability(&self.link.shared().await?).await?;
        let (answer, linked) = self
            .run(&ARTIFACT_CHANGE, doing, |command| {
                command.arg(arguments[0]).arg(digits).arg(&arguments[1..]);
            })
            .await?;
        let durability = self.durability(&linked).await?;
        self.barrier.reached(durability, &linked).await?;
        answer.iter().map(|word| text(word).map(str::to_owned).ok_or_else(odd)).collect()
    }

    async fn take(
        &self,
        content: ByteStream<'_>,
        wanted: Option<&str>,
        bytes_max: u64,
    ) -> Result<ArtifactInfo> {
        // Before anything is written: nothing is taken that could not be acknowledged.
        self.durability(&self.link.shared().await?).await?;
        let mut upload = Upload { name: format!("{:032x}", rand::random::<u128>()), chunks: 0 };
        let taken = self.upload(&mut upload, content, wanted, bytes_max).await;
        let kept = match taken {
            Ok((digest, bytes)) => self.keep(&upload, &digest, bytes).await,
            Err(error) => Err(error),
        };
        if !matches!(kept, Ok((_, true))) {
            self.give_up(&upload).await;
        }
        Ok(kept?.0)
    }

    /// Writes chunks; answers the digest of them all and how many bytes there are.
    async fn upload(
        &self,
        upload: &mut Upload,
        mut content: ByteStream<'_>,
        wanted: Option<&str>,
        bytes_max: u64,
    ) -> Result<(String, u64)> {
        let mut intake = Intake::new(bytes_max);
        let mut waiting = BytesMut::new();
        while let Some(piece) = content.next().await {
            let piece = piece?;
            intake.count(&piece)?;
            intake.hash(&piece);
            waiting.extend_from_slice(&piece);
            while waiting.len() >= ARTIFACT_CHUNK_BYTES_MAX {
                let chunk = waiting.split_to(ARTIFACT_CHUNK_BYTES_MAX).freeze();
                self.write(upload, &chunk).await?;
            }
        }
        if !waiting.is_empty() {
            self.write(upload, &waiting).await?;
        }
        let bytes = intake.bytes();
        Ok((intake.end(wanted)?, bytes))
    }

    async fn write(&self, upload: &mut Upload, chunk: &[u8]) -> Answered<()> {
        let key = self.key(&format!("chunk:{}:{}", upload.name, upload.chunks));
        // Counted before: whether it was written is not known when the connection breaks.
        upload.chunks += 1;
        let mut commands = redis::pipe();
        let keep = u64::try_from(self.upload_keep.as_millis()).unwrap_or(u64::MAX).max(1);
        commands.cmd("SET").arg(key).arg(chunk).arg("PX").arg(keep).ignore();
        self.ask::<()>("storing a part of an artifact", &commands).await
    }

    /// Makes an artifact of an upload. False where it was there already.
    async fn keep(&self, upload: &Upload, digest: &str, bytes: u64) -> Result<(ArtifactInfo, bool)> {
        let digits = digest_hex(digest)?;
        let (chunks, length) = (upload.chunks.to_string(), bytes.to_string());
        let info = |stored: &str, pins: &[String]| {
            let mut pins = pins.to_vec();
            pins.sort_unstable();
            let stored_at = stored.parse().map_err(|_| odd())?;
            Ok::<_, BackendError>(ArtifactInfo { digest: digest.to_owned(), bytes, stored_at, pins })
        };
        let doing = "storing an artifact";
        let mut damaged = String::new();
        for _ in 0..ARTIFACT_KEEP_TRIES_MAX {
            let arguments = [
                &b"keep"[..],
                upload.name.as_bytes(),
                chunks.as_bytes(),
                length.as_bytes(),
                damaged.as_bytes(),
            ];
            let answer = self.change(doing, digits, &arguments).await?;
            let known = match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["kept", _, stored] => return Ok((info(stored, &[])?, true)),
                ["late"] => {
                    let detail =
                        format!("it took longer than {:?}, or parts of it were lost", self.upload_keep);
                    return Err(ControlFeedError::ArtifactBroken { detail });
                }
                ["known", known] => known.to_owned(),
                _ => return Err(odd().into()),
            };
            if !self.is_sound(digest).await? {
                tracing::warn!(
                    error.kind = "artifact_damaged",
                    error.blame = "host",
                    digest,
                    "a damaged artifact is replaced by the same content as it was"
                );
                damaged = known;
                continue;
            }
            let answer = self.change(doing, digits, &[b"again", known.as_bytes()]).await?;
            if let [what, _, stored, pins @ ..] = &answer[..]
                && what == "done"
            {
                return Ok((info(stored, pins)?, false));
            }
        }
        let detail = "others stored and removed the same all the while".into();
        Err(ControlFeedError::ArtifactBroken { detail })
    }

    async fn is_sound(&self, digest: &str) -> Result<bool> {
        let read = async {
            let (info, mut content) = self.get(digest).await?;
            while let Some(piece) = content.next().await {
                piece?;
            }
            Ok::<_, ControlFeedError>(info)
        };
        match read.await {
            Ok(_) => Ok(true),
            Err(ControlFeedError::ArtifactDamaged { .. } | ControlFeedError::ArtifactMissing { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What is left all the same expires.
    async fn give_up(&self, upload: &Upload) {
        if upload.chunks == 0 {
            return;
        }
        let mut commands = redis::pipe();
        let command = commands.cmd("UNLINK");
        for chunk in 0..upload.chunks {
            command.arg(self.key(&format!("chunk:{}:{chunk}", upload.name)));
        }
        command.ignore();
        if let Err(error) = self.ask::<()>("giving up an artifact", &commands).await {
            tracing::debug!(%error, "parts of an artifact stay until they expire");
        }
    }

    async fn remove(&self, older_than: Duration, dry_run: bool) -> Result<Vec<ArtifactInfo>> {
        let age = u64::try_from(older_than.as_micros()).unwrap_or(u64::MAX);
        let (mut gone, mut after) = (Vec::new(), String::new());
        loop {
            let (answer, _) = self
                .run(&ARTIFACT_REMOVE, "collecting artifacts", |command| {
                    command.arg(age).arg(u8::from(!dry_run)).arg(&after).arg(ARTIFACT_SCAN_MAX);
                })
                .await?;
            let [reached, found] = <[Value; 2]>::try_from(answer).map_err(|_| odd())?;
            for one in list(found).unwrap_or_default() {
                gone.push(collected_info(one).ok_or_else(odd)?);
            }
            after = text(&reached).ok_or_else(odd)?.to_owned();
            if after.is_empty() {
                return Ok(gone);
            }
        }
    }

    async fn infos(&self, digits: &[String]) -> Answered<Vec<ArtifactInfo>> {
        if digits.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = redis::pipe();
        for digits in digits {
            commands.cmd("HMGET").arg(self.key(&format!("of:{digits}"))).arg(&["bytes", "stored"]);
            commands.cmd("SMEMBERS").arg(self.key(&format!("pins:{digits}")));
        }
        let answers: Vec<Value> = self.ask("reading what is known of artifacts", &commands).await?;
        let pairs = digits.iter().zip(answers.chunks_exact(2));
        Ok(pairs.filter_map(|(digits, pair)| found_info(digits, &pair[0], &pair[1])).collect())
    }
}

/// None where there is nothing.
fn found_info(digits: &str, known: &Value, pins: &Value) -> Option<ArtifactInfo> {
    let known = list(known.clone())?;
    let names = match pins {
        Value::Array(names) | Value::Set(names) => names.as_slice(),
        _ => &[],
    };
    let mut pins: Vec<String> = names.iter().filter_map(text).map(str::to_owned).collect();
    pins.sort_unstable();
    Some(ArtifactInfo {
        digest: format!("sha256:{digits}"),
        bytes: number(known.first()?)?,
        stored_at: number(known.get(1)?)?,
        pins,
    })
}

fn collected_info(value: Value) -> Option<ArtifactInfo> {
    let parts = list(value)?;
    let [digits, bytes, stored] = parts.as_slice() else { return None };
    Some(ArtifactInfo {
        digest: format!("sha256:{}", text(digits)?),
        bytes: number(bytes)?,
        stored_at: number(stored)?,
        pins: Vec::new(),
    })
}

/// An answer that the scripts never give.
fn odd() -> BackendError {
    remote(RemoteFault::Unsupported, "artifacts: the answer has another shape")
}

fn missing(digest: &str) -> ControlFeedError {
    ControlFeedError::ArtifactMissing { digest: digest.to_owned() }
}

impl ArtifactRepository for RedisArtifactRepository {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn put<'a>(
        &'a self,
        content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>> {
        async move {
            digest.map(digest_hex).transpose()?;
            self.take(content, digest, bytes_max).await
        }
        .boxed()
    }

    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>> {
        reading::get(self, digest).boxed()
    }

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>> {
        async move {
            let digits = digest_hex(digest)?.to_owned();
            Ok(self.infos(&[digits]).await?.pop())
        }
        .boxed()
    }

    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>> {
        async move {
            let begin = match after.map(digest_hex).transpose()? {
                Some(digits) => format!("({digits}"),
                None => "-".to_owned(),
            };
            let mut commands = redis::pipe();
            let command = commands.cmd("ZRANGEBYLEX").arg(self.key("all")).arg(begin).arg("+");
            command.arg("LIMIT").arg(0).arg(limit);
            let (digits,): (Vec<String>,) = self.ask("listing artifacts", &commands).await?;
            Ok(self.infos(&digits).await?)
        }
        .boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            check_artifact_name("pin", name)?;
            let most = ARTIFACT_PINS_MAX.to_string();
            let arguments = [&b"pin"[..], name.as_bytes(), most.as_bytes()];
            let answer = self.change("pinning an artifact", digest_hex(digest)?, &arguments).await?;
            match answer.first().map_or("", String::as_str) {
                "done" => Ok(()),
                "full" => {
                    check_limit("artifact_pins_max", ARTIFACT_PINS_MAX as u64 + 1, ARTIFACT_PINS_MAX as u64)
                }
                "missing" => Err(missing(digest)),
                _ => Err(odd().into()),
            }
        }
        .boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            check_artifact_name("pin", name)?;
            let key = self.key(&format!("pins:{}", digest_hex(digest)?));
            let mut commands = redis::pipe();
            commands.cmd("SREM").arg(key).arg(name).ignore();
            Ok(self.ask::<()>("unpinning an artifact", &commands).await?)
        }
        .boxed()
    }

    fn collect(&self, older_than: Duration, dry_run: bool) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>> {
        self.remove(older_than, dry_run).boxed()
    }

    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>> {
        async move {
            check_note(name, &note)?;
            let most = ARTIFACT_NOTES_MAX.to_string();
            let arguments = [&b"attach"[..], name.as_bytes(), &note, most.as_bytes()];
            let answer = self.change("noting beside an artifact", digest_hex(digest)?, &arguments).await?;
            match answer.first().map_or("", String::as_str) {
                "done" => Ok(()),
                "full" => check_limit(
                    "artifact_notes_max",
                    ARTIFACT_NOTES_MAX as u64 + 1,
                    ARTIFACT_NOTES_MAX as u64,
                ),
                "taken" => {
                    Err(ControlFeedError::NoteTaken { digest: digest.to_owned(), name: name.to_owned() })
                }
                "missing" => Err(missing(digest)),
                _ => Err(odd().into()),
            }
        }
        .boxed()
    }

    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>> {
        async move {
            let digits = digest_hex(digest)?;
            let mut commands = redis::pipe();
            commands.cmd("EXISTS").arg(self.key(&format!("of:{digits}")));
            commands.cmd("HGETALL").arg(self.key(&format!("notes:{digits}")));
            let (exists, notes): (bool, Vec<(String, Vec<u8>)>) =
                self.ask("reading notes beside an artifact", &commands).await?;
            if !exists {
                return Err(missing(digest));
            }
            let mut notes: Vec<_> = notes.into_iter().map(|(name, note)| (name, Bytes::from(note))).collect();
            notes.sort();
            Ok(notes)
        }
        .boxed()
    }
}
