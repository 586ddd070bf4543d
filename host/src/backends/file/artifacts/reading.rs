//! Content on its way out, piece by piece.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use sha2::{Digest as _, Sha256};

use super::off_the_runtime;
use crate::backends::file::control::disk::failed;
use crate::control::{ByteStream, digest_of};
use crate::limits::ARTIFACT_PIECE_BYTES;

/// An open file of content. What it was opened as can be read to its end, also when it is removed meanwhile.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

pub(super) fn pieces(content: Content) -> ByteStream<'static> {
    unfold(Some(content), |content| async move {
        let mut content = content?;
        let read = off_the_runtime(move || {
            let piece = piece(&mut content.file).map_err(|error| failed(&content.path, &error))?;
            Ok((piece, content))
        });
        match read.await {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, content)) => Some((Ok(piece), Some(content))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

fn piece(file: &mut File) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(ARTIFACT_PIECE_BYTES);
    file.take(ARTIFACT_PIECE_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// The digest of what a file holds.
pub(super) fn digest(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(file, &mut hash)?;
    Ok(digest_of(hash))
}
