//! A host that serves gRPC, and ways to call it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use millrace::backends::grpc::{Credential, GrpcOptions, MemoryClient};
use millrace::clock::SystemClock;
use millrace::config::{Config, Right, TokenConfig};
use millrace::memory_v1::{
    AdminCheckpoint, EventNotification, GetCheckpointRequest, PutCheckpointRequest, SubscribeEventsRequest,
    paths,
};
use millrace_tests::embedded::{Client, Embedded, token};
use prost::Message;
use serde_json::{Value, json};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service as _, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Tokens of clients; what they are called is before `-token`.
pub(super) const TRACER: &str = "tracer-token";
pub(super) const OTHER: &str = "other-token";
pub(super) const AUDITOR: &str = "auditor-token";
pub(super) const WRITER: &str = "writer-token";
/// An administrator without a name, who is no client.
pub(super) const OPERATOR: &str = "operator-token";
/// Of another tenant, with a name that the first has, too.
pub(super) const FOREIGN: &str = "foreign-token";

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) host: Embedded,
}

impl Scene {
    /// Everybody on this machine may do everything.
    pub(super) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with_tokens() -> Self {
        Self::with(|config| config.auth.tokens = tokens()).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let host = Embedded::start_with(|config| {
            config.grpc.bind = Some(([127, 0, 0, 1], 0).into());
            change(config);
        });
        Self { host: host.await.unwrap() }
    }

