//! Claims about a host that is killed again and again: the result is that of a quiet run.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use millrace_tests::dump::dump;
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, relabelled};

const PLUGINS: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];
const KILLS: usize = 50;
/// Events in one upload: small enough that kills hit uploads in flight.
const UPLOAD_EVENTS: usize = 400;
const SWAP_EVENTS: usize = 2_000;

fn flights() -> Vec<Bytes> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/flight-board/data/flights-2013-01.ndjson.gz");
    let mut text = Vec::new();
    let file = std::fs::File::open(path).expect("the flights ship with the project");
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).expect("the file is whole");
    let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
    lines.chunks(UPLOAD_EVENTS).map(|chunk| Bytes::from(chunk.concat())).collect()
}

fn components() -> Vec<Bytes> {
    PLUGINS.iter().map(|name| std::fs::read(guest(name)).expect("the guest is built").into()).collect()
}

async fn deploy_all(host: &HostProcess, components: &[Bytes], label: &str) -> anyhow::Result<()> {
    for component in components {
        host.deploy(relabelled(component, label)).await?;
    }
    Ok(())
}

async fn quiet_run(data: &Path, uploads: &[Bytes]) -> String {
    let mut host = HostProcess::start(data).await.expect("the host starts");
    deploy_all(&host, &components(), "0").await.expect("the plugins deploy");
    for upload in uploads {
        host.publish(upload.clone()).await.expect("the upload is acknowledged");
    }
    host.settle().await.expect("the plugins catch up");
    assert!(host.terminate().expect("it can be asked to end"), "a drain ends with success");
    dump(data).expect("the store can be read")
}

/// Kills the host somewhere in every `uploads / KILLS` uploads, while an upload
/// is in flight, and swaps every plugin each `SWAP_EVENTS` events.
async fn stormy_run(data: &Path, uploads: &[Bytes]) -> String {
    let mut host = HostProcess::start(data).await.expect("the host starts");
    let components = components();
    deploy_all(&host, &components, "0").await.expect("the plugins deploy");
    let mut random = 0x5eed_u64;
    let mut kills = 0;
    for (index, upload) in uploads.iter().enumerate() {
        let swap = (index + 1) % (SWAP_EVENTS / UPLOAD_EVENTS) == 0;
        let kill = (index + 1) * KILLS / uploads.len() > index * KILLS / uploads.len();
        let label = index.to_string();
        let mut attempt = 0;
        loop {
            attempt += 1;
            assert!(attempt < 20, "an upload is acknowledged within 20 tries");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pid = host.pid();
            let killer = (kill && attempt == 1).then(|| {
                let wait = std::time::Duration::from_micros((random >> 33) % 12_000);
                std::thread::spawn(move || {
                    std::thread::sleep(wait);
                    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()
                })
            });
            let sent = async {
                host.publish(upload.clone()).await?;
                if swap {
                    deploy_all(&host, &components, &label).await?;
                }
                anyhow::Ok(())
            };
            let sent = sent.await;
            if let Some(killer) = killer {
                killer.join().expect("the killer ends").expect("kill runs");
                kills += 1;
                host.kill_and_start().await.expect("the host comes back");
            }
            if sent.is_ok() && !(kill && attempt == 1) {
                break;
            }
        }
    }
    assert_eq!(kills, KILLS);
    host.settle().await.expect("the plugins catch up");
    assert!(host.terminate().expect("it can be asked to end"), "a drain ends with success");
    dump(data).expect("the store can be read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_and_forty_swaps_leave_the_store_of_a_quiet_run() {
    let uploads = flights();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let quiet = quiet_run(&dir.path().join("quiet"), &uploads).await;
    let stormy = stormy_run(&dir.path().join("stormy"), &uploads).await;
    if quiet != stormy {
        let differing = quiet.lines().zip(stormy.lines()).find(|(a, b)| a != b);
        panic!("the dumps differ, first at {differing:?}");
    }
    assert!(quiet.contains("== rows_flights: 26968\n"), "the dump holds the flights");
}
