//! Where a server is, and how it is spoken to.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::codegen::http::Uri;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::identity::Credential;
use crate::limits::{
    SOURCE_CONNECT_MAX, SOURCE_FILE_BYTES_MAX, SOURCE_KEEPALIVE, SOURCE_KEEPALIVE_WAIT_MAX,
    SOURCE_TCP_KEEPALIVE, SOURCE_TCP_KEEPALIVE_INTERVAL, SOURCE_TCP_KEEPALIVE_TRIES,
};

/// How a server is reached, and as who.
#[derive(Clone, Debug)]
pub struct GrpcOptions {
    /// `http://host:port` in clear text, `https://host:port`, or `unix:///path`.
    pub endpoint: String,
    pub client_id: String,
    pub api_key: Option<Credential>,
    pub bearer_token: Option<Credential>,
    /// Authorities (PEM) that the server's certificate is checked against; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// The name in the server's certificate, where it is not that of the endpoint.
    pub server_name: Option<String>,
    /// Certificate and key (PEM) of this client.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// How often a quiet connection is asked over HTTP/2 whether it lives, and how long it has to answer. Servers close the
    /// connection of who asks more often than they allow.
    pub keepalive: Duration,
    pub keepalive_wait_max: Duration,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            client_id: String::new(),
            api_key: None,
            bearer_token: None,
            ca_file: None,
            server_name: None,
            client_cert: None,
            keepalive: SOURCE_KEEPALIVE,
            keepalive_wait_max: SOURCE_KEEPALIVE_WAIT_MAX,
        }
    }
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidGrpc {
    #[error("endpoint is required")]
    NoEndpoint,
    #[error(
        "`{endpoint}` is not an endpoint such as http://127.0.0.1:8090, https://memory.internal:8443 or unix:///run/memory.sock"
    )]
    Endpoint { endpoint: String },
    #[error("{setting}: {} cannot be read: {source}", path.display())]
    File { setting: &'static str, path: PathBuf, source: std::io::Error },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] tonic::transport::Error),
}

impl GrpcOptions {
    /// A channel that connects when it is first used, and again whenever its connection is lost. Reads files.
    pub(super) fn channel(&self) -> Result<Channel, InvalidGrpc> {
        let endpoint = self.endpoint.trim();
        if endpoint.is_empty() {
            return Err(InvalidGrpc::NoEndpoint);
        }
        let known = ["http://", "https://", "unix:"].iter().any(|scheme| endpoint.starts_with(scheme));
        let invalid = || InvalidGrpc::Endpoint { endpoint: endpoint.chars().take(200).collect() };
        if !known {
            return Err(invalid());
        }
        let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| invalid())?;
        let parsed = match endpoint.starts_with("https://") {
            true => parsed.tls_config(self.tls()?).map_err(InvalidGrpc::Tls)?,
            false => parsed,
        };
        Ok(parsed
            .connect_timeout(SOURCE_CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive)
            .keep_alive_timeout(self.keepalive_wait_max)
            .keep_alive_while_idle(false)
            .tcp_keepalive(Some(SOURCE_TCP_KEEPALIVE))
            .tcp_keepalive_interval(Some(SOURCE_TCP_KEEPALIVE_INTERVAL))
            .tcp_keepalive_retries(Some(SOURCE_TCP_KEEPALIVE_TRIES))
            .connect_lazy())
    }

    /// Whether a secret is in a file, and may be another one by now.
    pub(super) fn has_secret_in_file(&self) -> bool {
        let secrets = [&self.api_key, &self.bearer_token];
        secrets.into_iter().flatten().any(|secret| matches!(secret, Credential::File(_)))
    }

    /// The other machine to which a secret would go as it is; none where nothing is secret, or hidden, or stays here.
    pub(super) fn in_clear_to(&self) -> Option<String> {
        let endpoint = self.endpoint.trim();
        if !endpoint.starts_with("http://") || (self.api_key.is_none() && self.bearer_token.is_none()) {
            return None;
        }
        let uri = endpoint.parse::<Uri>().ok()?;
        let host = uri.host()?;
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let stays = address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback());
        (!stays).then(|| host.to_owned())
    }

    fn tls(&self) -> Result<ClientTlsConfig, InvalidGrpc> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(file("ca_file", path)?)),
            None => tls.with_native_roots(),
        };
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        if let Some((certificate, key)) = &self.client_cert {
            let certificate = file("client_cert_file", certificate)?;
            tls = tls.identity(Identity::from_pem(certificate, file("client_key_file", key)?));
        }
        Ok(tls)
    }
}

fn file(setting: &'static str, path: &Path) -> Result<Vec<u8>, InvalidGrpc> {
    bounded(path).map_err(|source| InvalidGrpc::File { setting, path: path.to_owned(), source })
}

/// A file of a few lines: of a longer one no more is read than shows that it is one.
pub(super) fn bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = SOURCE_FILE_BYTES_MAX as u64 + 1;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > SOURCE_FILE_BYTES_MAX {
        let message = format!("it has more than source_file_bytes_max = {SOURCE_FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::other(message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_clear_text_are_noticed_where_they_leave_this_machine() {
        let to = |endpoint: &str, key: Option<&str>| {
            let api_key = key.map(|key| Credential::Text(key.into()));
            GrpcOptions { endpoint: endpoint.into(), api_key, ..GrpcOptions::default() }.in_clear_to()
        };
        for (endpoint, machine) in
            [("http://memory.internal:8090", "memory.internal"), ("http://10.0.0.7:8090", "10.0.0.7")]
        {
            assert_eq!(to(endpoint, Some("key")).as_deref(), Some(machine));
            assert_eq!(to(endpoint, None), None);
        }
        for endpoint in [
            "http://127.0.0.1:8090",
            "http://[::1]:8090",
            "http://localhost:8090",
            "https://memory.internal:8443",
            "unix:///run/memory.sock",
        ] {
            assert_eq!(to(endpoint, Some("key")), None, "{endpoint}");
        }
    }
}
