//! Artifacts on their way, and what is said of them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use futures_util::stream::unfold;
use indicatif::ProgressBar;
use reqwest::{Body, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{PullArgs, PushArgs, VerifyArgs};
use crate::cli::client::{Client, problem, refusal};
use crate::cli::keys::{read_signing_key, read_trust};
use crate::cli::progress::bytes_bar;
use crate::cli::{CliError, Output, printable};
use crate::clock::{Clock as _, SystemClock};
use crate::control::{ArtifactRef, BuildSignature, Signature, SigningKey, check_digest, digest_of};
use crate::limits::ARTIFACT_PIECE_BYTES;

#[derive(Debug, Serialize, Deserialize)]
struct Signatures {
    signatures: Vec<BuildSignature>,
}

pub(super) async fn push(args: &PushArgs, output: &mut Output) -> Result<(), CliError> {
    let key = args.sign.as_deref().map(read_signing_key).transpose()?;
    let client = Client::new(&args.connect)?;
    let (artifact, known) = store_file(&client, &args.file, args.again, !args.json).await?;
    let mut signed = Vec::new();
    if let (Some(key), Some(plugin)) = (&key, &args.plugin) {
        signed = sign_build(&client, plugin, &artifact, key).await?;
    }
    let ArtifactRef { digest, bytes, .. } = artifact;
    if let Some(name) = &args.pin {
        let address = client.address(&["v1", "artifacts", &digest, "pins", name], &[]);
        client.send(client.request(Method::PUT, address)).await?;
    }
    if args.json {
        return output.json(&json!({
            "digest": digest, "bytes": bytes, "known": known, "signatures": signed, "pinned_as": args.pin,
        }));
    }
    let done = if known { "was there already" } else { "is stored" };
    output.line(&format!("{digest} {done} ({bytes} bytes)"))?;
    for BuildSignature { plugin, key, .. } in signed {
        output.line(&format!("signed by {key} as a build of {plugin}"))?;
    }
    Ok(())
}

/// Stores a file unless it is there, or in any case with `again`. Answers it, and whether it was there.
pub(in crate::cli) async fn store_file(
    client: &Client,
    file: &Path,
    again: bool,
    show: bool,
) -> Result<(ArtifactRef, bool), CliError> {
    let (digest, bytes) = digest_file(file)?;
    let known = is_there(client, &digest).await?;
    if !known || again {
        send(client, file, &digest, bytes, show).await?;
    }
    Ok((ArtifactRef { digest, bytes, signatures: Vec::new() }, known))
}

/// Stores what is in memory and small, also where it is there: what was stored long ago may be collected at any time.
pub(in crate::cli) async fn send_bytes(client: &Client, content: Vec<u8>) -> Result<ArtifactRef, CliError> {
    let (digest, bytes) = (digest_of(Sha256::new_with_prefix(&content)), content.len() as u64);
    let request = client
        .request(Method::PUT, client.address(&["v1", "artifacts", &digest], &[]))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(content);
    client.send(request).await?;
    Ok(ArtifactRef { digest, bytes, signatures: Vec::new() })
}

/// Says with a build key that an artifact is a build of a plugin. Answers what was said.
pub(in crate::cli) async fn sign_build(
    client: &Client,
    plugin: &str,
    artifact: &ArtifactRef,
    key: &SigningKey,
) -> Result<Vec<BuildSignature>, CliError> {
    let signed = BuildSignature::of(plugin, &artifact.clone().built_by(plugin, key));
    let address = client.address(&["v1", "artifacts", &artifact.digest, "signatures"], &[]);
    let body = Signatures { signatures: signed.clone() };
    client.json::<Signatures>(client.request(Method::PUT, address).json(&body)).await?;
    Ok(signed)
}

/// Who has signed an artifact, and as a build of what.
pub(in crate::cli) async fn build_signatures(
    client: &Client,
    digest: &str,
) -> Result<Vec<BuildSignature>, CliError> {
    let found: Signatures = client.get(&["v1", "artifacts", digest, "signatures"], &[]).await?;
    Ok(found.signatures)
}

async fn is_there(client: &Client, digest: &str) -> Result<bool, CliError> {
    Ok(!matches!(stored_length(client, digest).await?, StoredLength::Missing))
}

/// What the host says of an artifact without sending it.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum StoredLength {
    Missing,
    Bytes(u64),
    /// It is there, and something on the way has taken its length.
    Unknown,
}

pub(in crate::cli) async fn stored_length(client: &Client, digest: &str) -> Result<StoredLength, CliError> {
    let request = client.request(Method::HEAD, client.address(&["v1", "artifacts", digest], &[]));
    let response = request.send().await.map_err(|error| client.unreachable(&error))?;
    match response.status() {
        status if status.is_success() => {
            let length =
                response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
            Ok(length.and_then(|text| text.parse().ok()).map_or(StoredLength::Unknown, StoredLength::Bytes))
        }
        StatusCode::NOT_FOUND => Ok(StoredLength::Missing),
        status => Err(refusal(&problem(response).await, status)),
    }
}

