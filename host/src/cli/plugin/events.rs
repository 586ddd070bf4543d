//! Recorded events, as `millrace publish` takes them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::cli::CliError;
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::gateway::read_event;
use crate::limits::{EVENT_LINE_BYTES_MAX, TRIAL_EVENTS_BYTES_MAX, TRIAL_EVENTS_MAX};

/// Events of a file, and whether it had more than are tried.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) events: EventBatch,
    pub(super) cut: bool,
}

/// Reads NDJSON, packed where the name ends in `.gz`. The events get positions from 1 on; one without `at` happened in
/// 1970, so that it always happens at the same time.
pub(super) fn read(path: &Path) -> Result<Recorded, CliError> {
    let unreadable = |error: &std::io::Error| {
        CliError::failed(
            format!("{} cannot be read: {error}", path.display()),
            "write events into it, one JSON object a line, or name another file with --events",
        )
    };
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let whole: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = BufReader::new(whole.take(TRIAL_EVENTS_BYTES_MAX));
    let tenant = TenantId::new("default").map_err(|error| CliError::failed(error.to_string(), ""))?;
    let mut events = EventBatch::new(tenant);
    let (mut line, mut number, mut read_bytes) = (Vec::new(), 0_usize, 0_u64);
    loop {
        line.clear();
        let mut one = (&mut lines).take(EVENT_LINE_BYTES_MAX as u64 + 1);
        let bytes = one.read_until(b'\n', &mut line).map_err(|error| unreadable(&error))?;
        read_bytes += bytes as u64;
        if bytes == 0 {
            break;
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let cut = read_bytes >= TRIAL_EVENTS_BYTES_MAX || events.len() == TRIAL_EVENTS_MAX;
        if cut {
            return Ok(Recorded { events, cut });
        }
        let read = if line.len() > EVENT_LINE_BYTES_MAX {
            Err(format!("the line is longer than event_line_bytes_max = {EVENT_LINE_BYTES_MAX}"))
        } else {
            read_event(&mut events, line.trim_ascii(), Micros(0))
        };
        read.map_err(|why| {
            CliError::failed(
                format!("line {number} of {} is no event: {why}", path.display()),
                "write one JSON object a line: aggregate, agg_id, version, type, at, payload",
            )
        })?;
        let last = events.len() - 1;
        events.set_position(last, Position(events.len() as u64));
    }
    Ok(Recorded { events, cut: false })
}
