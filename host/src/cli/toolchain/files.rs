//! Files of a project and of its SDK.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ToolError;

/// What a project has of the SDK beside itself.
const VENDORED: &str = "millrace";
/// In it: what it is a copy of, or that it is not whole. A folder without it is the author's own.
const STAMP: &str = "VERSION";
const NOT_WHOLE: &str = "not whole\n";
/// A copy of files has at most so many levels of folders.
const FOLDERS_DEEP_MAX: u32 = 16;

/// Brings `project/millrace` to what the SDK has in its own `millrace/` and the world's files, which come to lie
/// in `millrace/wit/`. Answers whether anything was older, which one of several at once does. What a project's author
/// changed in there goes when the SDK changes; a folder of that name that is no copy is refused.
pub fn vendor(sdk: &Path, wit: &Path, project: &Path) -> Result<bool, ToolError> {
    let source = sdk.join(VENDORED);
    let target = project.join(VENDORED);
    let stamp = format!("{}\n", fingerprint_of(&[("", &source), ("wit", wit)], &[], &|_| true)?);
    let is_current = || fs::read_to_string(target.join(STAMP)).is_ok_and(|present| present == stamp);
    if is_current() {
        return Ok(false);
    }
    // Until the end of this function. Some file systems have no locks of folders: there, builds must not begin at once.
    let folder = File::open(project).map_err(ToolError::file(project))?;
    let _ = folder.lock();
    if is_current() {
        return Ok(false);
    }
    clear(&target)?;
    copy_tree(&source, &target)?;
    let beside = target.join("wit");
    if !beside.exists() {
        copy_tree(wit, &beside)?;
    }
    // Last: a copy that says otherwise is made again.
    place(stamp.as_bytes(), &target.join(STAMP))?;
    Ok(true)
}

/// Makes room for a copy. From here on the folder has a stamp, so that one that is interrupted is known as a copy.
fn clear(copy: &Path) -> Result<(), ToolError> {
    let stamp = copy.join(STAMP);
    let entries = || fs::read_dir(copy).map_err(ToolError::file(copy));
    if copy.exists() && !stamp.is_file() && entries()?.next().is_some() {
        return Err(ToolError::Taken { path: copy.into() });
    }
    if copy.is_symlink() {
        // What it leads to may be of use elsewhere.
        fs::remove_file(copy).map_err(ToolError::file(copy))?;
    }
    fs::create_dir_all(copy).map_err(ToolError::file(copy))?;
    fs::write(&stamp, NOT_WHOLE).map_err(ToolError::file(&stamp))?;
    for entry in entries()? {
        let entry = entry.map_err(ToolError::file(copy))?;
        if entry.file_name() == STAMP {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().map_err(ToolError::file(&path))?.is_dir();
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(ToolError::file(&path))?;
    }
    Ok(())
}

/// Copies a folder's files over those that are there. Of a linked file, its content is copied.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), ToolError> {
    walk(from, &Look::default(), &mut |path, relative| {
        let target = to.join(relative);
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(ToolError::file(above))?;
        }
        fs::copy(path, &target).map(drop).map_err(ToolError::file(path))
    })
}

/// Copies a build folder's files with their times, by which the tool that built them knows what is up to date.
pub fn copy_built(from: &Path, to: &Path, is_part: &dyn Fn(&Path) -> bool) -> Result<(), ToolError> {
    walk(from, &Look::default(), &mut |path, relative| {
        if !is_part(relative) {
            return Ok(());
        }
        let target = to.join(relative);
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(ToolError::file(above))?;
        }
        let modified =
            fs::metadata(path).and_then(|about| about.modified()).map_err(ToolError::file(path))?;
        fs::copy(path, &target).map_err(ToolError::file(path))?;
        File::open(&target).and_then(|copy| copy.set_modified(modified)).map_err(ToolError::file(&target))
    })
}

/// Writes a file in one step: who looks sees the former one or this one.
pub fn place(bytes: &[u8], to: &Path) -> Result<(), ToolError> {
    if let Some(above) = to.parent() {
        fs::create_dir_all(above).map_err(ToolError::file(above))?;
    }
    let mut half = to.as_os_str().to_owned();
    half.push(format!(".{}.half", process::id()));
    fs::write(&half, bytes).and_then(|()| fs::rename(&half, to)).map_err(ToolError::file(to))
}

