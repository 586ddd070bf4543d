//! Every test of the workspace that needs the host, in one binary: linking it dominates.

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
mod streams;
mod tables;
