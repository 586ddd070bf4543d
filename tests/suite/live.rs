//! Claims about live queries.

mod acts;
mod shell;
mod sockets;
