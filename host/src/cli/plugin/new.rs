//! `millrace plugin new`.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::build::{failed, say};
use super::{embedded, project};
use crate::cli::toolchain::{self, Language};
use crate::cli::{CliError, Output};
use crate::processors::Manifest;

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// The plugin's name
    name: String,
    /// What it is written in
    #[arg(long, value_name = "LANGUAGE", value_parser = ["rust", "js", "python"])]
    lang: String,
    /// The project's folder, new or empty; without it the plugin's name
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &NewArgs, output: &mut Output) -> Result<(), CliError> {
    let name = args.name.as_str();
    if !Manifest::is_name(name) {
        return Err(CliError::usage(
            project::not_a_name(name),
            "choose another one, such as `order-counts`; it stands in addresses, metrics and names of files",
        ));
    }
    let language: Language = args.lang.parse().map_err(|why: String| CliError::usage(why, ""))?;
    let dir = args.dir.clone().unwrap_or_else(|| name.into());
    let taken = match fs::read_dir(&dir) {
        Ok(mut entries) => entries.next().is_some(),
        // Not there, which is right, or something that cannot be a folder, which writing tells.
        Err(_) => dir.exists(),
    };
    if taken {
        return Err(CliError::usage(
            format!("{} is there and not empty", dir.display()),
            "name a folder that is not there with --dir",
        ));
    }
    let files = embedded::template(language, name);
    let mut say = say();
    let sdk = embedded::unpack(language, &toolchain::tools_dir(), &mut say).map_err(|e| failed(&e))?;
    let mut files: Vec<_> = files.into_iter().filter(|(path, _)| path.as_os_str() != project::FILE).collect();
    files.push((project::FILE.into(), project::content(name, language).into_bytes()));
    embedded::write(&files, &dir).map_err(|e| failed(&e))?;
    toolchain::vendor(&sdk.sdk, &sdk.wit, &dir).map_err(|e| failed(&e))?;
    if args.json {
        return output.json(&json!({ "name": name, "language": language.name(), "dir": dir }));
    }
    let folder = dir.display();
    output.line(&format!(
        "{name} begins in {folder}. With a host that runs (`millrace serve`, in another terminal), go on with:"
    ))?;
    // As the README shows it: the events of its own tests make rows in a table with its name.
    for step in [
        format!("cd {}", shell_word(&folder.to_string())),
        "millrace plugin build".to_owned(),
        "millrace plugin test".to_owned(),
        "millrace plugin check".to_owned(),
        format!("millrace plugin deploy target/{name}.wasm"),
        "millrace publish tests/events.ndjson".to_owned(),
        format!("millrace query {}", name.replace('-', "_")),
    ] {
        output.line(&format!("  {step}"))?;
    }
    Ok(())
}

/// A path as a shell takes it for one word, and a program for a path.
fn shell_word(path: &str) -> String {
    // What begins so would be an option.
    let path = if path.starts_with('-') { format!("./{path}") } else { path.to_owned() };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-/".contains(letter);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_word_of_a_shell() {
        for (path, word) in [
            ("hello", "hello"),
            ("../a/day-sums_2.0", "../a/day-sums_2.0"),
            ("my dir", "'my dir'"),
            ("$HOME;ls", "'$HOME;ls'"),
            ("~", "'~'"),
            ("größe", "'größe'"),
            ("ada's dir", r"'ada'\''s dir'"),
            ("-p", "./-p"),
        ] {
            assert_eq!(shell_word(path), word);
        }
    }
}