    pub(super) async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    pub(super) async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        Self { host: Box::pin(self.host.restart_with(change)).await.unwrap() }
    }

    pub(super) fn port(&self) -> u16 {
        self.host.host().grpc_addr().unwrap().port()
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// A caller with these headers.
    pub(super) fn caller(&self, headers: &[(&'static str, &str)]) -> Caller {
        Caller::at(self.port(), headers)
    }

    /// A caller with an API key.
    pub(super) fn keyed(&self, key: &str) -> Caller {
        self.caller(&[("x-api-key", key)])
    }

    /// The client that sources use.
    pub(super) fn client(&self, client: &str, key: Option<&str>) -> MemoryClient {
        let options = GrpcOptions {
            endpoint: self.endpoint(),
            client_id: client.into(),
            api_key: key.map(|key| Credential::Text(key.into())),
            ..GrpcOptions::default()
        };
        MemoryClient::new(options, Arc::new(SystemClock)).unwrap()
    }

    /// Speaks HTTP as whoever has the token.
    pub(super) fn http(&self, token: Option<&str>) -> Client {
        match token {
            Some(token) => self.host.client.with_token(token).unwrap(),
            None => self.host.client.clone(),
        }
    }

    /// Publishes events of a kind, as anybody.
    pub(super) async fn publish(&self, kind: &str, action: &str, payloads: &[Value]) {
        publish(&self.host.client, kind, action, payloads).await;
    }
}

/// Publishes events of a kind; each has an aggregate of its own.
pub(super) async fn publish(client: &Client, kind: &str, action: &str, payloads: &[Value]) {
    let line = |payload: &Value| {
        let id = ulid::Ulid::new().to_string();
        let event = json!({
            "aggregate": kind, "agg_id": id, "version": 1, "type": format!("{kind}.{action}"), "payload": payload,
        });
        format!("{event}\n")
    };
    let lines: String = payloads.iter().map(line).collect();
    client.publish(lines).await.unwrap();
}

fn named(secret: &str, tenant: &str, rights: &[Right]) -> TokenConfig {
    TokenConfig { name: secret.strip_suffix("-token").map(str::to_owned), ..token(secret, tenant, rights) }
}

pub(super) fn tokens() -> Vec<TokenConfig> {
    use Right::{Admin, Publish, Read};
    vec![
        named(TRACER, "default", &[Admin, Read]),
        named(OTHER, "default", &[Admin, Read]),
        named(AUDITOR, "default", &[Read]),
        named(WRITER, "default", &[Publish]),
        token(OPERATOR, "default", &[Admin, Publish, Read]),
        TokenConfig { name: Some("tracer".into()), ..token(FOREIGN, "foreign", &[Admin, Publish, Read]) },
    ]
}

/// Calls the methods with messages as they are.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    channel: Channel,
    headers: Vec<(&'static str, String)>,
}

impl Caller {
    /// A caller of whatever serves at a port of this machine.
    pub(super) fn at(port: u16, headers: &[(&'static str, &str)]) -> Self {
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy();
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { channel, headers }
    }

    fn request<Q>(&self, question: Q) -> Request<Q> {
        let mut request = Request::new(question);
        for (name, value) in &self.headers {
            request.metadata_mut().append(*name, value.parse().unwrap());
        }
        request
    }

    pub(super) async fn ask<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut service = Grpc::new(self.channel.clone());
        service.ready().await.unwrap();
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        Ok(service.unary(self.request(question), path, codec).await?.into_inner())
    }

    pub(super) async fn get(&self, client: &str) -> Result<AdminCheckpoint, Status> {
        self.ask(paths::GET_CHECKPOINT, GetCheckpointRequest { client_id: client.into() }).await
    }

    pub(super) async fn put(
        &self,
        client: &str,
        content_type: &str,
        value: Option<Vec<u8>>,
    ) -> Result<AdminCheckpoint, Status> {
        let question =
            PutCheckpointRequest { client_id: client.into(), content_type: content_type.into(), value };
        self.ask(paths::PUT_CHECKPOINT, question).await
    }

    /// Puts with messages that come as they come; the first counts.
    pub(super) async fn put_slowly(
        &self,
        messages: impl Stream<Item = PutCheckpointRequest> + Send + 'static,
    ) -> Result<AdminCheckpoint, Status> {
        let mut service = Grpc::new(self.channel.clone());
        service.ready().await.unwrap();
        let codec = ProstCodec::<PutCheckpointRequest, AdminCheckpoint>::default();
        let path = PathAndQuery::from_static(paths::PUT_CHECKPOINT);
        Ok(service.client_streaming(self.request(messages), path, codec).await?.into_inner())
    }

    /// A request that is no call. Answers its status.
    pub(super) async fn post(&self, path: &str, content_type: &str) -> u16 {
        let mut channel = self.channel.clone();
        std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let request = http::Request::post(path).header("content-type", content_type);
        let answer = channel.call(request.body(tonic::body::Body::default()).unwrap()).await.unwrap();
        answer.status().as_u16()
    }

    pub(super) async fn subscribe(&self, asked: SubscribeEventsRequest) -> Result<Shown, Status> {
        let mut service = Grpc::new(self.channel.clone());
        service.ready().await.unwrap();
        let codec = ProstCodec::<SubscribeEventsRequest, EventNotification>::default();
        let path = PathAndQuery::from_static(paths::SUBSCRIBE_EVENTS);
        let opened = service.server_streaming(self.request(asked), path, codec).await?;
        Ok(Shown(opened.into_inner()))
    }

    /// A stream of everything after a cursor.
    pub(super) async fn after(&self, cursor: &str) -> Shown {
        self.subscribe(after(cursor)).await.unwrap()
    }
}

pub(super) fn after(cursor: &str) -> SubscribeEventsRequest {
    SubscribeEventsRequest {
        after_cursor: (!cursor.is_empty()).then(|| cursor.to_owned()),
        detail: Some("full".into()),
        ..SubscribeEventsRequest::default()
    }
}

/// What a stream shows.
#[derive(Debug)]
pub(super) struct Shown(Streaming<EventNotification>);

impl Shown {
    /// None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<EventNotification>, Status> {
        tokio::time::timeout(PATIENCE, self.0.message()).await.expect("waited a minute for an event")
    }

    /// The next event; those about the stream are passed over.
    pub(super) async fn event(&mut self) -> EventNotification {
        loop {
            let event = self.next().await.unwrap().expect("the stream goes on");
            if event.kind != "stream" {
                return event;
            }
        }
    }

    pub(super) async fn events(&mut self, count: usize) -> Vec<EventNotification> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// The next is about the stream: what it is called, its data, its cursor.
    pub(super) async fn about(&mut self) -> (String, Value, Option<String>) {
        let event = self.next().await.unwrap().expect("the stream goes on");
        assert_eq!(event.kind, "stream", "{event:?}");
        let data = data(&event);
        (event.event, data, event.cursor)
    }

    /// Waits until the stream is live.
    pub(super) async fn until_live(&mut self) {
        while self.about().await.1 != json!({ "phase": "live" }) {}
    }
}

pub(super) fn data(event: &EventNotification) -> Value {
    serde_json::from_slice(&event.data).unwrap()
}
