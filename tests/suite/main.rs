//! Every test of the workspace that needs the host, in one binary: linking it dominates.

mod batches;
mod checkpoints;
mod cli;
mod gateway;
mod guests;
mod kills;
mod layering;
mod plugins;
mod powercut;
mod processors;
mod registry;
mod streams;
mod tables;
