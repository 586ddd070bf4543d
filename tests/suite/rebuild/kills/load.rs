//! The load of a host that is killed, and what must be seen of it. From the beginning of a rebuild until it has taken
//! over, before the host's end and after it, the events of each of two tenants are published in uploads of 400, each
//! right behind the answer to the one before; otherwise they come 20 at a time. Three viewers of each tenant have a
//! window each, two over SSE and one over a WebSocket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use millrace::event::TenantId;
use millrace::live::{LiveQuery, Mode};
use millrace::tables::Query;
use millrace_tests::embedded::Client;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::viewer::Viewer;
use reqwest::{Method, Response};
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

pub(super) const TENANTS: [&str; 2] = ["one", "two"];
const TABLE: &str = "counters";
/// More than most windows have rows, so that rows enter and leave them.
const KEYS: u64 = 12;
const TYPES: [&str; 3] = ["added", "changed", "seen"];
/// Of one upload at the full rate. The next one follows its answer at once.
const UPLOAD: u64 = 400;
/// Events of a tenant at the full rate, in each life of the host: far more than a rebuild takes to its end.
pub(super) const FULL: u64 = 400_000;
/// Of one upload otherwise, and how long its publisher waits before it.
const FEW: u64 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Windows after which a viewer breaks off and comes back with its last id.
const WINDOWS_AT_ONCE: usize = 100;
const AGAIN: Duration = Duration::from_millis(5);
/// A host that has started knows nothing of what its former process told, and tells all. Nobody else does, but to a viewer
/// that is too slow for its machine.
const PROCESSES: usize = 2;

/// A token of a tenant, who may do everything.
fn token(tenant: &str) -> String {
    format!("the-token-of-{tenant}")
}

/// The same setup for these tenants. Their tokens lie in a file beside the store.
pub(super) fn with_tenants(mut setup: Setup, data: &Path) -> Result<Setup> {
    let tokens = TENANTS.map(|tenant| {
        let rights = r#"["publish", "read", "admin"]"#;
        let token = token(tenant);
        // Who has a name can take part in what is said on channels.
        format!(
            "[[auth.tokens]]\nname = \"{tenant}\"\ntoken = \"{token}\"\ntenant = \"{tenant}\"\nrights = {rights}\n"
        )
    });
    let config = data.with_extension("toml");
    std::fs::write(&config, tokens.concat())?;
    setup.args.extend(["--config".into(), OsString::from(config)]);
    Ok(setup)
}

/// One of each tenant.
pub(super) fn clients(host: &HostProcess) -> Result<Vec<Client>> {
    let client = Client::new(host.url.clone())?;
    TENANTS.iter().map(|tenant| client.with_token(&token(tenant))).collect()
}

/// The events of a tenant by their numbers. Tenants have the same keys, and not the same events of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    salt: u64,
    /// So many of the first ones have a key each, and none of the others'.
    single: u64,
}

impl Events {
    pub(super) fn new(tenant: usize, single: u64) -> Self {
        Self { salt: tenant as u64 * 1_000_003, single }
    }

    fn event(self, number: u64) -> (String, &'static str) {
        let salted = number + self.salt;
        let event_type = TYPES[usize::try_from(salted % 3).expect("small")];
        if number < self.single {
            return (format!("single-{number}"), event_type);
        }
        // Nearly level, so that rows change places all the time.
        let mixed = salted.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (format!("key-{:02}", mixed % KEYS), event_type)
    }

    pub(super) fn upload(self, numbers: Range<u64>) -> String {
        numbers.fold(String::new(), |text, number| {
            let (agg_id, event_type) = self.event(number);
            let line = json!({
                "aggregate": "thing", "agg_id": agg_id, "version": number + 1, "type": event_type,
                "at": "2013-01-01T00:00:00Z", "payload": {},
            });
            text + &line.to_string() + "\n"
        })
    }
}

