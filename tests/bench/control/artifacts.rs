//! How quickly artifacts go into a repository and come out of it, each with its digest computed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use millrace::backends::file::FileArtifactRepository;
use millrace::backends::redis::{RedisAck, RedisArtifactRepository, RedisLink};
use millrace::clock::SystemClock;
use millrace::control::{ArtifactRepository, collected};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::control_events::digest_of;
use millrace_tests::redis_server::{Engine, RedisServer};

use crate::runtime;

const BYTES: usize = 8 << 20;
const ARTIFACTS: u64 = 4;
/// What comes at a time, as of an upload.
const PIECE_BYTES: usize = 64 << 10;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let mut values = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir()?;
        let folder = FileArtifactRepository::open(dir.path(), Arc::new(SystemClock))?;
        let (put, get) = runtime()?.block_on(rates(&folder))?;
        let server = RedisServer::durable(Engine::Redis);
        let link = RedisLink::new(server.url().parse()?, None, "fleet");
        let on_redis = RedisArtifactRepository::new(link, RedisAck::Auto);
        let (put_redis, get_redis) = runtime()?.block_on(rates(&on_redis))?;
        let measured = [put, get, put_redis, get_redis];
        eprintln!("  artifacts, round {}: {measured:.0?} MB/s", round + 1);
        for (values, value) in values.iter_mut().zip(measured) {
            values.push(value);
        }
    }
    let names = [
        "artifacts of 8 MiB put into a folder",
        "the same read from it",
        "artifacts of 8 MiB put into Redis, synced",
        "the same read from it",
    ];
    for (name, values) in names.into_iter().zip(values) {
        suite.record(Figure { name, unit: "MB/s", floor: None, better: Better::Higher }, &values)?;
    }
    Ok(())
}

/// Megabytes a second of putting and of getting, one artifact after the other.
async fn rates(repository: &dyn ArtifactRepository) -> Result<(f64, f64)> {
    let contents: Vec<(String, Bytes)> = (0..ARTIFACTS)
        .map(|number| {
            let content = content(number);
            (digest_of(&content), content)
        })
        .collect();
    let bytes_max = BYTES as u64;
    let begin = Instant::now();
    for (digest, content) in &contents {
        let pieces = (0..BYTES).step_by(PIECE_BYTES).map(|from| Ok(content.slice(from..from + PIECE_BYTES)));
        repository.put(stream::iter(pieces).boxed(), Some(digest), bytes_max).await?;
    }
    let put = per_second(begin);
    let begin = Instant::now();
    for (digest, content) in &contents {
        let (_, pieces) = repository.get(digest).await?;
        let got = collected(pieces, bytes_max).await?;
        ensure!(got.len() == content.len(), "an artifact came back with {} bytes", got.len());
    }
    Ok((put, per_second(begin)))
}

fn per_second(begin: Instant) -> f64 {
    (ARTIFACTS * BYTES as u64) as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

/// Nothing that could be packed.
fn content(number: u64) -> Bytes {
    let mut word = number;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.into()
}
