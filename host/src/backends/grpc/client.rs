//! The client of the three methods.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tracing::warn;

use super::identity::identify;
use super::messages::{
    AdminCheckpoint, EventNotification, EventScope, GetCheckpointRequest, PutCheckpointRequest,
    SubscribeEventsRequest, Value, paths,
};
use super::options::{GrpcOptions, InvalidGrpc};
use super::status::{Call, source_error};
use crate::clock::Clock;
use crate::error::{Blame, Retry};
use crate::event::Micros;
use crate::limits::{SOURCE_CALL_MAX, SOURCE_MESSAGE_BYTES_MAX, SOURCE_PUT_BYTES_MAX};
use crate::processors::source::{
    CheckpointClient, Detail, EventClient, EventEnvelope, EventStream, JsonText, RemoteCheckpoint, Scope,
    SourceError, SourceFault, SubscribeRequest,
};

/// Speaks to one server, as an [`EventClient`] and as a [`CheckpointClient`]. Clones share their connection.
#[derive(Clone)]
pub struct MemoryClient {
    channel: Channel,
    options: Arc<GrpcOptions>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for MemoryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryClient").field("endpoint", &self.options.endpoint).finish_non_exhaustive()
    }
}

impl MemoryClient {
    /// Connects when it is first used. Reads the files of certificates; must be called on a tokio runtime.
    pub fn new(options: GrpcOptions, clock: Arc<dyn Clock>) -> Result<Self, InvalidGrpc> {
        if let Some(machine) = options.in_clear_to() {
            warn!(
                error.kind = "source_secret_in_clear",
                error.blame = Blame::Caller.as_str(),
                machine,
                "a key or token is sent to another machine in clear text; an endpoint that begins with https:// hides it"
            );
        }
        Ok(Self { channel: options.channel()?, options: Arc::new(options), clock })
    }

    async fn request<T>(&self, message: T) -> Result<Request<T>, SourceError> {
        let mut request = Request::new(message);
        identify(&self.options, request.metadata_mut()).await?;
        Ok(request)
    }

    async fn service(&self, call: Call) -> Result<Grpc<Channel>, SourceError> {
        let mut service = Grpc::new(self.channel.clone()).max_decoding_message_size(SOURCE_MESSAGE_BYTES_MAX);
        let ready = timeout(SOURCE_CALL_MAX, service.ready()).await;
        match ready {
            Ok(Ok(())) => Ok(service),
            Ok(Err(error)) => Err(self.failed(call, Status::from_error(Box::new(error)))),
            Err(_) => Err(self.failed(call, late())),
        }
    }

    fn failed(&self, call: Call, status: Status) -> SourceError {
        source_error(call, &self.options.client_id, status)
    }

    /// One question, one answer, within a time.
    async fn ask<Q, A>(
        &self,
        call: Call,
        path: &'static str,
        question: Q,
    ) -> Result<Result<A, Status>, SourceError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let request = self.request(question).await?;
        let mut service = self.service(call).await?;
        let codec = ProstCodec::<Q, A>::default();
        let asked = service.unary(request, PathAndQuery::from_static(path), codec);
        let answer = timeout(SOURCE_CALL_MAX, asked).await.unwrap_or_else(|_| Err(late()));
        Ok(answer.map(tonic::Response::into_inner))
    }

    fn checkpoint(call: Call, answer: AdminCheckpoint) -> Result<RemoteCheckpoint, SourceError> {
        // It is kept like that, and comes again as it is.
        let broken = |error: prost::DecodeError| {
            let message = format!("{} failed: its value cannot be read: {error}", call.says());
            SourceError::stop(SourceFault::Load, message).because(error)
        };
        let value = Value::decode(answer.value.unwrap_or_default().as_slice()).map_err(broken)?;
        Ok(RemoteCheckpoint {
            client_id: answer.client_id,
            content_type: answer.content_type,
            value: JsonText::from(&value.to_json()),
            updated_at: answer.updated_at.map(|time| Micros(time.micros())),
        })
    }

    async fn subscribed(&self, asked: SubscribeRequest) -> Result<Box<dyn EventStream>, SourceError> {
        let call = Call::Subscribe;
        let request = self.request(message(asked)).await?;
        let mut service = self.service(call).await?;
        let codec = ProstCodec::<SubscribeEventsRequest, EventNotification>::default();
        let path = PathAndQuery::from_static(paths::SUBSCRIBE_EVENTS);
        let opening = async move {
            let opened = service.server_streaming(request, path, codec).await?;
            Ok(opened.into_inner())
        };
        let events = Opened::NotYet(opening.boxed());
        Ok(Box::new(Stream { events, was_let_in: false, client: self.clone() }))
    }
}

impl EventClient for MemoryClient {
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn EventStream>, SourceError>> {
        self.subscribed(request).boxed()
    }
}

