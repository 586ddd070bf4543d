//! Every test of the workspace that needs the host, in one binary: linking it dominates.

mod batches;
mod checkpoints;
mod cli;
mod gateway;
mod guests;
mod layering;
mod plugins;
mod processors;
mod streams;
mod tables;
