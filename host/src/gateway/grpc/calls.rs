//! The three methods: who may call them, and what they answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::bodies::Asking;
use super::events;
use super::refusal::{full, label, status};
use super::serve::Server;
use crate::checkpoints::{ClientCheckpoint, ClientValue};
use crate::gateway::admin_checkpoints;
use crate::gateway::auth::{Caller, Right};
use crate::gateway::metrics;
use crate::gateway::problem::Problem;
use crate::limits::{GRPC_CALLS_MAX, GRPC_MESSAGE_BYTES_MAX};
use crate::memory_v1::{
    AdminCheckpoint, EventNotification, GetCheckpointRequest, PutCheckpointRequest, SubscribeEventsRequest,
    Timestamp, Value, paths,
};

/// What the method with streams is called where calls are counted.
const SUBSCRIBE_EVENTS: &str = "SubscribeEvents";

type Answer<T> = BoxFuture<'static, Result<tonic::Response<T>, Status>>;

/// The place of a call about checkpoints among all of them, for as long as its answer is in memory.
pub(super) type Room = Option<OwnedSemaphorePermit>;

/// Answers one call. What it is refused for is a status, also where it is no gRPC that we know.
pub(super) async fn answer(server: &Arc<Server>, request: Request<Incoming>) -> (Response<Body>, Room) {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| text.starts_with("application/grpc"));
    if !is_grpc {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        response.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/grpc"));
        return (response, None);
    }
    let method = match request.uri().path() {
        paths::SUBSCRIBE_EVENTS => SUBSCRIBE_EVENTS,
        paths::GET_CHECKPOINT => "GetCheckpoint",
        paths::PUT_CHECKPOINT => "PutCheckpoint",
        _ => "unknown",
    };
    let (response, room) = match called(server, method, request).await {
        Ok(answered) => answered,
        Err(refused) => (refused.into_http(), None),
    };
    let code = response.extensions().get::<Status>().map_or(Code::Ok, Status::code);
    // A stream that has begun may still fail: it is counted at its end.
    if method != SUBSCRIBE_EVENTS || code != Code::Ok {
        metrics::grpc_call(method, label(code));
    }
    (response, room)
}

async fn called(
    server: &Arc<Server>,
    method: &str,
    request: Request<Incoming>,
) -> Result<(Response<Body>, Room), Status> {
    if method == "unknown" {
        let path: String = request.uri().path().chars().take(200).collect();
        return Err(Status::unimplemented(format!("there is no method {path}")));
    }
    let caller = server.edge.called(request.headers()).await.map_err(|problem| status(&problem))?;
    let is_stream = method == SUBSCRIBE_EVENTS;
    let rooms = if is_stream {
        &server.subscribing
    } else {
        // Before a message of somebody who may not send it takes memory.
        caller.needs(Right::Admin).map_err(|problem| refused(&problem))?;
        &server.calls
    };
    let room = Arc::clone(rooms).try_acquire_owned();
    let room = room.map_err(|_| full("grpc_calls_max", GRPC_CALLS_MAX))?;
    let request = request.map(|body| Asking::new(body, server.edge.options.body_idle_max));
    let call = Call { server: Arc::clone(server), caller };
    let response = match method {
        "GetCheckpoint" => grpc::<AdminCheckpoint, GetCheckpointRequest>().unary(Get(call), request).await,
        "PutCheckpoint" => grpc::<AdminCheckpoint, PutCheckpointRequest>().unary(Put(call), request).await,
        _ => {
            grpc::<EventNotification, SubscribeEventsRequest>()
                .server_streaming(Subscribe(call), request)
                .await
        }
    };
    // A message over the bound is told like any other bound, by its name.
    match response.extensions().get::<Status>() {
        Some(refused) if refused.code() == Code::OutOfRange => {
            let text = format!(
                "the message is longer than grpc_message_bytes_max = {GRPC_MESSAGE_BYTES_MAX}: {}",
                refused.message()
            );
            Err(Status::resource_exhausted(text))
        }
        // A stream has a place of its own, and is made as it is taken.
        _ => Ok((response, Some(room).filter(|_| !is_stream))),
    }
}

fn grpc<A, Q>() -> Grpc<ProstCodec<A, Q>>
where
    A: Message + Send + 'static,
    Q: Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

/// A call by somebody.
#[derive(Clone)]
struct Call {
    server: Arc<Server>,
    caller: Caller,
}

