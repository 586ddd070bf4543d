//! Attacks: guests written to break the host, each with the way in which it must end.
//!
//! `handling` has those that strike while an event is handled, `living` those in the other calls of an
//! instance and at its start, `feeding` those that use the log, and `bounds` those that wear a limit down.
//! The ones written in Rust are in `plugins/misbehaving`; bombs at compile time and forged cache entries
//! are told of under `plugins`.

mod autopsy;
mod bounds;
mod feeding;
mod handling;
mod living;

#[test]
fn there_are_more_than_forty_attacks() {
    let attacks = handling::count() + living::count();
    assert!(attacks >= 80, "{attacks} attacks");
}
