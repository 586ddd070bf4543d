//! Items of processors that are fed from outside: what they claim is claimed of a server, of a client, or of both, and shows
//! only against somebody. What both of our ends get wrong in the same way is seen by nobody but a peer of another make.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{Lists, missing_of, name_of, numbers_of, tests_beside_the_control_feed};

const ITEMS: [(&str, &[RangeInclusive<u32>]); 1] = [("r", &[1..=53, 55..=56])];

/// Whom a test asks, and against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Our server, asked by a client of the test's own.
    Server,
    /// Our server, asked by a client in Python.
    ServerOfPython,
    /// Our client, at a server of ours or at none.
    Client,
    /// Our client, at a server in Python.
    ClientOfPython,
}

use Side::{Client, ClientOfPython, Server, ServerOfPython};

const ALL: [Side; 4] = [Server, ServerOfPython, Client, ClientOfPython];

/// Which side the tests of a module are on: the first that fits counts.
const MODULES: [(&str, Side); 9] = [
    ("grpc::peer::", ServerOfPython),
    ("grpc::hosts::", Client),
    ("grpc::onward::", Client),
    ("grpc::", Server),
    ("source::faults::", ClientOfPython),
    ("source::peer::", ClientOfPython),
    ("source::sizes::", ClientOfPython),
    ("source::tracer::", ClientOfPython),
    ("source::", Client),
];

/// Items that are asserted on the same sides.
struct Placed {
    sides: &'static [Side],
    /// Why on no other.
    why: &'static str,
    items: Lists<'static>,
}

/// Each item once.
const PLACES: [Placed; 5] = [
    Placed {
        sides: &[Client],
        why: "the steps of the loop, each held by clients that the test makes up; what a server does to it is among the cases",
        items: &[("r", &[1..=2, 4..=7])],
    },
    Placed {
        sides: &[ClientOfPython],
        why: "from end to end: events of a server go in, turns come out",
        items: &[("r", &[3..=3, 55..=56])],
    },
    Placed {
        sides: &[],
        why: "what a plugin makes of entries that its kit hands it: no server and no client has a part in it",
        items: &[("r", &[8..=24])],
    },
    Placed {
        sides: &[Server, ServerOfPython],
        why: "who may do what, what is kept, and what is shown are the server's to say; a client has no say in it",
        items: &[("r", &[25..=46, 53..=53])],
    },
    Placed {
        sides: &ALL,
        why: "cursors, filters and scopes are said by one end and heeded by the other",
        items: &[("r", &[47..=52])],
    },
];

/// What was observed of the reference, the tests that say what is so here, and on which sides each of them is.
struct Case {
    what: &'static str,
    names: &'static [&'static str],
    sides: &'static [Side],
}

const CASES: [Case; 17] = [
    Case {
        what: "content-type mismatch, and an empty type",
        names: &["rx_content_type_mismatch_", "rx_empty_content_type_"],
        sides: &[Client],
    },
    Case { what: "gaps of the back-off", names: &["rx_backoff_"], sides: &[Client] },
    Case { what: "streams that end at once", names: &["rx_streams_that_end_at_once_"], sides: &[Client] },
    Case {
        what: "a server that is killed or stopped",
        names: &["rx_server_kill_", "rx_graceful_stop_"],
        sides: &[ServerOfPython, Client, ClientOfPython],
    },
    Case { what: "stale cursor that ends a run", names: &["rx_stale_cursor_fails_"], sides: &[Client] },
    Case {
        what: "stale cursor that a policy gets over",
        names: &["rx_stale_cursor_oldest_", "rx_stale_cursor_tail_"],
        sides: &[ClientOfPython],
    },
    Case { what: "stale cursor and any policy", names: &["rx_stale_cursor_follows_"], sides: &[Client] },
    Case {
        what: "stale cursor that has plugins made anew",
        names: &["rx_stale_cursor_rebuild"],
        sides: &[Client, ClientOfPython],
    },
    Case {
        what: "events that the server has left out, as it says",
        names: &["rx_pubsub_recovery_"],
        sides: &[Client, ClientOfPython],
    },
    Case {
        what: "storm of refusals by a rate limit",
        names: &["rx_rate_limit_storm_"],
        sides: &[ClientOfPython],
    },
    Case {
        what: "a bound of the server, and when to come again",
        names: &["rx_resource_exhausted_"],
        sides: &[ServerOfPython],
    },
    Case {
        what: "live entries in the shape of a summary",
        names: &["rx_summary_shaped_"],
        sides: &[ClientOfPython],
    },
    Case {
        what: "events twice where a replay ends, and a stream that is ended for another",
        names: &["rx_duplicates_at_the_switch_", "rx_evicted_"],
        sides: &[ClientOfPython],
    },
    Case {
        what: "numbers that a client has",
        names: &[
            "rx_number_beyond_2_53_is_exact_in_a_checkpoint",
            "rx_number_beyond_2_53_is_exact_in_a_payload",
        ],
        sides: &[ClientOfPython],
    },
    Case {
        what: "numbers that a server shows",
        names: &["rx_number_beyond_2_53_is_exact_in_a_stream"],
        sides: &[Server, ServerOfPython],
    },
    Case { what: "redundant first put", names: &["rx_no_redundant_first_put"], sides: &[Client] },
    Case { what: "cursor of another name", names: &["rx_cursor_of_another_name_"], sides: &[Client] },
];

fn side_of(path: &str) -> Option<Side> {
    MODULES.iter().find(|(module, _)| path.starts_with(module)).map(|(_, side)| *side)
}

fn tests_on(side: Side) -> Vec<String> {
    let mut tests = tests_beside_the_control_feed();
    tests.retain(|path| side_of(path) == Some(side));
    tests
}

#[test]
fn every_item_of_the_checklist_of_processors_fed_from_outside_has_a_test_of_its_name() {
    let missing = missing_of(&ITEMS, &tests_beside_the_control_feed());
    assert!(missing.is_empty(), "no test is named after these: {missing:?}");
}

#[test]
fn every_item_of_processors_fed_from_outside_has_one_place() {
    let mut placed = BTreeSet::new();
    for Placed { items, why, .. } in &PLACES {
        for item in numbers_of(items) {
            assert!(placed.insert(item), "{item:?} has two places, one of them since {why}");
        }
    }
    let items: BTreeSet<_> = numbers_of(&ITEMS).collect();
    let odd: Vec<_> = items.symmetric_difference(&placed).collect();
    assert!(odd.is_empty(), "these have no place, or are no items: {odd:?}");
}

#[test]
fn items_and_cases_of_processors_fed_from_outside_are_asserted_on_each_of_their_sides() {
    for (module, side) in MODULES {
        let tests = tests_on(side);
        assert!(
            tests.iter().any(|path| path.starts_with(module)),
            "{module} has no test on the side {side:?}"
        );
    }
    for side in ALL {
        let tests = tests_on(side);
        for Placed { items, why, .. } in PLACES.iter().filter(|place| place.sides.contains(&side)) {
            let missing = missing_of(items, &tests);
            assert!(missing.is_empty(), "{side:?}: no test is named after these ({why}): {missing:?}");
        }
        for Case { what, names, .. } in CASES.iter().filter(|case| case.sides.contains(&side)) {
            for name in *names {
                let is_there = tests.iter().any(|path| name_of(path).starts_with(name));
                assert!(is_there, "{side:?}: {what}: no test begins with {name}");
            }
        }
    }
}
