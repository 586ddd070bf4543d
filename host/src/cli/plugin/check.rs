//! `millrace plugin check`: what a host would say of a component, and whether it gives the same however its events come.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::build::{build, read_component};
use super::project::Project;
use super::workbench::Workbench;
use super::{events, project};
use crate::cli::{CliError, Exit, Output, printable};
use crate::error::Classify as _;
use crate::limits::{TRIAL_EVENTS_BYTES_MAX, TRIAL_EVENTS_MAX};
use crate::plugins::trial::{Finding, Fold, Proof, Prove};
use crate::plugins::{PluginSettings, WORLD_NAME};
use crate::processors::Manifest;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A component, or a project's folder
    #[arg(default_value = ".", value_name = "FILE|PROJECT")]
    what: PathBuf,
    /// What its operator would grant; without it, for a project, what plugin.toml asks for
    #[arg(long, value_name = "GRANTS", value_delimiter = ',')]
    grants: Option<Vec<String>>,
    /// Recorded events, as `millrace publish` takes them; without it, for a project, those of its tests
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What is known of a component.
#[derive(Debug, Default)]
struct Report {
    manifest: Option<Manifest>,
    imports: Vec<String>,
    findings: Vec<Finding>,
    events: usize,
    runs: usize,
    digest: Option<String>,
}

pub(super) fn run(args: &CheckArgs, output: &mut Output) -> Result<(), CliError> {
    let of_project = args.what.is_dir() || args.what.ends_with(project::FILE);
    let report = if of_project {
        let dir = if args.what.is_dir() { args.what.as_path() } else { folder_of(&args.what) };
        let project = Project::open(dir)?;
        let bench = Workbench::of_project(&project)?;
        let component = build(&project, &bench)?.component;
        let mut settings = project.settings();
        if let Some(grants) = &args.grants {
            settings.grants.clone_from(grants);
        }
        let recorded = args.events.clone().or_else(|| Some(project.events()).filter(|path| path.exists()));
        examine(&bench, &component, &settings, recorded.as_deref())?
    } else {
        let component = read_component(&args.what)?;
        let settings =
            PluginSettings { grants: args.grants.clone().unwrap_or_default(), ..PluginSettings::default() };
        examine(&Workbench::of_file()?, &component, &settings, args.events.as_deref())?
    };
    tell(args, &report, output)?;
    output.flush()?;
    let grave = report.findings.iter().filter(|finding| finding.grave).count();
    if grave == 0 {
        return Ok(());
    }
    let found = if grave == 1 {
        "one thing is not as it must be".into()
    } else {
        format!("{grave} things are not as they must be")
    };
    Err(CliError::new(Exit::Refused, found, "correct the plugin; each finding says what shows it"))
}

/// Where a file lies. One that is named alone lies in the folder that the command is given in.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn examine(
    bench: &Workbench,
    component: &[u8],
    settings: &PluginSettings,
    recorded: Option<&Path>,
) -> Result<Report, CliError> {
    let mut report = Report::default();
    let refused = |error: &crate::plugins::PluginError| Finding::grave(error.code(), error.to_string());
    match bench.examine(component) {
        Ok(manifest) => report.manifest = Some(manifest),
        Err(error) => {
            report.findings.push(refused(&error));
            return Ok(report);
        }
    }
    match bench.imports(component) {
        Ok(imports) => {
            if imports.reads_clock && !settings.grants.iter().any(|grant| grant == "clock") {
                report.findings.push(Finding::grave(
                    "clock",
                    "it imports a clock that it may not read: every call hands it one event, which costs much; tell \
                     time by the event's `at`, or ask for the grant `clock`",
                ));
            }
            report.imports = imports.foreign;
        }
        Err(error) => report.findings.push(refused(&error)),
    }
    let timely: Vec<&str> = ["clock", "random", "http", "read_dir"]
        .into_iter()
        .filter(|name| settings.grants.iter().any(|grant| grant == name))
        .collect();
    if !timely.is_empty() {
        report.findings.push(Finding::note(
            "grants",
            format!("with {} a replay need not give the same rows", timely.join(", ")),
        ));
    }
    let factory = match bench.load(component, settings) {
        Ok(factory) => factory,
        Err(error) => {
            report.findings.push(refused(&error));
            return Ok(report);
        }
    };
    let Some(recorded) = recorded else {
        let what = "there are no recorded events, so that it was not run: name a file with --events";
        report.findings.push(Finding::note("not_run", what));
        return Ok(report);
    };
    let recorded = events::read(recorded)?;
    if recorded.cut {
        let what = format!(
            "the events behind the first {} are left out (trial_events_max = {TRIAL_EVENTS_MAX}, \
             trial_events_bytes_max = {TRIAL_EVENTS_BYTES_MAX})",
            recorded.events.len()
        );
        report.findings.push(Finding::note("events_cut", what));
    }
    report.events = recorded.events.len();
    match Prove::default().run(&Fold::new(&*factory, &recorded.events)) {
        Ok(Proof { runs, findings, folded }) => {
            report.runs = runs;
            report.findings.extend(findings);
            report.digest = Some(folded.digest().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        Err(error) => report.findings.push(Finding::grave("load_failed", error.to_string())),
    }
    Ok(report)
}

fn tell(args: &CheckArgs, report: &Report, output: &mut Output) -> Result<(), CliError> {
    let ok = report.findings.iter().all(|finding| !finding.grave);
    if args.json {
        return output.json(&json!({
            "ok": ok,
            "plugin": report.manifest.as_ref().map(|manifest| &manifest.name),
            "version": report.manifest.as_ref().map(|manifest| manifest.version.to_string()),
            "world": WORLD_NAME,
            "grants": report.manifest.as_ref().map(|manifest| &manifest.grants),
            "imports": report.imports,
            "events": report.events,
            "runs": report.runs,
            "digest": report.digest,
            "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        }));
    }
    if let Some(manifest) = &report.manifest {
        let imports = if report.imports.is_empty() { "nothing".into() } else { report.imports.join(", ") };
        output.line(&printable(&format!("{} {}, {WORLD_NAME}", manifest.name, manifest.version)))?;
        output.line(&printable(&format!("  imports beyond its world: {imports}")))?;
    }
    for finding in &report.findings {
        let grave = if finding.grave { "wrong" } else { "note " };
        output.line(&format!("  {grave} {}: {}", finding.code, printable(&finding.message)))?;
        if let Some(events) = finding.events {
            output.line(&format!("        the first {events} events show it"))?;
        }
        if let Some(difference) = &finding.difference {
            output.line(&format!("        {}", printable(&difference.to_string())))?;
        }
    }
    if ok && report.runs > 0 {
        output.line(&format!(
            "  {} runs over {} events gave one result, {}",
            report.runs,
            report.events,
            report.digest.as_deref().unwrap_or_default()
        ))?;
    }
    Ok(())
}

fn finding(finding: &Finding) -> Value {
    json!({
        "code": finding.code,
        "grave": finding.grave,
        "message": finding.message,
        "events": finding.events,
        "difference": finding.difference.as_ref().map(|difference| json!({
            "place": difference.place, "one": difference.one, "other": difference.other,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_file_that_is_named_alone_lies_here() {
        for (file, folder) in
            [("plugin.toml", "."), ("./plugin.toml", "."), ("a/plugin.toml", "a"), ("/plugin.toml", "/")]
        {
            assert_eq!(folder_of(Path::new(file)).as_os_str(), folder, "{file}");
        }
    }
}
