//! Ports of loopback that are a test's own for as long as it holds them.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port that is bound and does not listen: who connects is refused, until a server that was told the number listens.
///
/// Both sides say that they share the address, so the system lets the server in; and it hands the number out to nobody
/// else, also while the server is down between two of its lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _held: Socket,
}

impl Port {
    /// A free one.
    pub fn hold() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
        held.set_reuse_address(true).expect("an address can be shared");
        held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("loopback has a free port");
        let address = held.local_addr().expect("it is bound").as_socket().expect("it is of the internet");
        Self { number: address.port(), _held: held }
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
