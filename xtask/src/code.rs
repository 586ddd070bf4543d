//! What tests have compiled guests to, and keep for each other.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Of all of it. A component with an engine in it has 40 MB of code.
const CODE_BYTES_MAX: u64 = 4 << 30;

/// Removes the oldest code beyond the bound: nobody else does, since tests share the folder.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        if path.extension().is_some_and(|extension| extension == "cwasm") {
            found.push((meta.modified()?, meta.len(), path));
        }
    }
    found.sort();
    let mut bytes: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, length, path) in found {
        if bytes <= CODE_BYTES_MAX {
            break;
        }
        bytes -= length;
        fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(())
}
