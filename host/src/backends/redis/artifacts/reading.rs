//! Content on its way out, chunk by chunk.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use redis::Value;

use super::{RedisArtifactRepository, found_info, missing, odd};
use crate::backends::redis::faults::backend;
use crate::backends::redis::link::RedisLink;
use crate::backends::redis::scripts::{bytes, list, number, text};
use crate::control::{ArtifactInfo, ByteStream, ControlFeedError, Result, digest_hex, verified};
use crate::error::BackendError;

pub(super) async fn get(
    repository: &RedisArtifactRepository,
    digest: &str,
) -> Result<(ArtifactInfo, ByteStream<'static>)> {
    let digits = digest_hex(digest)?;
    let meta = repository.key(&format!("of:{digits}"));
    let mut commands = redis::pipe();
    commands.cmd("HMGET").arg(&meta).arg(&["bytes", "stored", "upload", "chunks"]);
    commands.cmd("SMEMBERS").arg(repository.key(&format!("pins:{digits}")));
    let (known, pins): (Value, Value) =
        repository.ask("reading what is known of an artifact", &commands).await?;
    let info = found_info(digits, &known, &pins).ok_or_else(|| missing(digest))?;
    let place = list(known).unwrap_or_default();
    let (Some(upload), Some(chunks)) = (place.get(2).and_then(text), place.get(3).and_then(number::<u64>))
    else {
        return Err(odd().into());
    };
    let reader = Reader {
        link: repository.link.clone(),
        digest: digest.to_owned(),
        upload: upload.as_bytes().to_vec(),
        chunk: repository.key(&format!("chunk:{upload}:")),
        meta,
        next: 0,
        chunks,
    };
    Ok((info, verified(digest.to_owned(), reader.stream())))
}

struct Reader {
    link: RedisLink,
    digest: String,
    upload: Vec<u8>,
    /// What the keys of its chunks begin with.
    chunk: Vec<u8>,
    meta: Vec<u8>,
    next: u64,
    chunks: u64,
}

impl Reader {
    fn stream(self) -> ByteStream<'static> {
        unfold(Some(self), |reader| async move {
            let mut reader = reader?;
            match reader.piece().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// The next chunk. A missing one counts as the end: the digest tells whether it is.
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        if self.next >= self.chunks {
            return Ok(None);
        }
        let key = [&self.chunk[..], self.next.to_string().as_bytes()].concat();
        self.next += 1;
        let mut commands = redis::pipe();
        commands.cmd("GET").arg(key);
        commands.cmd("HGET").arg(&self.meta).arg("upload");
        let (chunk, upload) = self.ask(&commands).await?;
        match bytes(&chunk) {
            Some(chunk) => Ok(Some(Bytes::copy_from_slice(chunk))),
            // It was collected meanwhile, and perhaps stored again.
            None if bytes(&upload) != Some(&self.upload[..]) => {
                Err(ControlFeedError::ArtifactMissing { digest: self.digest.clone() })
            }
            None => {
                self.next = self.chunks;
                Ok(None)
            }
        }
    }

    async fn ask(&self, commands: &redis::Pipeline) -> std::result::Result<(Value, Value), BackendError> {
        let mut linked = self.link.shared().await?;
        let answer = commands.query_async(&mut linked.connection).await;
        let answer = answer.map_err(|error| backend("reading an artifact", &error));
        self.link.ended(linked.number, answer).await
    }
}
