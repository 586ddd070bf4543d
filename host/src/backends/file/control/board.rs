//! The board of a feed in files: one file for each host, and the mark.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::disk::failed;
use super::log::{FileLog, json};
use crate::control::{FleetMark, Result, check_report};
use crate::event::Micros;
use crate::limits::{CONTROL_HOSTS_MAX, CONTROL_REPORT_BYTES_MAX, CONTROL_TEMPORARY_AGE_MAX};

/// What reports begin with while they are written.
const TEMPORARY: &str = ".report";
const MARK_BYTES_MAX: usize = 64 << 10;

impl FileLog {
    /// Not synced: after a power cut everybody says it again.
    pub(super) fn report(&self, host: &str, report: &str) -> Result<()> {
        check_report(host, report)?;
        let path = self.layout.hosts.join(format!("{host}.json"));
        let written = || {
            let mut file = tempfile::Builder::new();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            let mut file = file.prefix(TEMPORARY).permissions(mode).tempfile_in(&self.layout.hosts)?;
            io::Write::write_all(&mut file, report.as_bytes())?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        written().map_err(|e| failed(&path, &e))
    }

    pub(super) fn reports(&self, now: Micros) -> Result<Vec<(String, Duration, String)>> {
        let hosts = &self.layout.hosts;
        let now = now_in(hosts, now);
        let mut names = self
            .disk
            .list(hosts, CONTROL_HOSTS_MAX, |name, kind| {
                kind.is_file() && name.as_encoded_bytes().ends_with(b".json")
            })
            .map_err(|e| failed(hosts, &e))?;
        names.sort();
        let mut reports = Vec::new();
        for name in names {
            let Some(host) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            let path = hosts.join(&name);
            let read = || -> io::Result<Option<(Duration, String)>> {
                let Some(age) = age(&path, now)? else { return Ok(None) };
                let bytes = self.disk.read(&path, CONTROL_REPORT_BYTES_MAX)?;
                // One that was torn by a power cut is said again.
                Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(|report| (age, report)))
            };
            match read() {
                Ok(Some((age, report))) if check_report(host, &report).is_ok() && !report.is_empty() => {
                    reports.push((host.to_owned(), age, report));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => {}
                Err(error) => return Err(failed(&path, &error)),
            }
        }
        Ok(reports)
    }

    pub(super) fn forget(&self, host: &str) -> Result<()> {
        check_report(host, "")?;
        let path = self.layout.hosts.join(format!("{host}.json"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path, &error)),
            _ => Ok(()),
        }
    }

    pub(super) fn mark(&self) -> Result<Option<FleetMark>> {
        let path = &self.layout.mark;
        let bytes = self.disk.read(path, MARK_BYTES_MAX).map_err(|e| failed(path, &e))?;
        // One that cannot be read says nothing; the controller writes it again.
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub(super) fn forget_mark(&self) -> Result<()> {
        let path = &self.layout.mark;
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path, &error)),
            _ => Ok(()),
        }
    }

    /// Under the lock: between the look and the write nobody else writes one.
    pub(super) fn set_mark(&self, mark: &FleetMark) -> Result<()> {
        if self.mark()?.is_some_and(|known| known.version > mark.version) {
            return Ok(());
        }
        let path = &self.layout.mark;
        let written = json(mark).and_then(|bytes| self.disk.replace(&self.layout.staging, path, &bytes));
        written.map_err(|e| failed(path, &e))
    }

    /// Removes reports that somebody did not finish writing.
    pub(super) fn tidy_reports(&self, now: Micros) -> io::Result<()> {
        let now = now_in(&self.layout.hosts, now);
        let left = |name: &std::ffi::OsString, _| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        for name in self.disk.list(&self.layout.hosts, CONTROL_HOSTS_MAX, left)? {
            let path = self.layout.hosts.join(name);
            if age(&path, now)?.is_some_and(|age| age > CONTROL_TEMPORARY_AGE_MAX) {
                // Another process may be quicker.
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

/// What time it is to whoever gives the files of a folder theirs, which may be another machine. In a folder that this host
/// may only read it is this host's own time.
fn now_in(dir: &Path, own: Micros) -> SystemTime {
    let probe =
        || tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir)?.as_file().metadata()?.modified();
    let own = UNIX_EPOCH + Duration::from_micros(u64::try_from(own.0).unwrap_or(0));
    probe().unwrap_or(own)
}

/// How long ago a file was written; none when there is none.
fn age(path: &Path, now: SystemTime) -> io::Result<Option<Duration>> {
    let written = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?.modified()?,
    };
    Ok(Some(now.duration_since(written).unwrap_or_default()))
}
