//! A client of live queries: keeps the array that a page would keep, from the frames alone.

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use millrace::event::TenantId;
use millrace::live::{Batch, LiveError, LiveQueries, LiveQuery, Subscribe, Subscription};
use serde_json::Value as Json;

/// What a client has.
#[derive(Debug)]
pub struct Viewer {
    pub tenant: TenantId,
    pub query: LiveQuery,
    /// Rows as they were sent, in order.
    pub rows: Vec<Json>,
    /// Of the last complete batch.
    pub token: Option<String>,
    /// What `rows` is exact at.
    pub revision: u64,
    /// It has the whole answer.
    pub ready: bool,
    /// Names of the frames that came, in order.
    pub names: Vec<String>,
    subscription: Option<Subscription>,
}

impl Viewer {
    pub fn new(tenant: TenantId, query: LiveQuery) -> Self {
        Self {
            tenant,
            query,
            rows: Vec::new(),
            token: None,
            revision: 0,
            ready: false,
            names: Vec::new(),
            subscription: None,
        }
    }

    /// Subscribes, with its token if it has one.
    pub async fn connect(&mut self, live: &dyn LiveQueries) -> Result<(), LiveError> {
        let (tenant, query) = (self.tenant.clone(), self.query.clone());
        let subscribe = Subscribe { tenant, query, resume: self.token.clone() };
        self.subscription = Some(live.subscribe(subscribe).await?);
        Ok(())
    }

    pub fn disconnect(&mut self) {
        self.subscription = None;
    }

    pub fn is_connected(&self) -> bool {
        self.subscription.is_some()
    }

    /// Another query, from nothing.
    pub fn ask(&mut self, query: LiveQuery) {
        *self = Self::new(self.tenant.clone(), query);
    }

    /// Takes the next batch in, if there is one already.
    pub fn take_now(&mut self) -> Option<Result<Batch, LiveError>> {
        let next = self.subscription.as_mut()?.batches.next().now_or_never()??;
        if let Ok(batch) = &next {
            self.follow(batch);
        }
        Some(next)
    }

    /// Takes the next batch in.
    pub async fn take(&mut self) -> Result<Batch, LiveError> {
        let stream = self.subscription.as_mut().expect("it is connected");
        let batch = stream.batches.next().await.expect("an error comes before the end")?;
        self.follow(&batch);
        Ok(batch)
    }

    /// Takes batches in until its rows are the answer.
    pub async fn take_until_ready(&mut self) {
        self.ready = false;
        while !self.ready {
            self.take().await.expect("it becomes ready");
        }
    }

    /// Does what a batch says.
    pub fn follow(&mut self, batch: &Batch) {
        for frame in batch.frames() {
            let text = std::str::from_utf8(&frame).expect("frames are text");
            assert!(!text.contains('\n'), "a frame is one line: {text}");
            self.obey(&serde_json::from_str(text).expect("a frame is JSON"));
        }
        assert_eq!(batch.names().count(), batch.len());
        if let Some(token) = batch.token() {
            self.token = Some(token.to_owned());
            self.revision = batch.revision().0;
        }
    }

    /// Does what a frame says.
    pub fn obey(&mut self, frame: &Json) {
        let place =
            |name: &str| usize::try_from(frame[name].as_i64().expect("a place")).expect("not negative");
        let op = frame["op"].as_str().expect("a frame has a name");
        self.names.push(op.to_owned());
        let row = || {
            assert_eq!(frame["row"]["key"], frame["agg_id"]);
            frame["row"].clone()
        };
        match op {
            "reset" => {
                self.rows.clear();
                self.ready = false;
            }
            "enter" => {
                assert_eq!(frame["old_index"], -1);
                self.rows.insert(place("new_index"), row());
            }
            "leave" => {
                assert_eq!(frame["new_index"], -1);
                let gone = self.rows.remove(place("old_index"));
                assert_eq!(gone["key"], frame["agg_id"], "a row leaves from where it stands");
            }
            "move" => {
                let gone = self.rows.remove(place("old_index"));
                assert_eq!(gone["key"], frame["agg_id"], "a row moves from where it stands");
                self.rows.insert(place("new_index"), row());
            }
            "update" => {
                let at = place("new_index");
                assert_eq!(self.rows[at]["key"], frame["agg_id"], "a row changes where it stands");
                self.rows[at] = row();
            }
            "ready" => {
                assert_eq!(frame["rows"], self.rows.len());
                self.ready = true;
            }
            "gap" => self.ready = false,
            other => panic!("`{other}` is no frame of a window"),
        }
    }

    pub fn keys(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row["key"].as_str().expect("a key")).collect()
    }
}