async fn send(client: &Client, file: &Path, digest: &str, bytes: u64, show: bool) -> Result<(), CliError> {
    let bar = bytes_bar(bytes, show);
    let source = tokio::fs::File::open(file).await.map_err(|error| unreadable(file, &error))?;
    let moving = bar.clone();
    let content = unfold(Some((source, moving)), |state| async move {
        use tokio::io::AsyncReadExt as _;
        let (mut source, bar) = state?;
        let mut piece = vec![0; ARTIFACT_PIECE_BYTES];
        match source.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                bar.inc(read as u64);
                Some((Ok(piece), Some((source, bar))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    let request = client
        .request(Method::PUT, client.address(&["v1", "artifacts", digest], &[]))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, bytes)
        .body(Body::wrap_stream(content));
    let sent = client.send(request).await;
    bar.finish_and_clear();
    sent.map(drop)
}

pub(super) async fn pull(args: &PullArgs, output: &mut Output) -> Result<(), CliError> {
    check(&args.digest)?;
    let client = Client::new(&args.connect)?;
    let unwritable = |error: std::io::Error| {
        CliError::failed(format!("{} cannot be written: {error}", args.output.display()), "name another file")
    };
    let dir = args.output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(dir).map_err(unwritable)?;
    let bytes =
        receive(&client, &args.digest, !args.json, |piece| file.write_all(piece).map_err(unwritable)).await?;
    file.as_file().sync_all().map_err(unwritable)?;
    file.persist(&args.output).map_err(|error| unwritable(error.error))?;
    let name = args.output.display().to_string();
    if args.json {
        return output.json(&json!({ "digest": args.digest, "bytes": bytes, "file": name }));
    }
    output.line(&format!("{} ({bytes} bytes) is in {name}", args.digest))
}

/// Reads an artifact to its end, and checks its digest; whoever takes the pieces must not believe them before.
pub(in crate::cli) async fn receive(
    client: &Client,
    digest: &str,
    show: bool,
    mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
) -> Result<u64, CliError> {
    let request = client.request(Method::GET, client.address(&["v1", "artifacts", digest], &[]));
    let mut response = client.send(request).await?;
    let bar: ProgressBar = bytes_bar(response.content_length().unwrap_or(0), show);
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let received = loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                hash.update(&piece);
                bytes += piece.len() as u64;
                bar.inc(piece.len() as u64);
                if let Err(error) = take(&piece) {
                    break Err(error);
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => {
                break Err(client.unreachable(&error).with_next_step(
                    "try again; if the host's log says that it is damaged, push it with --again",
                ));
            }
        }
    };
    bar.finish_and_clear();
    received?;
    let found = digest_of(hash);
    if found == digest {
        return Ok(bytes);
    }
    Err(CliError::failed(
        format!("what came for {digest} has digest {found}"),
        "push the artifact again, and look at what is between here and the host",
    ))
}

pub(super) async fn verify(args: &VerifyArgs, output: &mut Output) -> Result<(), CliError> {
    let trust = args.trust.as_deref().map(read_trust).transpose()?;
    let client = Client::new(&args.connect)?;
    let path = Path::new(&args.what);
    let digest = if path.is_file() { digest_file(path)?.0 } else { args.what.clone() };
    check(&digest)?;
    let bytes = receive(&client, &digest, !args.json, |_| Ok(())).await?;
    let found = build_signatures(&client, &digest).await?;
    if let (Some(trust), Some(plugin)) = (&trust, &args.plugin) {
        let ours = found.iter().filter(|signature| signature.plugin == *plugin);
        let signatures = ours.map(|one| Signature { key: one.key.clone(), signature: one.signature.clone() });
        let artifact = ArtifactRef { digest: digest.clone(), bytes, signatures: signatures.collect() };
        trust.check_artifact(plugin, &artifact, SystemClock.now().0).map_err(|error| {
            CliError::failed(
                printable(&error.to_string()),
                "sign it with `millrace artifact push --sign`, or trust its key with `millrace keys trust`",
            )
        })?;
    }
    if args.json {
        return output.json(&json!({
            "digest": digest, "bytes": bytes, "signatures": found, "trusted": trust.as_ref().map(|_| true),
        }));
    }
    output.line(&format!("{digest} is whole ({bytes} bytes)"))?;
    for BuildSignature { plugin, key, .. } in &found {
        output.line(&format!("signed by {} as a build of {}", printable(key), printable(plugin)))?;
    }
    match (&args.plugin, found.is_empty()) {
        (Some(plugin), _) => output.line(&format!("a trusted key says that it is a build of {plugin}")),
        (None, true) => output.line("nobody has signed it"),
        (None, false) => Ok(()),
    }
}

fn check(digest: &str) -> Result<(), CliError> {
    check_digest(digest).map_err(|_| {
        CliError::usage(
            format!(
                "`{}` is neither a file nor a digest",
                printable(&digest.chars().take(80).collect::<String>())
            ),
            "give sha256: and 64 lower-case hexadecimal digits; `millrace artifact ls` shows them",
        )
    })
}

/// A file's digest and size.
pub(in crate::cli) fn digest_file(path: &Path) -> Result<(String, u64), CliError> {
    let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !about.is_file() {
        // A pipe can be read once only, and a folder not at all.
        let sentence = format!("{} is not a plain file", path.display());
        return Err(CliError::usage(sentence, "name the file of a component"));
    }
    let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0_u64, vec![0; ARTIFACT_PIECE_BYTES]);
    loop {
        match file.read(&mut piece).map_err(|error| unreadable(path, &error))? {
            0 => return Ok((digest_of(hash), bytes)),
            read => {
                hash.update(&piece[..read]);
                bytes += read as u64;
            }
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(
        format!("{} cannot be read: {error}", path.display()),
        "look at the path and its permissions",
    )
}
