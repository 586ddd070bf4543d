//! The connection. The client finds it again by itself; who asks meanwhile is told at once that it is away.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind,
};
use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::options::NatsOptions;
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    NATS_ANSWER_WAIT_MAX, NATS_CONNECT_WAIT_MAX, NATS_PING_EVERY, NATS_QUEUE_MAX, NATS_RETRY_WAIT_MAX,
    NATS_RETRY_WAIT_MIN,
};

type Asked<T> = Result<T, BackendError>;

pub(super) fn remote(fault: RemoteFault, detail: impl std::fmt::Display) -> BackendError {
    BackendError::Remote { fault, detail: format!("nats, {detail}") }
}

/// Nothing is connected before it is asked for.
#[derive(Debug)]
pub(super) struct NatsLink {
    options: NatsOptions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<(Client, watch::Receiver<Line>)>,
    /// A server that is away is asked for now and then, and not by every caller.
    refused: Option<(Instant, BackendError)>,
}

/// How the connection stands.
#[derive(Clone, Debug, Default)]
struct Line {
    up: bool,
    /// Counts connections.
    number: u64,
    /// What was said last of why it is not up, or of what the server does not allow.
    said: Option<String>,
    denied: bool,
}

/// A connection, and which one it is.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    pub(super) client: Client,
    pub(super) number: u64,
    line: watch::Receiver<Line>,
}

impl NatsLink {
    pub(super) fn new(options: NatsOptions) -> Self {
        Self { options, state: Mutex::default() }
    }

