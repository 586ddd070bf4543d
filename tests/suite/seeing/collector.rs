//! A trace collector in the test process: takes OTLP over HTTP and keeps the spans.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One span as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) name: String,
    pub(super) trace: String,
    pub(super) id: String,
    pub(super) parent: String,
    /// Trace ids of the links.
    pub(super) links: Vec<String>,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) failed: bool,
}

#[derive(Debug, Default)]
struct Seen {
    spans: Mutex<Vec<Span>>,
    headers: Mutex<Vec<HeaderMap>>,
    services: Mutex<Vec<String>>,
    changed: watch::Sender<usize>,
}

#[derive(Debug)]
pub(super) struct Collector {
    pub(super) url: String,
    seen: Arc<Seen>,
}

impl Collector {
    pub(super) async fn start() -> Result<Self> {
        let seen = Arc::new(Seen::default());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&seen));
        tokio::runtime::Handle::current().spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, seen })
    }

    /// Waits until the spans that have arrived are what is waited for, and answers them.
    pub(super) async fn wait_for(&self, enough: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let mut changes = self.seen.changed.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            changes.wait_for(|_| enough(&self.spans())).await.map(drop)
        });
        let waited = waited.await;
        let names: Vec<_> = self.spans().into_iter().map(|span| (span.name, span.trace)).collect();
        waited.with_context(|| format!("these spans arrived, and no more: {names:?}"))??;
        Ok(self.spans())
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        self.seen.spans.lock().expect("no panic").clone()
    }

    pub(super) fn headers(&self) -> Vec<HeaderMap> {
        self.seen.headers.lock().expect("no panic").clone()
    }

    pub(super) fn services(&self) -> Vec<String> {
        self.seen.services.lock().expect("no panic").clone()
    }
}

async fn take(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).expect("the exporter sends protobuf");
    seen.headers.lock().expect("no panic").push(headers);
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
        seen.services.lock().expect("no panic").extend(service.map(|service| text(service.value)));
        let arrived = resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
            fields: span.attributes.into_iter().map(|field| (field.key, text(field.value))).collect(),
            failed: span.status.is_some_and(|status| status.code == 2),
        });
        seen.spans.lock().expect("no panic").extend(arrived);
    }
    seen.changed.send_modify(|exports| *exports += 1);
}

fn text(value: Option<opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
