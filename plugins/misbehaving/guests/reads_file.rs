//! Works on the file that an event's agg-id names, as its type says: `file.read`, `file.write`, `file.list`,
//! `file.remove`, or `file.hoard`, which opens it again and again and closes none. Needs the grant `read_dir`.

use std::fs;

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

static FILES: Table = Table::new("file_answers", &[Column::text("answer"), Column::text("error")]);

#[derive(Serialize)]
struct Answer {
    answer: String,
    error: String,
}

struct ReadsFile;

impl Processor for ReadsFile {
    fn manifest() -> Manifest {
        Manifest::new("reads-file", "1.0.0").grants(&["read_dir"]).tables(&[&FILES])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let path = event.agg_id();
        let answer = match event.event_type() {
            "file.write" => fs::write(path, "changed").map(|()| "written".into()),
            "file.remove" => fs::remove_file(path).map(|()| "removed".into()),
            "file.list" => list(path),
            "file.hoard" => hoard(path),
            _ => fs::read_to_string(path),
        };
        let answer = match answer {
            Ok(answer) => Answer { answer, error: String::new() },
            Err(error) => Answer { answer: String::new(), error: error.to_string() },
        };
        out.put(&FILES, path, 0, &answer)
    }
}

fn list(path: &str) -> std::io::Result<String> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names.join(" "))
}

fn hoard(path: &str) -> std::io::Result<String> {
    let files = (0..100_000).map(|_| fs::File::open(path)).collect::<std::io::Result<Vec<_>>>()?;
    Ok(format!("{} are open", files.len()))
}

millrace_guest::export!(ReadsFile);