struct Get(Call);

impl UnaryService<GetCheckpointRequest> for Get {
    type Response = AdminCheckpoint;
    type Future = Answer<AdminCheckpoint>;

    fn call(&mut self, request: tonic::Request<GetCheckpointRequest>) -> Self::Future {
        let Call { server, caller } = self.0.clone();
        async move {
            let asked = request.into_inner();
            let kept = admin_checkpoints::get(&server.edge, &caller, &asked.client_id).await;
            Ok(tonic::Response::new(checkpoint(kept.map_err(|problem| refused(&problem))?)?))
        }
        .boxed()
    }
}

struct Put(Call);

impl UnaryService<PutCheckpointRequest> for Put {
    type Response = AdminCheckpoint;
    type Future = Answer<AdminCheckpoint>;

    fn call(&mut self, request: tonic::Request<PutCheckpointRequest>) -> Self::Future {
        let Call { server, caller } = self.0.clone();
        async move {
            let PutCheckpointRequest { client_id, content_type, value } = request.into_inner();
            let client = admin_checkpoints::own(&caller, &client_id).map_err(|problem| refused(&problem))?;
            let value = value.ok_or_else(|| Status::invalid_argument("value is required"))?;
            if let Err(error) = Value::decode(value.as_slice()) {
                return Err(Status::invalid_argument(format!("value cannot be read: {error}")));
            }
            let value = ClientValue::Proto(value);
            let kept = admin_checkpoints::put(&server.edge, &caller, &client, &content_type, value).await;
            Ok(tonic::Response::new(checkpoint(kept.map_err(|problem| refused(&problem))?)?))
        }
        .boxed()
    }
}

struct Subscribe(Call);

impl ServerStreamingService<SubscribeEventsRequest> for Subscribe {
    type Response = EventNotification;
    type ResponseStream = Counted;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<SubscribeEventsRequest>) -> Self::Future {
        let Call { server, caller } = self.0.clone();
        async move {
            let messages = events::subscribe(&server, caller, request.into_inner())?;
            Ok(tonic::Response::new(Counted { messages, end: None }))
        }
        .boxed()
    }
}

/// A stream that has begun. It is counted once, when it is over, by the code of its end. One that is dropped before its end,
/// since its client has left or takes nothing, was cancelled.
struct Counted {
    messages: BoxStream<'static, Result<EventNotification, Status>>,
    end: Option<Code>,
}

impl Stream for Counted {
    type Item = Result<EventNotification, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.messages.poll_next_unpin(context));
        let end = match &next {
            Some(Ok(_)) => None,
            Some(Err(status)) => Some(status.code()),
            None => Some(Code::Ok),
        };
        self.end = self.end.or(end);
        Poll::Ready(next)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::grpc_call(SUBSCRIBE_EVENTS, label(self.end.unwrap_or(Code::Cancelled)));
    }
}

/// In the words that clients of this protocol know.
fn refused(problem: &Problem) -> Status {
    if problem.code() == "right_missing" {
        metrics::problem(problem.code(), 1);
        return Status::permission_denied("admin role required");
    }
    status(problem)
}

/// A value that came over gRPC goes back byte for byte; one that came as JSON has doubles for numbers, and may be many times as
/// long: a number is 11 bytes.
fn checkpoint(kept: ClientCheckpoint) -> Result<AdminCheckpoint, Status> {
    let value = match kept.value {
        ClientValue::Proto(bytes) => bytes,
        ClientValue::Json(text) => {
            let json: serde_json::Value = serde_json::from_str(&text)
                .map_err(|_| Status::internal("what is kept of the client is no JSON"))?;
            let value = Value::from_json(&json);
            bounded(value.encoded_len())?;
            value.encode_to_vec()
        }
    };
    let answer = AdminCheckpoint {
        client_id: kept.client.to_string(),
        content_type: kept.content_type,
        value: Some(value),
        updated_at: Some(Timestamp::from_micros(kept.updated_at.0)),
    };
    bounded(answer.encoded_len())?;
    Ok(answer)
}

/// Clients read messages up to the bound that ours have, too.
fn bounded(bytes: usize) -> Result<(), Status> {
    if bytes <= GRPC_MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "the checkpoint has {bytes} bytes as a message; grpc_message_bytes_max is {GRPC_MESSAGE_BYTES_MAX}; \
         GET /v1/admin/checkpoints answers it as the JSON that was put"
    )))
}