/// Publishes the events of a tenant, one upload behind the other.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    client: Client,
    events: Events,
    /// Events that are acknowledged.
    done: Arc<AtomicU64>,
    /// Up to this one it goes at the full rate.
    full: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Publisher {
    /// Of whose events so many are published already.
    pub(super) fn new(client: Client, events: Events, done: u64) -> Self {
        Self { client, events, done: Arc::new(done.into()), full: Arc::default(), stop: Arc::default() }
    }

    /// Events that are acknowledged: all there are, once it has ended.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Has it publish so many more at the full rate.
    pub(super) fn hurry(&self, events: u64) {
        self.full.store(self.done() + events, Ordering::SeqCst);
    }

    /// There are more to be published so.
    pub(super) fn hurries(&self) -> bool {
        self.done() < self.full.load(Ordering::SeqCst)
    }

    /// Has it end once its upload is acknowledged.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub(super) async fn run(self) {
        while !self.stop.load(Ordering::SeqCst) {
            let from = self.done();
            let count = if self.hurries() {
                UPLOAD
            } else {
                tokio::time::sleep(PAUSE).await;
                FEW
            };
            let upload = Bytes::from(self.events.upload(from..from + count));
            // What has no answer is published again.
            while !self.is_taken(upload.clone(), count).await {
                tokio::time::sleep(AGAIN).await;
            }
            self.done.store(from + count, Ordering::SeqCst);
        }
    }

    async fn is_taken(&self, upload: Bytes, count: u64) -> bool {
        self.client.publish(upload).await.is_ok_and(|answers| answers.len() as u64 == count)
    }
}

/// How the rows of a window are in order.
#[derive(Clone, Copy, Debug)]
enum By {
    MostEvents,
    FewestEvents,
    Key,
}

/// A window that somebody watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    by: By,
    /// Rows with so many events, or fewer, are none of it.
    beyond: u64,
    limit: usize,
    /// It is watched over a WebSocket, and not over SSE.
    socket: bool,
}

/// The last one has all rows but those of single events.
pub(super) const VIEWS: [View; 3] = [
    View { by: By::MostEvents, beyond: 0, limit: 8, socket: false },
    View { by: By::FewestEvents, beyond: 1, limit: 5, socket: true },
    View { by: By::Key, beyond: 0, limit: 12, socket: false },
];

/// Events and last type by key.
type Counts = BTreeMap<String, (u64, &'static str)>;

impl View {
    /// As it is asked for in an address.
    fn parameters(self) -> String {
        let order = match self.by {
            By::MostEvents => "&order=events:desc",
            By::FewestEvents => "&order=events:asc",
            By::Key => "",
        };
        format!("where=events:gt:{}&limit={}{order}", self.beyond, self.limit)
    }

    /// As it is asked for in a message.
    fn query(self) -> Json {
        let sort = match self.by {
            By::MostEvents => json!([{ "column": "events", "desc": true }]),
            By::FewestEvents => json!([{ "column": "events", "desc": false }]),
            By::Key => json!([]),
        };
        let beyond = json!({ "column": "events", "op": "gt", "value": self.beyond });
        json!({ "table": TABLE, "where": [beyond], "sort": sort, "limit": self.limit })
    }

    /// The keys of its rows where these are all there are. Rows with as many events are in the order of their keys.
    fn keys(self, counts: &Counts) -> Vec<&str> {
        let place = |events: u64| match self.by {
            By::MostEvents => u64::MAX - events,
            By::FewestEvents => events,
            By::Key => 0,
        };
        let rows = counts.iter().filter(|(_, (events, _))| *events > self.beyond);
        let mut rows: Vec<(u64, &str)> =
            rows.map(|(key, (events, _))| (place(*events), key.as_str())).collect();
        rows.sort_unstable();
        rows.into_iter().take(self.limit).map(|(_, key)| key).collect()
    }
}

/// A row as it is shown. The old version has no second column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    key: String,
    events: u64,
    last_type: Option<Json>,
}

/// Rows of a window or a page.
fn rows(of: &[Json]) -> Result<Vec<Row>> {
    let row = |row: &Json| {
        let key = row["key"].as_str().context("a row has a key")?.to_owned();
        let events = row["events"].as_u64().with_context(|| format!("a row has a count: {row}"))?;
        Ok(Row { key, events, last_type: row.get("last_type").cloned() })
    };
    of.iter().map(row).collect()
}

