//! Live queries: windows over tables, against what a query means.

mod bounds;
mod columns;
mod mishaps;
mod model;
mod order;
mod rig;
mod sharing;
mod store;
