//! W18: what was acknowledged is on the disk, and every name stands for all of its content, whenever the power goes.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use millrace::backends::file::FileArtifactRepository;
use millrace::clock::SystemClock;
use millrace::control::ArtifactRepository as _;
use millrace_tests::conformance::artifacts::{all, content, read};
use millrace_tests::control_events::digest_of;
use millrace_tests::embedded::Client;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::powercut::{Shim, Unsynced, build_shim, read_journal, rebuild};
use millrace_tests::workspace_binary;
use reqwest::Method;

/// Something that was acknowledged when the journal was so long.
struct Acknowledged {
    journal_bytes: u64,
    digest: String,
    pin: Option<&'static str>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w18_at_every_power_cut_what_was_acknowledged_is_there_and_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("artifacts");
    std::fs::create_dir(&folder)?;
    let shim = Shim {
        library: build_shim(dir.path())?,
        folder: folder.clone(),
        journal: dir.path().join("journal"),
    };
    let setup =
        Setup::new(workspace_binary("millrace")).set(&format!("control.artifacts_dir={}", folder.display()));
    let mut host = HostProcess::start_as(shim.over(setup), &dir.path().join("store")).await?;
    let client = Client::new(&host.url)?;
    let mut acknowledged = Vec::new();
    for (bytes, pin) in [(100, None), (5_000, Some("board.active")), (300_000, None), (100, Some("again"))] {
        let bytes = content(bytes);
        let digest = digest_of(&bytes);
        let put = client.request(Method::PUT, &format!("/v1/artifacts/{digest}")).body(bytes);
        let answer = client.send(put).await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        acknowledged.push(Acknowledged {
            journal_bytes: shim.journal_bytes()?,
            digest: digest.clone(),
            pin: None,
        });
        if let Some(name) = pin {
            let path = format!("/v1/artifacts/{digest}/pins/{name}");
            assert_eq!(client.send(client.request(Method::PUT, &path)).await?.status, 204);
            acknowledged.push(Acknowledged { journal_bytes: shim.journal_bytes()?, digest, pin });
        }
    }
    host.kill()?;
    let records = read_journal(&shim.journal)?;
    // The folder as it was made, and then behind each record.
    for cut in 1..=records.len() {
        let seed = cut as u64;
        for unsynced in [Unsynced::Dropped, Unsynced::Torn(seed), Unsynced::Kept] {
            let target = dir.path().join("cut");
            rebuild(&records, cut, unsynced, &folder, &target, None)?;
            let end = records[cut - 1].end;
            let owed: Vec<_> = acknowledged.iter().filter(|one| one.journal_bytes <= end).collect();
            look(&target, &owed).await.map_err(|error| {
                error.context(format!("cut behind record {cut} of {}, {unsynced:?}", records.len()))
            })?;
            std::fs::remove_dir_all(&target)?;
        }
    }
    Ok(())
}

async fn look(dir: &Path, owed: &[&Acknowledged]) -> Result<()> {
    let artifacts = FileArtifactRepository::open(dir, Arc::new(SystemClock))?;
    anyhow::ensure!(std::fs::read_dir(dir.join("spool"))?.count() == 0, "leftovers stay");
    for digest in all(&artifacts).await {
        read(&artifacts, &digest).await?;
    }
    for one in owed {
        let info = artifacts.info(&one.digest).await?;
        let info = info.ok_or_else(|| anyhow::anyhow!("{} is lost", one.digest))?;
        if let Some(pin) = one.pin {
            anyhow::ensure!(info.pins.iter().any(|name| name == pin), "the pin {pin} is lost");
        }
    }
    Ok(())
}