/// A window that somebody was shown, and what it is exact at.
#[derive(Clone, Debug)]
struct Shown {
    revision: u64,
    rows: Vec<Row>,
    /// It was told whole, and not by what is different, although the viewer was not too slow.
    anew: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fold {
    Old,
    New,
}

impl Shown {
    fn fold(&self) -> Result<Fold> {
        let with = self.rows.iter().filter(|row| row.last_type.is_some()).count();
        match with {
            0 => Ok(Fold::Old),
            all if all == self.rows.len() => Ok(Fold::New),
            _ => bail!("rows of both versions at once: {self:?}"),
        }
    }
}

/// What comes of a window until somebody breaks off.
enum Frames {
    /// With what has come of the next event.
    Sse(Box<Response>, Vec<u8>),
    Socket(Box<WebSocketStream<TcpStream>>),
}

impl Frames {
    /// One frame or more that came together. None where it was cut off.
    async fn next(&mut self) -> Result<Option<Vec<Json>>> {
        match self {
            Self::Sse(stream, rest) => loop {
                let Some(at) = rest.windows(2).position(|two| two == b"\n\n") else {
                    match stream.chunk().await {
                        Ok(Some(chunk)) => rest.extend_from_slice(&chunk),
                        _ => return Ok(None),
                    }
                    continue;
                };
                let event: Vec<u8> = rest.drain(..at + 2).collect();
                let event = String::from_utf8(event)?;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                let Some(data) = field("data: ") else { continue };
                if field("event: ") == Some("error") {
                    return Ok(None);
                }
                let frame: Json = serde_json::from_str(data)?;
                ensure!(field("id: ") == frame["stream_id"].as_str(), "another id than its frame's: {event}");
                return Ok(Some(vec![frame]));
            },
            Self::Socket(socket) => loop {
                let Some(Ok(message)) = socket.next().await else { return Ok(None) };
                let Message::Text(text) = message else { continue };
                let message: Json = serde_json::from_str(text.as_str())?;
                match message["type"].as_str() {
                    Some("batch") => {
                        let frames = message["deltas"].as_array().context("a batch has frames")?;
                        return Ok(Some(frames.clone()));
                    }
                    Some("subscribed") => {}
                    // It ends with an error.
                    _ => return Ok(None),
                }
            },
        }
    }
}

/// Somebody who watches a window of a tenant, and notes what is shown.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    client: Client,
    pub(super) tenant: usize,
    pub(super) view: View,
    seen: Arc<Mutex<Vec<Shown>>>,
}

impl Watcher {
    pub(super) fn new(client: Client, tenant: usize, view: View) -> Self {
        Self { client, tenant, view, seen: Arc::default() }
    }

    /// How many windows it was shown.
    pub(super) fn windows(&self) -> usize {
        self.seen.lock().expect("test").len()
    }

    /// Whether it was shown these rows last.
    pub(super) fn shows(&self, rows: &[Row]) -> bool {
        self.seen.lock().expect("test").last().is_some_and(|shown| shown.rows == rows)
    }

    /// The rows of its window in the store.
    pub(super) async fn stored(&self) -> Result<Vec<Row>> {
        let path = format!("/v1/tables/{TABLE}?{}", self.view.parameters());
        let page = self.client.get(&path).await?.ok()?;
        let of_page = page["rows"].as_array().context("a page has rows")?;
        // A page has the columns apart, a frame has them beside the key.
        let flat: Vec<Json> = of_page
            .iter()
            .map(|row| {
                let mut flat = row["values"].clone();
                flat["key"] = row["key"].clone();
                flat
            })
            .collect();
        rows(&flat)
    }

    /// What it was shown is what came of so many events; see [`check`].
    pub(super) fn check(&self, events: Events, published: u64) -> Result<()> {
        check(&self.seen.lock().expect("test"), self.view, events, published)
            .with_context(|| format!("{:?} of tenant {}", self.view, TENANTS[self.tenant]))
    }

