//! What an operator may set of the gRPC server.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Events and checkpoints for clients that speak `memory.v1`, on a port of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcConfig {
    /// Where to listen; none: there is no such server. Without credentials in `auth`, a loopback address.
    pub bind: Option<SocketAddr>,
    /// A certificate chain in PEM, and its key; without them it speaks clear text.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Whether checkpoints of clients are kept.
    pub checkpoints: GrpcCheckpoints,
}

/// Checkpoints of clients lie in the folder of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrpcCheckpoints {
    /// Where this host is the only one of its log.
    #[default]
    Auto,
    /// Also where it shares the log: each client always comes to the same host.
    Host,
}

impl GrpcConfig {
    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self, has_credentials: bool) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: String| Err((format!("grpc.{key}"), why));
        let files = [("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        let Some(bind) = self.bind else {
            return match files.iter().find(|(_, file)| file.is_some()) {
                Some((key, _)) => wrong(key, "without `grpc.bind` there is no gRPC server".into()),
                None => Ok(()),
            };
        };
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => {
                return wrong("key_file", "`grpc.cert_file` needs the key of the certificate".into());
            }
            (None, Some(_)) => {
                return wrong("cert_file", "`grpc.key_file` needs the certificate of the key".into());
            }
            _ => {}
        }
        if !has_credentials && !bind.ip().to_canonical().is_loopback() {
            let why = format!(
                "{bind} can be reached from outside, and there are neither `auth.tokens` nor `auth.jwt`"
            );
            return wrong("bind", why);
        }
        Ok(())
    }
}
