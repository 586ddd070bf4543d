//! Every test of the workspace that needs the host, in one binary: linking it dominates.

mod bad_host;
mod batches;
mod checkpoints;
mod cli;
mod commands;
mod crash_points;
mod gateway;
mod guests;
mod hostile;
mod kills;
mod layering;
mod letters;
mod order;
mod parking;
mod plugins;
mod powercut;
mod processors;
mod registry;
mod replay;
mod seeing;
mod shadow;
mod starts;
mod state;
mod streams;
mod tables;
mod tenants;