    /// The connection, or why there is none.
    pub(super) async fn linked(&self) -> Asked<Linked> {
        let mut state = self.state.lock().await;
        if let Some((client, line)) = &state.current {
            let now = line.borrow().clone();
            if now.up && client.connection_state() == Connection::Connected {
                return Ok(Linked { client: client.clone(), number: now.number, line: line.clone() });
            }
            if !now.denied {
                return Err(away(&now));
            }
            // Another file of credentials may lie there by now.
            state.current = None;
        }
        let recent = |(at, _): &&(Instant, BackendError)| at.elapsed() < NATS_RETRY_WAIT_MIN;
        if let Some((_, error)) = state.refused.as_ref().filter(recent) {
            return Err(error.clone());
        }
        match self.connect().await {
            Ok((client, line)) => {
                let number = line.borrow().number;
                state.refused = None;
                state.current = Some((client.clone(), line.clone()));
                Ok(Linked { client, number, line })
            }
            Err(error) => {
                state.refused = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Asked<(Client, watch::Receiver<Line>)> {
        let address = &self.options.address;
        let mut options = match &self.options.credentials {
            None => ConnectOptions::new(),
            Some(path) => {
                let unread = |error: std::io::Error| {
                    remote(RemoteFault::Denied, format_args!("{} cannot be read: {error}", path.display()))
                };
                let text = tokio::fs::read_to_string(path).await.map_err(unread)?;
                ConnectOptions::with_credentials(&text).map_err(unread)?
            }
        };
        if let Some((user, password)) = address.login() {
            options = match password {
                Some(password) => options.user_and_password(user.into(), password.into()),
                None => options.token(user.into()),
            };
        }
        if let Some(path) = &self.options.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        let (sender, line) = watch::channel(Line::default());
        let sender = Arc::new(sender);
        let heard = Arc::clone(&sender);
        let options = options
            .name("millrace")
            .connection_timeout(NATS_CONNECT_WAIT_MAX)
            .request_timeout(Some(NATS_ANSWER_WAIT_MAX))
            .ping_interval(NATS_PING_EVERY)
            .client_capacity(NATS_QUEUE_MAX)
            .subscription_capacity(NATS_QUEUE_MAX)
            .reconnect_delay_callback(delay)
            .event_callback(move |event| {
                let heard = Arc::clone(&heard);
                async move { hear(&heard, &event) }
            });
        let servers = u32::try_from(address.0.len()).unwrap_or(u32::MAX).saturating_add(1);
        let connecting = Box::pin(options.connect(&address.0[..]));
        let connected = tokio::time::timeout(NATS_CONNECT_WAIT_MAX.saturating_mul(servers), connecting).await;
        let client = match connected {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let fault = match error.kind() {
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                        RemoteFault::Denied
                    }
                    ConnectErrorKind::TimedOut => RemoteFault::Timeout,
                    _ => RemoteFault::Unreachable,
                };
                return Err(remote(fault, format_args!("connecting to {address}: {error}")));
            }
            Err(_) => return Err(remote(RemoteFault::Timeout, format_args!("connecting to {address}"))),
        };
        hear(&sender, &Event::Connected);
        Ok((client, line))
    }
}

/// First at once, then later and later.
fn delay(attempts: usize) -> Duration {
    let doubled = u32::try_from(attempts.saturating_sub(2).min(16)).unwrap_or(16);
    match attempts {
        0 | 1 => Duration::ZERO,
        _ => NATS_RETRY_WAIT_MIN.saturating_mul(1 << doubled).min(NATS_RETRY_WAIT_MAX),
    }
}

fn hear(line: &watch::Sender<Line>, event: &Event) {
    let lower = event.to_string().to_lowercase();
    line.send_if_modified(|line| {
        match event {
            Event::Connected if line.up => return false,
            Event::Connected => {
                (line.up, line.denied, line.said) = (true, false, None);
                line.number += 1;
            }
            Event::Disconnected | Event::Closed => line.up = false,
            Event::ServerError(_) | Event::ClientError(_) => {
                line.denied |= lower.contains("authorization violation") || lower.contains("authentication");
                line.said = Some(lower);
            }
            _ => return false,
        }
        true
    });
}

fn away(line: &Line) -> BackendError {
    let fault = if line.denied { RemoteFault::Denied } else { RemoteFault::Unreachable };
    let said = line.said.as_deref().map(|said| format!(" ({said})")).unwrap_or_default();
    remote(fault, format_args!("the connection was lost{said}"))
}

impl Linked {
    /// Returns why once this connection is no more.
    pub(super) async fn lost(&self) -> BackendError {
        let mut line = self.line.clone();
        let number = self.number;
        match line.wait_for(|line| !line.up || line.number != number).await {
            Ok(line) => away(&line),
            Err(_) => BackendError::Closed,
        }
    }

    /// Sends a request and waits for its answer; none where nobody listens there.
    pub(super) async fn ask(
        &self,
        doing: &str,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Asked<Option<Message>> {
        let mut request = Request::new().payload(payload).timeout(Some(NATS_ANSWER_WAIT_MAX));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let asking = async {
            // Its queue may be full, too.
            let asking = self.client.send_request(subject, request);
            tokio::time::timeout(NATS_ANSWER_WAIT_MAX, asking).await
        };
        let answer = tokio::select! {
            // Nothing is lost with the one that is dropped: whoever gets no answer asks again.
            answer = asking => answer,
            error = self.lost() => return Err(error),
        };
        match answer {
            Ok(Ok(message)) => Ok(Some(message)),
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(None),
                RequestErrorKind::TimedOut => Err(self.late(doing)),
                RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                    Err(remote(RemoteFault::Unsupported, format_args!("{doing}: {error}")))
                }
                _ => Err(remote(RemoteFault::Unreachable, format_args!("{doing}: {error}"))),
            },
            Err(_) => Err(self.late(doing)),
        }
    }

    /// A server answers what it does not allow with a word aside, and the request not at all.
    pub(super) fn late(&self, doing: &str) -> BackendError {
        let said = self.line.borrow().said.clone().unwrap_or_default();
        if said.contains("permissions violation") {
            return remote(RemoteFault::Denied, format_args!("{doing}: {said}"));
        }
        remote(RemoteFault::Timeout, doing)
    }
}