/// Tells contents apart, and is no defence against anybody: names of folders, stamps of copies.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        let length = part.len() as u64;
        for byte in length.to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Of all files below some folders, by their paths and contents; what tools leave behind is left out, and so is what is
/// named in `left_out` at the top of one, and what is no part by its path from there. Links are followed to files, and at
/// the top of a folder to other folders.
pub fn fingerprint_of(
    folders: &[(&str, &Path)],
    left_out: &[&str],
    is_part: &dyn Fn(&Path) -> bool,
) -> Result<String, ToolError> {
    let left_out: Vec<&str> = ["target"].iter().chain(left_out).copied().collect();
    let look = Look { left_out: &left_out, linked_folders: true };
    let mut files = Vec::new();
    for (name, folder) in folders {
        walk(folder, &look, &mut |path, relative| {
            if !is_part(relative) {
                return Ok(());
            }
            let bytes = fs::read(path).map_err(ToolError::file(path))?;
            files.push((Path::new(name).join(relative).to_string_lossy().into_owned().into_bytes(), bytes));
            Ok(())
        })?;
    }
    files.sort();
    let parts: Vec<&[u8]> =
        files.iter().flat_map(|(path, bytes)| [path.as_slice(), bytes.as_slice()]).collect();
    Ok(fingerprint(&parts))
}

/// Whether a file of a project in JavaScript or Python may be part of its component. Neither its tests nor what is
/// written for people is, so that a component that was tested stays the one that is deployed.
pub fn is_source(path: &Path) -> bool {
    let is_text = path.extension().is_some_and(|extension| extension == "md");
    !path.starts_with("tests") && path != Path::new("plugin.toml") && !is_text
}

type Visit<'a> = dyn FnMut(&Path, &Path) -> Result<(), ToolError> + 'a;

/// What counts at the top of a folder.
#[derive(Clone, Copy, Debug, Default)]
struct Look<'a> {
    /// Names of what is no part of it. Further down a folder may be called as it likes.
    left_out: &'a [&'a str],
    /// Whether links to folders are followed. Further down none are, so that there is an end.
    linked_folders: bool,
}

/// Each file below a folder with its path from there, also where it is a link. What tools leave behind is no part of an
/// SDK or a package.
fn walk(root: &Path, look: &Look<'_>, visit: &mut Visit<'_>) -> Result<(), ToolError> {
    below(root, Path::new(""), FOLDERS_DEEP_MAX, look, visit)
}

fn below(
    root: &Path,
    relative: &Path,
    deep: u32,
    look: &Look<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), ToolError> {
    let folder = root.join(relative);
    for entry in fs::read_dir(&folder).map_err(ToolError::file(&folder))? {
        let entry = entry.map_err(ToolError::file(&folder))?;
        let name = entry.file_name();
        if matches!(name.to_str(), Some(".git" | ".venv" | "__pycache__" | "node_modules"))
            || look.left_out.iter().any(|left| name == *left)
        {
            continue;
        }
        let (path, inside) = (entry.path(), relative.join(&name));
        let mut kind = entry.file_type().map_err(ToolError::file(&path))?;
        if kind.is_symlink() {
            // One that leads nowhere is nothing that could be built.
            let Ok(about) = fs::metadata(&path) else { continue };
            if about.is_dir() && (!look.linked_folders || leads_up(&path, root)) {
                continue;
            }
            kind = about.file_type();
        }
        if kind.is_file() {
            visit(&path, &inside)?;
        } else if kind.is_dir() && deep > 0 {
            below(root, &inside, deep - 1, &Look::default(), visit)?;
        }
    }
    Ok(())
}

/// Whether a link leads to a folder or to one above it, which has what is looked through in itself.
fn leads_up(link: &Path, folder: &Path) -> bool {
    match (fs::canonicalize(link), fs::canonicalize(folder)) {
        (Ok(target), Ok(folder)) => folder.starts_with(target),
        _ => true,
    }
}

/// A new file for this process alone, which ends with its handle.
pub(super) fn nameless() -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..16 {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("millrace-tool-{}-{number}", process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("there is no free name in the temporary folder"))
}