    /// Watches for as long as it may, and comes back with its last id whenever it was cut off.
    pub(super) async fn watch(self) -> Result<()> {
        let unused = LiveQuery { query: Query::all(TABLE), mode: Mode::Maintained, columns: None };
        let mut viewer = Viewer::new(TenantId::new(TENANTS[self.tenant])?, unused);
        loop {
            let Some(frames) = self.open(viewer.token.as_deref()).await? else {
                // It is down.
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let before = self.windows();
            self.follow(frames, &mut viewer).await?;
            if self.windows() == before {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// None where nobody answers. A refusal is an error.
    async fn open(&self, resume: Option<&str>) -> Result<Option<Frames>> {
        if self.view.socket {
            return self.open_socket(resume).await;
        }
        let path = format!("/v1/live?table={TABLE}&{}", self.view.parameters());
        let mut request = self.client.request(Method::GET, &path).header("accept", "text/event-stream");
        if let Some(token) = resume {
            request = request.header("last-event-id", token);
        }
        match request.send().await {
            Ok(stream) if stream.status().is_success() => Ok(Some(Frames::Sse(Box::new(stream), Vec::new()))),
            Ok(refused) if refused.status().is_client_error() => bail!("refused: {}", refused.text().await?),
            _ => Ok(None),
        }
    }

    async fn open_socket(&self, resume: Option<&str>) -> Result<Option<Frames>> {
        let url = self.client.url();
        let mut request = format!("{}/v1/live/ws", url.replace("http", "ws")).into_client_request()?;
        let bearer = format!("Bearer {}", token(TENANTS[self.tenant]));
        request.headers_mut().insert("authorization", bearer.parse()?);
        request.headers_mut().insert("sec-websocket-protocol", "millrace.live.v1".parse()?);
        let Ok(stream) = TcpStream::connect(url.trim_start_matches("http://")).await else { return Ok(None) };
        let mut socket = match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => socket,
            Err(Error::Http(refused)) if refused.status().is_client_error() => {
                bail!("refused: {}", refused.status())
            }
            Err(_) => return Ok(None),
        };
        let query = self.view.query();
        let subscribe = json!({ "action": "subscribe", "id": "a", "query": query, "resume": resume });
        let sent = socket.send(Message::text(subscribe.to_string())).await;
        Ok(sent.is_ok().then(|| Frames::Socket(Box::new(socket))))
    }

    /// Takes in what comes, until it is cut off or has had enough. What came of a commit without its end is forgotten:
    /// the id is that of the commit before, and all of it comes again.
    async fn follow(&self, mut frames: Frames, viewer: &mut Viewer) -> Result<()> {
        let mut whole = (viewer.rows.clone(), viewer.ready);
        let (mut windows, mut slow) = (0, false);
        loop {
            let together = if windows < WINDOWS_AT_ONCE {
                frames.next().await?
            } else {
                // Not while there is more to take in: it would ask for what nobody keeps any more.
                frames.next().now_or_never().transpose()?.flatten()
            };
            let Some(together) = together else { break };
            for frame in together {
                if frame["op"] == "gap" {
                    slow = frame["reason"] == "slow";
                }
                viewer.obey(&frame);
                let Some(id) = frame["stream_id"].as_str() else { continue };
                let revision: u64 = id.split('.').nth(1).context("an id has a revision")?.parse()?;
                ensure!(revision >= viewer.revision, "back from {} to {revision}", viewer.revision);
                (viewer.revision, viewer.token) = (revision, Some(id.to_owned()));
                let told_whole = viewer.names.iter().any(|name| name == "reset");
                let anew = told_whole && !std::mem::take(&mut slow);
                viewer.names.clear();
                whole = (viewer.rows.clone(), viewer.ready);
                if viewer.ready {
                    let rows = rows(&viewer.rows)?;
                    self.seen.lock().expect("test").push(Shown { revision, rows, anew });
                    windows += 1;
                }
            }
        }
        (viewer.rows, viewer.ready) = whole;
        viewer.names.clear();
        Ok(())
    }
}

/// What both versions make of the first so many events: plain counts, with nothing of guest or host in it.
#[derive(Debug)]
struct Model {
    events: Events,
    at: u64,
    counts: Counts,
}

impl Model {
    fn new(events: Events) -> Self {
        Self { events, at: 0, counts: Counts::new() }
    }

    fn step(&mut self) {
        let (key, event_type) = self.events.event(self.at);
        self.at += 1;
        let (count, last_type) = self.counts.entry(key).or_default();
        (*count, *last_type) = (*count + 1, event_type);
    }

    fn shows(&self, view: View, fold: Fold, rows: &[Row]) -> bool {
        let is = |row: &Row| {
            self.counts.get(&row.key).is_some_and(|(events, last_type)| {
                row.events == *events && row.last_type == (fold == Fold::New).then(|| Json::from(*last_type))
            })
        };
        rows.iter().all(is) && view.keys(&self.counts).into_iter().eq(rows.iter().map(|row| row.key.as_str()))
    }
}

/// Every window is what one version makes of the first so many events, never of fewer than the window before; the
/// old version's come first, then the new one's, and the last one is of all events. Whoever watches is told what is
/// different, also where the one version's windows end and the other's begin.
fn check(seen: &[Shown], view: View, events: Events, published: u64) -> Result<()> {
    let mut model = Model::new(events);
    let mut before: Option<(&Shown, Fold)> = None;
    let mut of_each = [0, 0];
    for shown in seen {
        let fold = shown.fold()?;
        if let Some((last, its_fold)) = before {
            ensure!(last.revision <= shown.revision, "{shown:?} comes after {last:?}");
            let differs = last.revision == shown.revision && last.rows != shown.rows;
            ensure!(!differs, "two windows of one revision: {last:?} and {shown:?}");
            ensure!(fold == Fold::New || its_fold == Fold::Old, "the old version is back: {shown:?}");
        }
        let from = model.at;
        while !model.shows(view, fold, &shown.rows) {
            ensure!(
                model.at < published,
                "of no {from} or more events: {fold:?} {shown:?}, after {before:?}"
            );
            model.step();
        }
        of_each[usize::from(fold == Fold::New)] += 1;
        before = Some((shown, fold));
    }
    ensure!(of_each.iter().all(|windows| *windows > 0), "windows of either version: {of_each:?}");
    while model.at < published {
        model.step();
    }
    let anew: Vec<u64> = seen.iter().filter(|shown| shown.anew).map(|shown| shown.revision).collect();
    ensure!(anew.len() <= PROCESSES, "more than one whole window of a process, at {anew:?}");
    let last = seen.last().context("something was shown")?;
    let is_all = model.shows(view, Fold::New, &last.rows);
    ensure!(is_all, "the last window is not of all {published} events: {last:?}");
    Ok(())
}

/// Windows of the last of 400 events, the later half by the new version. `arrange` makes them of all rows.
fn windows_of(events: Events, limit: usize, arrange: fn(&mut Vec<Row>)) -> Vec<Shown> {
    let mut model = Model::new(events);
    let mut seen = Vec::new();
    for revision in 0..400 {
        model.step();
        let fold = if revision < 200 { Fold::Old } else { Fold::New };
        let row = |(key, (events, last_type)): (&String, &(u64, &'static str))| Row {
            key: key.clone(),
            events: *events,
            last_type: (fold == Fold::New).then(|| Json::from(*last_type)),
        };
        let mut rows: Vec<Row> = model.counts.iter().map(row).collect();
        arrange(&mut rows);
        rows.truncate(limit);
        if revision > 100 {
            seen.push(Shown { revision, rows, anew: revision == 101 });
        }
    }
    seen
}

#[test]
fn a_window_of_no_beginning_of_the_events_is_found() {
    use std::cmp::Reverse;

    let events = Events::new(0, 3);
    let arranged: [fn(&mut Vec<Row>); 3] = [
        |rows| rows.sort_by_key(|row| (Reverse(row.events), row.key.clone())),
        |rows| {
            rows.retain(|row| row.events > 1);
            rows.sort_by_key(|row| (row.events, row.key.clone()));
        },
        |rows| rows.sort_by_key(|row| row.key.clone()),
    ];
    let wrong: [fn(&mut Vec<Shown>); 9] = [
        |seen| seen[20].rows[0].events += 3,
        |seen| seen[20].rows.swap(0, 1),
        |seen| drop(seen[20].rows.pop()),
        |seen| seen[20].rows[3] = seen[20].rows[2].clone(),
        |seen| seen[20].rows[0] = Row { key: "single-0".into(), events: 1, last_type: None },
        |seen| seen[250].rows[0].last_type = None,
        |seen| seen.swap(20, 90),
        |seen| drop(seen.drain(250..)),
        |seen| [150, 160].into_iter().for_each(|at| seen[at].anew = true),
    ];
    for (view, arrange) in VIEWS.into_iter().zip(arranged) {
        let seen = windows_of(events, view.limit, arrange);
        check(&seen, view, events, 400).expect("every window is exact");
        for (number, spoil) in wrong.iter().enumerate() {
            let mut spoiled = seen.clone();
            spoil(&mut spoiled);
            assert!(check(&spoiled, view, events, 400).is_err(), "mistake {number} is not seen of {view:?}");
        }
        let of_others = check(&seen, view, Events::new(1, 3), 400);
        assert!(of_others.is_err(), "windows of another tenant are taken for {view:?}");
        let exact = VIEWS.into_iter().filter(|other| check(&seen, *other, events, 400).is_ok());
        assert_eq!(exact.count(), 1, "windows of {view:?} are taken for another view's");
    }
}
