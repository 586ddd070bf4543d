//! What the tests share: conformance suites over the seams, and helpers.

pub mod bench;
pub mod conformance;
