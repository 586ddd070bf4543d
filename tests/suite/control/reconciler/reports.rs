//! What the fleet hears of a host.

use millrace::backends::memory::MemoryFeed;
use millrace::control::report::HostReport;
use millrace::control::{Board as _, Reporter, ReporterParts};

use super::*;

/// A host that reports once in an hour, unless something happens.
fn reporting(scene: &mut Scene, board: &MemoryFeed) -> Arc<Reporter> {
    let clock = ManualClock::default();
    clock.set(NOW);
    let reporter = Arc::new(Reporter::new(ReporterParts {
        store: Arc::clone(&scene.store),
        board: Arc::new(board.clone()),
        keys: Believing::new(trust()),
        plugins: scene.plugins.clone(),
        clock: Arc::new(clock),
        host: "host-1".into(),
        labels: BTreeMap::from([("tier".into(), "edge".into())]),
        incarnation: "first".into(),
        every: Duration::from_secs(3_600),
    }));
    let (running, news) = (Arc::clone(&reporter), scene.observed.clone().unwrap());
    scene.running.spawn(async move { running.run(news, &CancellationToken::new()).await });
    reporter
}

async fn heard(board: &MemoryFeed, is_so: impl Fn(&HostReport) -> bool) -> HostReport {
    let begun = Instant::now();
    loop {
        let reports = board.reports().await.unwrap();
        let own = reports.iter().find(|(host, ..)| host == "host-1");
        if let Some(report) = own.map(|(_, _, text)| HostReport::parse(text).unwrap()).filter(&is_so) {
            return report;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: {reports:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_hears_soon_what_became_of_a_plugin() {
    let board = MemoryFeed::default();
    let mut scene = Scene::new();
    scene.start();
    let reporter = reporting(&mut scene, &board);
    let report = heard(&board, |_| true).await;
    assert_eq!((report.labels["tier"].as_str(), report.incarnation.as_str()), ("edge", "first"));
    scene.deploy("board 1", 1).await;
    let is_active = |report: &HostReport| {
        report.plugins.get("board").is_some_and(|told| told.phase == Phase::Active && told.revision == 1)
    };
    let report = heard(&board, is_active).await;
    assert_eq!(report.cursor, ControlVersion(1));
    assert_eq!(report.state_digest, reporter.report().await.unwrap().state_digest);
    scene.apply(about("board", Kind::Removed, removed(), 2)).await;
    heard(&board, |report| report.cursor == ControlVersion(2) && !is_active(report)).await;
}