impl CheckpointClient for MemoryClient {
    fn get<'a>(&'a self, client_id: &'a str) -> BoxFuture<'a, Result<Option<RemoteCheckpoint>, SourceError>> {
        async move {
            let call = Call::GetCheckpoint;
            let question = GetCheckpointRequest { client_id: client_id.to_owned() };
            match self.ask(call, paths::GET_CHECKPOINT, question).await? {
                Ok(answer) => Self::checkpoint(call, answer).map(Some),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(self.failed(call, status)),
            }
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        client_id: &'a str,
        content_type: &'a str,
        value: JsonText,
    ) -> BoxFuture<'a, Result<RemoteCheckpoint, SourceError>> {
        async move {
            let question = PutCheckpointRequest {
                client_id: client_id.to_owned(),
                content_type: content_type.to_owned(),
                value: Some(Value::from_json(&value.value()).encode_to_vec()),
            };
            let bytes = question.encoded_len();
            // What is short as a text may be long as a message: each number takes eleven bytes.
            if bytes > SOURCE_PUT_BYTES_MAX {
                return Err(too_large(bytes));
            }
            let call = Call::PutCheckpoint { bytes };
            match self.ask(call, paths::PUT_CHECKPOINT, question).await? {
                Ok(answer) => Self::checkpoint(call, answer),
                Err(status) => Err(self.failed(call, status)),
            }
        }
        .boxed()
    }
}

/// A stream of events. Dropping it tells the server. A server may send its first word with the first event, so whoever waits
/// for an event waits for the stream, too.
struct Stream {
    events: Opened,
    /// Something came, so the secret was a good one then.
    was_let_in: bool,
    client: MemoryClient,
}

enum Opened {
    NotYet(BoxFuture<'static, Result<Streaming<EventNotification>, Status>>),
    Yes(Box<Streaming<EventNotification>>),
}

impl Stream {
    /// A future that is dropped leaves the opening, or the stream, as it is.
    async fn next(&mut self) -> Result<Option<EventNotification>, Status> {
        if let Opened::NotYet(opening) = &mut self.events {
            let opened = opening.await?;
            self.events = Opened::Yes(Box::new(opened));
        }
        match &mut self.events {
            Opened::Yes(events) => events.message().await,
            Opened::NotYet(_) => Ok(None),
        }
    }

    fn failed(&self, status: Status) -> SourceError {
        let has_run_out = self.was_let_in && status.code() == Code::Unauthenticated;
        let error = self.client.failed(Call::Subscribe, status);
        if has_run_out && self.client.options.has_secret_in_file() {
            // The next call reads the file again. Refused then, it is refused for good.
            return SourceError { retry: Retry::After(Duration::ZERO), ..error };
        }
        error
    }
}

impl EventStream for Stream {
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<EventEnvelope>, SourceError>> {
        async move {
            match self.next().await {
                Ok(None) => Ok(None),
                Ok(Some(EventNotification { event, kind, data, cursor })) => {
                    self.was_let_in = true;
                    let cursor = cursor.filter(|cursor| !cursor.is_empty());
                    Ok(Some(EventEnvelope { event, kind, data, cursor, time: self.client.clock.now() }))
                }
                Err(status) => Err(self.failed(status)),
            }
        }
        .boxed()
    }
}

/// What is blank is not sent; the scope always is.
fn message(asked: SubscribeRequest) -> SubscribeEventsRequest {
    let some = |text: String| (!text.trim().is_empty()).then_some(text);
    let scope = match asked.scope {
        Scope::User => EventScope::Authorized,
        Scope::Admin => EventScope::Admin,
    };
    let detail = match asked.detail {
        Detail::Summary => "summary",
        Detail::Full => "full",
    };
    SubscribeEventsRequest {
        conversation_ids: Vec::new(),
        kinds: asked.kinds,
        after_cursor: asked.after_cursor.and_then(some),
        detail: Some(detail.to_owned()),
        scope: Some(scope.into()),
        justification: some(asked.justification),
        entry_channels: asked.entry_channels,
        entry_content_types: asked.entry_content_types,
        entry_roles: asked.entry_roles,
    }
}

fn too_large(bytes: usize) -> SourceError {
    let message = format!(
        "the checkpoint has {bytes} bytes as a message; source_put_bytes_max is {SOURCE_PUT_BYTES_MAX}: keep less in the state, or keep checkpoints in the store"
    );
    SourceError::stop(SourceFault::TooLarge, message)
}

fn late() -> Status {
    let seconds = SOURCE_CALL_MAX.as_secs();
    Status::deadline_exceeded(format!("no answer within source_call_max = {seconds} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_blank_is_not_sent_and_the_scope_always_is() {
        let asked = SubscribeRequest {
            after_cursor: Some(" ".into()),
            kinds: vec!["entry".into()],
            ..SubscribeRequest::default()
        };
        let sent = message(asked);
        assert_eq!((sent.after_cursor, sent.justification), (None, None));
        assert_eq!((sent.detail.as_deref(), sent.scope), (Some("full"), Some(EventScope::Admin.into())));
        let user = message(SubscribeRequest { scope: Scope::User, ..SubscribeRequest::default() });
        assert_eq!(user.scope, Some(EventScope::Authorized.into()));
    }

    /// An answer that is asked for again comes as it is.
    #[test]
    fn a_value_that_cannot_be_read_is_not_asked_for_again() {
        let answer = AdminCheckpoint { value: Some(vec![0xff]), ..AdminCheckpoint::default() };
        let error = MemoryClient::checkpoint(Call::GetCheckpoint, answer).unwrap_err();
        assert_eq!((error.fault, error.wait()), (SourceFault::Load, None), "{error}");
    }
}
