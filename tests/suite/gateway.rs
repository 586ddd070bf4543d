//! Claims about the edge: a real gateway on loopback over the embedded store.

mod connections;
mod deciding;
mod documents;
mod fakes;
mod live;
mod live_sockets;
mod publishing;
mod reading;
mod rig;
mod states;
mod uploads;
