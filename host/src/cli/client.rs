//! The HTTP side of the client commands: where the host is, the token, and problems.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{CliError, Exit, printable};

/// How long a connection may take to come about.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take.
pub(super) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Most bytes of an error's body that are looked at.
const PROBLEM_BYTES_MAX: usize = 64 << 10;

/// Where the host is, and who asks.
#[derive(Clone, Args)]
pub struct Connect {
    /// The host's address
    #[arg(
        long,
        env = "MILLRACE_URL",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub url: String,
    /// The bearer token; better in the environment than on the command line, which others can see
    #[arg(
        long,
        env = "MILLRACE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Connection"
    )]
    pub token: Option<String>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A connection to one host.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

/// RFC 9457, as far as a client looks at it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) title: String,
    pub(super) detail: String,
    pub(super) fix: String,
    /// Of a position that is lost: the cursor to go on from.
    oldest: String,
}

impl Client {
    pub(super) fn new(connect: &Connect) -> Result<Self, CliError> {
        let wrong = |why: String| {
            CliError::usage(
                format!("`{}` is not a usable --url: {why}", printable(&connect.url)),
                "give one such as http://127.0.0.1:7070",
            )
        };
        let base: Url = connect.url.parse().map_err(|e| wrong(format!("{e}")))?;
        if base.scheme() != "http" {
            return Err(wrong(format!("this client speaks http, not {}", base.scheme())));
        }
        if base.cannot_be_a_base() || base.host_str().is_none() {
            return Err(wrong("it names no host".into()));
        }
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WAIT_MAX)
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_nodelay(true)
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")));
        // A proxy for the way out cannot reach this machine's loopback.
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| {
            CliError::failed(
                format!("the HTTP client does not start: {e}"),
                "look at the proxy settings in the environment",
            )
        })?;
        Ok(Self { http, base, token: connect.token.clone() })
    }

    /// The address of a resource. Path segments and values are escaped here and nowhere else.
    pub(super) fn address(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and answers its response if it went well.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        Err(refusal(&problem(response).await, status))
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = self.send(request.timeout(ANSWER_WAIT_MAX)).await?;
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&body).map_err(|e| self.unexpected(&e.to_string()))
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CliError> {
        self.json(self.request(Method::GET, self.address(path, query))).await
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> CliError {
        // The chain's last link says what happened; the first ones only that something did.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let what = if error.is_connect() {
            "cannot be reached"
        } else if error.is_timeout() {
            "did not answer in time"
        } else {
            "broke the connection"
        };
        CliError::new(
            Exit::Unreachable,
            format!("the host at {} {what}: {}", self.base, printable(&cause.to_string())),
            "start one with `millrace serve`, or name another with --url or MILLRACE_URL",
        )
    }

    pub(super) fn unexpected(&self, detail: &str) -> CliError {
        CliError::failed(
            format!("the answer of {} is not what this version expects: {}", self.base, printable(detail)),
            "compare `millrace version` with the host's, and look whether --url is a Millrace host",
        )
    }
}

/// What a refusal says, also where it is no problem document.
pub(super) async fn problem(mut response: Response) -> Problem {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    // A body that cannot be read or does not end leaves the status, which is enough.
    while let Ok(Some(part)) = response.chunk().await {
        body.extend_from_slice(&part);
        if body.len() > PROBLEM_BYTES_MAX {
            break;
        }
    }
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    problem.status = status;
    problem
}

/// A problem as the end of a command.
pub(super) fn refusal(problem: &Problem, status: StatusCode) -> CliError {
    let exit = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Denied,
        status if status.is_client_error() => Exit::Refused,
        _ => Exit::Failure,
    };
    CliError::new(exit, problem.sentence(), problem.next_step(exit))
}

/// A problem that came inside of an answer that had begun well.
pub(super) fn refused(data: &str) -> CliError {
    let problem: Problem = serde_json::from_str(data).unwrap_or_default();
    refusal(&problem, StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
}

impl Problem {
    /// Whether the same request may go well later.
    pub(super) fn is_transient(&self) -> bool {
        self.status >= 500 || matches!(self.status, 408 | 429)
    }

    pub(super) fn sentence(&self) -> String {
        let text = [&self.detail, &self.title].into_iter().find(|text| !text.is_empty());
        let text = text.map_or_else(|| format!("the host answered {}", self.status), |text| printable(text));
        if self.code.is_empty() { text } else { format!("{text} ({})", printable(&self.code)) }
    }

    fn next_step(&self, exit: Exit) -> String {
        if !self.oldest.is_empty() {
            // The host speaks of parameters; this is the command's way to say it.
            return format!("go on with --after {}; what was before it is gone", printable(&self.oldest));
        }
        match (self.fix.as_str(), exit) {
            ("", Exit::Denied) => "give a token that has the right with --token or MILLRACE_TOKEN".into(),
            ("", Exit::Refused) => "change what was asked".into(),
            ("", _) => "look at the host's messages".into(),
            (fix, _) => printable(fix),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
