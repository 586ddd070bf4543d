//! Who owns what in a fleet.

pub mod placement;
