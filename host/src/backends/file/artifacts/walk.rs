//! Going over all that is stored, a folder of one prefix at a time.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use super::folder::{BESIDE, Folder};
use crate::backends::file::control::disk::failed;
use crate::control::{ArtifactInfo, Result, digest_hex};

/// In the order of digests, behind one.
pub(super) fn list(folder: &Folder, after: Option<&str>, limit: usize) -> Result<Vec<ArtifactInfo>> {
    let after = after.map(digest_hex).transpose()?.unwrap_or_default().to_owned();
    let mut found = Vec::new();
    each(folder, &after, |digest| {
        if found.len() >= limit {
            return Ok(false);
        }
        // It may have gone since its name was read.
        found.extend(folder.info(digest)?);
        Ok(true)
    })?;
    Ok(found)
}

pub(super) fn collect(folder: &Folder, older_than: Duration, dry_run: bool) -> Result<Vec<ArtifactInfo>> {
    let mut gone = Vec::new();
    each(folder, "", |digest| {
        let old = folder.info(digest)?.filter(|info| info.pins.is_empty());
        let old = old.filter(|info| folder.is_older(info, older_than));
        match old {
            Some(info) if dry_run => gone.push(info),
            // Looked at again, while nobody adds anything.
            Some(_) => gone.extend(folder.remove(digest, older_than)?),
            None => {}
        }
        Ok(true)
    })?;
    Ok(gone)
}

/// Removes pins and notes of content that is not there: a crash came between.
pub(super) fn remove_orphans(folder: &Folder) -> Result<()> {
    shards(folder, "", |shard| {
        let names = names(shard)?;
        for name in &names {
            let beside = name.rsplit_once('.').filter(|(hex, what)| is_hex(hex, 64) && BESIDE.contains(what));
            if let Some((hex, _)) = beside
                && !names.contains(hex)
            {
                folder.remove_orphan(&shard.join(hex))?;
            }
        }
        Ok(true)
    })
}

/// Calls for each digest behind one, until it has had enough.
fn each(folder: &Folder, after: &str, mut visit: impl FnMut(&str) -> Result<bool>) -> Result<()> {
    shards(folder, after, |shard| {
        for hex in names(shard)?.iter().filter(|name| is_hex(name, 64) && name.as_str() > after) {
            if !visit(&format!("sha256:{hex}"))? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Calls for each folder that holds content behind a digest, in order.
fn shards(folder: &Folder, after: &str, mut visit: impl FnMut(&Path) -> Result<bool>) -> Result<()> {
    let root = folder.root();
    let begins_behind = |prefix: &str| prefix >= &after[..prefix.len().min(after.len())];
    for first in names(&root)?.iter().filter(|name| is_hex(name, 2) && begins_behind(name)) {
        let upper = root.join(first);
        for second in names(&upper)?.iter().filter(|name| is_hex(name, 2)) {
            if begins_behind(&format!("{first}{second}")) && !visit(&upper.join(second))? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The names in a folder; none where there is no folder.
fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let read = || -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(BTreeSet::new());
            }
            Err(error) => return Err(error),
        };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    };
    read().map_err(|error| failed(dir, &error))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}
