//! Stands for the gRPC server in a host that was built without it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Edge, GatewayError, GrpcServerOptions};

#[derive(Debug)]
pub(super) enum Listening {}

impl Listening {
    pub(super) async fn bind(_: &GrpcServerOptions, _: bool) -> Result<Self, GatewayError> {
        Err(GatewayError::Grpc { detail: "grpc.bind: this host was built without gRPC".into() })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        match *self {}
    }

    pub(super) async fn serve(self, _: Arc<Edge>) {
        match self {}
    }
}
