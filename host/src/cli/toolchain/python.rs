//! Components of plugins in Python: an interpreter, the plugin and all that it imports in one file.
//!
//! What a module imports is loaded while the component is built; when it runs there are no files to import from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use super::{
    PYTHON, ProjectBuild, Say, ToolError, captured, copy_tree, fingerprint, installed_once, place, version_of,
};

/// The list of packages, beside the SDK.
const REQUIREMENTS: &str = "requirements.txt";
/// The tool that the list pins, for the name of the folder that it is installed in.
const TOOL: &str = "python-0.25.1";
const VENV_WAIT_MAX: Duration = Duration::from_secs(180);
/// How long the download may take. Closed networks hang rather than refuse.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(600);
/// A build takes 5 to 10 s, and several times that beside other builds.
const BUILD_WAIT_MAX: Duration = Duration::from_secs(300);
/// What the component begins with. It is made here, and puts the SDK's clocks in place before the plugin's own modules
/// ask for any.
const ENTRY: &str = "millrace_component";
/// A project's own packages, in pure Python.
const PACKAGES: &str = ".venv";
/// Imports that are told as being too late, at most.
const LATE_IMPORTS_TOLD_MAX: usize = 5;
/// Of a project's folders, so many levels are looked through for late imports.
const FOLDERS_DEEP_MAX: u32 = 8;

/// Builds the project's component to `out`.
pub fn build_python(b: &ProjectBuild<'_>, out: &Path, say: &mut dyn Say) -> Result<(), ToolError> {
    let (folder, module) = entry(b.entry)?;
    PYTHON.check()?;
    let tools = install(b, say)?;
    let scratch = Scratch::beside(out)?;
    let staged = scratch.path.join("project");
    stage(b.project, &staged)?;
    for import in late_imports(&staged) {
        say.say(&import);
    }
    // With these it has what it was granted; otherwise what the SDK puts in their place.
    let own = ["clock", "random", "env", "http", "read_dir"].into_iter().filter(|grant| b.grants(grant));
    let grants: String = own.map(|grant| format!("\"{grant}\", ")).collect();
    let text = format!(
        "from millrace import component\n\ncomponent.begin(({grants}))\nimport {module}\n\nHandler = component.handler()\n"
    );
    place(text.as_bytes(), &scratch.path.join("entry").join(format!("{ENTRY}.py")))?;
    let built = scratch.path.join("component.wasm");
    let mut command = Command::new(tools.join("bin/componentize-py"));
    command.arg("--quiet").arg("--wit-path").arg(b.wit).args(["--world", "processor", "componentize"]);
    if !b.wasi() {
        command.arg("--stub-wasi");
    }
    command.arg("--python-path").arg(scratch.path.join("entry"));
    if folder != Path::new("") {
        command.arg("--python-path").arg(staged.join(folder));
    }
    command.arg("--python-path").arg(&staged);
    command.arg("--output").arg(&built).arg(ENTRY);
    let packages = packages(b.project, &scratch.path)?;
    command.env("VIRTUAL_ENV", packages).env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    // Its own stack is of no use to the plugin's author, whose traceback stands above it.
    command.env("RUST_BACKTRACE", "0").env("PYTHONDONTWRITEBYTECODE", "1");
    say.say("building the component: an interpreter with the plugin in it");
    captured("componentize-py", &mut command, BUILD_WAIT_MAX)?;
    if !built.is_file() {
        return Err(ToolError::ComponentMissing { path: built });
    }
    fs::rename(&built, out).map_err(ToolError::file(out))
}

/// The entry's folder and module.
fn entry(entry: &str) -> Result<(&Path, &str), ToolError> {
    let path = Path::new(entry);
    let module = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".py"));
    let good = |module: &&str| {
        module.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && module.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
            && ![ENTRY, "millrace", "wit_world"].contains(module)
    };
    match (path.parent(), module.filter(good)) {
        (Some(folder), Some(module)) if path.is_relative() => Ok((folder, module)),
        _ => Err(ToolError::Entry {
            entry: entry.into(),
            needed: "module of the project, such as app.py or src/app.py",
        }),
    }
}

/// The tools' folder, filled. It is of one interpreter: another one makes another folder.
fn install(b: &ProjectBuild<'_>, say: &mut dyn Say) -> Result<PathBuf, ToolError> {
    let list = b.sdk.join(REQUIREMENTS);
    let wanted = fs::read(&list).map_err(ToolError::file(&list))?;
    let interpreter = version_of(PYTHON.program).unwrap_or_default();
    let dir = b.tools.join(format!("{TOOL}-{}", fingerprint(&[&wanted, interpreter.as_bytes()])));
    installed_once(&dir, say, &mut |dir, say| {
        say.say(&format!("installing componentize-py (46 MB, from PyPI) into {}", dir.display()));
        let mut venv = Command::new(PYTHON.program);
        venv.args(["-m", "venv"]).arg(dir);
        // Debian has it in a package of its own, and says so.
        captured("python3 -m venv", &mut venv, VENV_WAIT_MAX)?;
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary", ":all:"]);
        pip.args(["--disable-pip-version-check", "--no-input", "--quiet", "--requirement"]).arg(&list);
        captured("pip install", &mut pip, INSTALL_WAIT_MAX).map(drop).map_err(|cause| ToolError::Install {
            what: "componentize-py".into(),
            from: "PyPI".into(),
            cause: Box::new(cause),
        })
    })?;
    Ok(dir)
}

