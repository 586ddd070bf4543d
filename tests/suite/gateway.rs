//! Claims about the edge: a real gateway on loopback over the embedded store.

mod auth_browsers;
mod auth_ends;
mod auth_keys;
mod auth_serve;
mod auth_settings;
mod auth_tables;
mod auth_tokens;
mod changes;
mod channels;
mod connections;
mod deciding;
mod documents;
mod fakes;
mod issuer;
mod live;
mod live_abuse;
mod live_auth;
mod live_queries;
mod live_slow;
mod live_sockets;
mod presence;
mod publishing;
mod reading;
mod rig;
mod states;
mod uploads;
