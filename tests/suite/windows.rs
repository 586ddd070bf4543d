//! Live queries: windows over tables, against what a query means.

mod model;
mod sharing;
mod store;