/// Copies what may be part of the component: everything that it is shown, the tool looks through, and what lies in a
/// project's folder for other ends can be large.
fn stage(project: &Path, staged: &Path) -> Result<(), ToolError> {
    fs::create_dir_all(staged).map_err(ToolError::file(staged))?;
    for found in fs::read_dir(project).map_err(ToolError::file(project))? {
        let found = found.map_err(ToolError::file(project))?;
        let (path, name) = (found.path(), found.file_name());
        let known = name.to_string_lossy();
        if known.starts_with('.') || matches!(&*known, "target" | "tests" | "node_modules" | "__pycache__") {
            continue;
        }
        let to = staged.join(&name);
        if path.is_dir() {
            copy_tree(&path, &to)?;
        } else if path.is_file() {
            fs::copy(&path, &to).map_err(ToolError::file(&path))?;
        }
    }
    Ok(())
}

/// A folder in the shape of a virtual environment, or the tool would take whatever this machine has installed.
fn packages(project: &Path, scratch: &Path) -> Result<PathBuf, ToolError> {
    let own = project.join(PACKAGES);
    if own.is_dir() {
        return Ok(own);
    }
    let none = scratch.join("none");
    let inside = none.join("lib/site-packages");
    fs::create_dir_all(&inside).map_err(ToolError::file(&inside))?;
    Ok(none)
}

/// Tells apart what is installed among the project's own packages, by the lists that their installer keeps.
pub fn fingerprint_of_packages(project: &Path) -> String {
    let inside = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|found| found.path());
    let mut lists = Vec::new();
    for library in inside(project.join(PACKAGES).join("lib")) {
        for package in inside(library.join("site-packages")) {
            if package.extension().is_some_and(|extension| extension == "dist-info") {
                // One without a list is known by its name, which has its version in it.
                let list = fs::read(package.join("RECORD")).unwrap_or_default();
                lists.push((package.to_string_lossy().into_owned().into_bytes(), list));
            }
        }
    }
    lists.sort();
    let parts: Vec<&[u8]> =
        lists.iter().flat_map(|(name, list)| [name.as_slice(), list.as_slice()]).collect();
    fingerprint(&parts)
}

/// Imports inside of functions, told with their places: they find what is loaded already, and nothing else.
fn late_imports(staged: &Path) -> Vec<String> {
    let mut modules = Vec::new();
    modules_below(staged, Path::new(""), FOLDERS_DEEP_MAX, &mut modules);
    modules.sort();
    let mut told = Vec::new();
    for module in modules {
        // What is no text, the interpreter will name.
        let Ok(text) = fs::read_to_string(staged.join(&module)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            let import =
                code.starts_with("import ") || code.starts_with("from ") && code.contains(" import ");
            if import && code.len() < line.len() && told.len() < LATE_IMPORTS_TOLD_MAX {
                told.push(format!(
                    "{}:{}: an import that is not at the top may find only what is loaded already: a component has no files",
                    module.display(),
                    number + 1
                ));
            }
        }
    }
    told
}

/// The SDK's own modules know what they do.
fn modules_below(root: &Path, relative: &Path, deep: u32, modules: &mut Vec<PathBuf>) {
    for found in fs::read_dir(root.join(relative)).into_iter().flatten().flatten() {
        let (path, inside) = (found.path(), relative.join(found.file_name()));
        if path.is_dir() {
            if deep > 0 && inside != Path::new("millrace") {
                modules_below(root, &inside, deep - 1, modules);
            }
        } else if path.extension().is_some_and(|extension| extension == "py") {
            modules.push(inside);
        }
    }
}

/// A folder that goes with the build.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// On the same file system as what is built, so that it can appear there in one step.
    fn beside(out: &Path) -> Result<Self, ToolError> {
        let mut name = out.as_os_str().to_owned();
        name.push(format!(".{}.build", process::id()));
        let path = PathBuf::from(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(ToolError::file(&path))?;
        }
        fs::create_dir_all(&path).map_err(ToolError::file(&path))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is in nobody's way: the next build of this process's number removes it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_module_of_the_project() {
        for (text, folder, module) in [("app.py", "", "app"), ("src/plugin_2.py", "src", "plugin_2")] {
            let found = entry(text).map_err(|error| error.to_string());
            assert_eq!(found, Ok((Path::new(folder), module)));
        }
        for text in ["", "app", "app.mjs", "my-app.py", "/app.py", "2.py", "millrace.py", "a/wit_world.py"] {
            let refused = entry(text).map_err(|error| error.to_string());
            let begins = format!("the entry `{text}` is no module");
            assert!(refused.is_err_and(|error| error.starts_with(&begins)), "{text}");
        }
    }
}
