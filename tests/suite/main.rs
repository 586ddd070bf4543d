//! Every test of the workspace that needs the host, in one binary: linking it dominates.

mod bad_host;
mod batches;
mod checkpoints;
mod cli;
mod commands;
mod gateway;
mod guests;
mod kills;
mod layering;
mod plugins;
mod powercut;
mod processors;
mod registry;
mod replay;
mod shadow;
mod streams;
mod tables;
mod tenants;
