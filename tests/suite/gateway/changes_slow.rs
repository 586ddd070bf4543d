//! A client of conflated changes that reads nothing for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millrace::event::{Event, EventBatch, TenantId};
use millrace::limits::CHANGE_QUEUE_BYTES_MAX;
use millrace::streams::EventLog as _;
use serde_json::Value;

use super::changes::{declared, follow_on, publish};
use super::rig::Rig;

const AGGREGATES: u64 = 4;
const PADDING: usize = 200 << 10;
/// Many times what its queue and the sockets hold.
const PUBLISHED: usize = 12 * CHANGE_QUEUE_BYTES_MAX;

/// What a client knows, taken from what came to it.
#[derive(Debug, Default)]
struct Known {
    versions: BTreeMap<String, u64>,
    place: u64,
    gaps: usize,
}

impl Known {
    /// Takes in a frame: its id, what it is called, and its data. At a gap the state is read again, as old as it may be.
    fn take(&mut self, place: u64, name: &str, data: &Value, at: impl Fn(u64) -> BTreeMap<String, u64>) {
        match name {
            "ready" | "progress" => {}
            "gap" => {
                assert_eq!(data["code"], "change_subscriber_overflow", "{data}");
                assert!(place >= self.place, "the gap is behind what came: {place} after {}", self.place);
                self.gaps += 1;
                self.versions = at(place);
            }
            "asset.updated" => {
                let agg_id = data["agg_id"].as_str().expect("an id").to_owned();
                let version = data["version"].as_u64().expect("a version");
                assert!(place > self.place, "{agg_id}: {place} after {}", self.place);
                let former = self.versions.insert(agg_id.clone(), version).unwrap_or_default();
                assert!(version > former, "{agg_id}: version {version} after {former}");
                assert_eq!(version % 2, 0, "the latest of its window: {agg_id} {version}");
            }
            other => panic!("{other}: {data}"),
        }
        self.place = place;
    }
}

/// Everything that was published: position, aggregate, version.
#[derive(Debug, Default)]
struct Published(Vec<(u64, String, u64)>);

impl Published {
    /// The state as of a position.
    fn at(&self, position: u64) -> BTreeMap<String, u64> {
        let until = self.0.iter().filter(|(at, ..)| *at <= position);
        until.map(|(_, agg_id, version)| (agg_id.clone(), *version)).collect()
    }

    /// The next two versions of an aggregate in one append, the latter of them large.
    async fn two_more(&mut self, rig: &Rig, agg_id: &str, padding: &str) {
        let last = self.at(u64::MAX).get(agg_id).copied().unwrap_or_default();
        let mut batch = EventBatch::new(TenantId::new("default").expect("a tenant"));
        for (version, payload) in [(last + 1, "{}"), (last + 2, padding)] {
            let event = Event {
                aggregate: "asset",
                agg_id,
                version,
                event_type: "asset.updated",
                payload: payload.as_bytes(),
                ..Event::default()
            };
            batch.push(&event).expect("a valid event");
        }
        let appended = rig.store.append(batch).await.expect("appended");
        for (appended, version) in appended.iter().zip(last + 1..) {
            self.0.push((appended.position.0, agg_id.to_owned(), version));
        }
    }
}

fn counted(metrics: &PrometheusHandle, name: &str) -> f64 {
    let shown = metrics.render();
    let line = shown.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

#[tokio::test]
async fn c32_sn9_sn22_a_conflated_client_that_reads_late_has_the_latest_of_each_and_never_goes_back() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with(|options| {
        options.sse_heartbeat = Duration::from_millis(20);
        // However long it takes to publish what it does not read.
        options.write_wait_max = Duration::from_secs(600);
    });
    let rig = declared(rig.await).await;
    let path = "/v1/changes/asset/tenant?window_ms=1&after=oldest";
    let mut client = follow_on(rig.connect_narrow().await, path, "").await;
    let (mut seen, mut published) = (String::new(), Published::default());
    client.read_until(&mut seen, "event: ready").await;
    published.two_more(&rig, "A0", "{}").await;
    client.read_until(&mut seen, "\"version\":2,").await;

    // It reads nothing now.
    let padding = format!("{{\"padding\":\"{}\"}}", "x".repeat(PADDING));
    let (mut bytes, before) = (0, seen.len());
    let gaps = || counted(&metrics, "millrace_change_gaps_total{cause=\"overflow\"}");
    while bytes < PUBLISHED || gaps() < 3.0 {
        let round = published.0.len() as u64 / 2;
        assert!(bytes < 10 * PUBLISHED, "nothing is ever left out");
        published.two_more(&rig, &format!("A{}", round % AGGREGATES), &padding).await;
        bytes += padding.len();
        let waiting = counted(&metrics, "millrace_changes_pending");
        assert!(waiting <= AGGREGATES as f64, "{waiting} events wait for the end of a window");
    }
    let told = gaps();
    // Of another aggregate. The client's place is there once all before it was delivered, or told of.
    rig.append("default", 1).await;
    let (epoch, newest) = (rig.store.epoch().0, rig.store_newest());
    client.read_until(&mut seen, &format!("event: progress\nid: {epoch}.{newest}\n")).await;

    let got = seen.len() - before;
    assert!(got < bytes / 2, "of {bytes} bytes, nobody kept all: {got}");
    let (mut known, mut place, mut name) = (Known::default(), 0, "");
    for line in seen.lines() {
        if let Some(id) = line.strip_prefix("id: ") {
            let position = id.strip_prefix(&format!("{epoch}.")).expect("a place of this log");
            place = position.parse().expect("a position");
        } else if let Some(event) = line.strip_prefix("event: ") {
            name = event;
        } else if let Some(data) = line.strip_prefix("data: ") {
            let data = serde_json::from_str(data).expect("JSON");
            known.take(place, name, &data, |position| published.at(position));
        }
    }
    assert_eq!(known.versions, published.at(u64::MAX), "it ends with the latest of each");
    assert!(known.versions["A0"] > 100, "texts would order them otherwise: {known:?}");
    // One mark stands for all that was left out since the one before.
    assert!((1..).contains(&known.gaps) && (known.gaps as f64) < told, "{} of {told}", known.gaps);
    // And it goes on with what changes.
    publish(&rig, "A0", 9_999).await;
    client.read_until(&mut seen, "\"version\":9999,").await;
    rig.stop().await;
}
