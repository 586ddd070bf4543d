//! The checklists of live queries, streams, channels, the control feed, and of processors that are fed from outside: each
//! item has a test of its name, so that none is lost unnoticed.
//!
//! Live queries: P protocol, S server-sent events, W WebSocket, H the HTTP edge, B the writer of events, Q checks of queries,
//! F conditions, O order and names, M moves of a window, I the index, E the engine, U the hub of changes, X from
//! end to end, N what a window must get right that is easily got wrong. N12 to N14 are about several hosts, and
//! there is one.
//!
//! Streams: C what the reference asserts (1 to 14 envelope, names, publishing; 16 and 17 tails; 18 and 19 groups; 20 and
//! 21 errors; 22 presence; 23 wakes; 24 to 27 and 75 to 77 the cache; 28 to 45, 47 and 48 changes and who follows them; 78
//! to 82 the cluster), SN what it lacks. A test may stand for several: `sn4_sn7_…`. `PLACES` says on which backends. Not
//! asserted here: what belongs to the reference's outbox, its documents, its projections and its sharded tier.
//!
//! Channels: K, 1 to 21 the bullets of the router and its flows, in their order. Not asserted here: the reference's shared
//! memory, which sends every entry to every host. Nothing here does: a store has one router's records, and hosts that
//! share channels share a store.
//!
//! Control feed, of the module `control` alone: C what the reference asserts, restated for plugins (1 to 5 events; 6 to 13
//! sources and sinks; 14 to 24 the applier; 25 and 26 acknowledgements; 27 and 28 values that could be meant otherwise; 29, 30
//! and 61 bursts; 31 to 37 the outbox; 38 to 47 artifacts; 48 to 52 snapshots; 53 to 58 repairs and changes; 59 and 60 what
//! serves meanwhile; 62 several writers; 63 components), W its weaknesses, M the tests that it lacks and must have, in the
//! order in which they are listed there. Where the reference asserts a defect, the test asserts the better rule and says so.
//! Not asserted here: W16, which is about a mode that nothing here has.
//!
//! Processors fed from outside: R what the reference asserts (1 to 7 the runtime; 8 to 22 the turn tracer; 23 and 24 what it
//! tells of a turn; 25 to 36 checkpoints; 37 to 53 the event stream; 55 and 56 from end to end), RX the cases that it
//! observed and lacks tests for, by their words. Where the reference asserts a defect, the test asserts the better rule: a
//! stale cursor follows a policy, streams that end at once are waited for longer and longer, the first checkpoint after a
//! restart is put when something changed, the cursor is the runtime's own whatever a processor calls it, and replayed events
//! are what they were and not what has become of them (48). 9 fetches nothing: a sandbox has the entries that passed.
//! 21 and 22 have no exporter: what a turn's consumer cannot take is refused. 40 has no changes over gRPC, which serves
//! events and checkpoints only: what was published over HTTP is shown there. 41 and 42 have tenants for members: no event
//! lets somebody in or out. 46 has nothing that copies whole conversations: an entry of the channel `context` is shown to who
//! asks for it. 50 has reasons that our server takes and does not look at. Not asserted here: 54, the bus, which is the hub's
//! U1 to U10; of 36 user assertions, and the gates by scopes of OpenID, which rights take the place of. `sides` says which
//! are asserted of our server and which of our client, and against whom.

mod sides;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::process::{Command, Stdio};

use super::layering::sources;

const ITEMS: [(&str, &[u8]); 14] = [
    ("p", &[1, 2]),
    ("s", &[1, 2, 3, 4, 5, 6]),
    ("w", &[1, 2, 3, 4, 5, 6]),
    ("h", &[1, 2]),
    ("b", &[1, 2, 3]),
    ("q", &[1, 2, 3, 4, 5, 6]),
    ("f", &[1, 2]),
    ("o", &[1, 2]),
    ("m", &[1, 2, 3, 4, 5]),
    ("i", &[1, 2, 3, 4]),
    ("e", &[1, 2, 3, 4, 5, 6, 7, 8]),
    ("u", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("x", &[1, 2, 3]),
    ("n", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 17]),
];

const STREAM_ITEMS: [(&str, &[RangeInclusive<u32>]); 2] =
    [("c", &[1..=14, 16..=45, 47..=48, 75..=82]), ("sn", &[1..=12, 14..=14, 16..=17, 20..=26])];

const BACKENDS: [&str; 4] = ["sqlite", "memory", "redis", "valkey"];

/// Items of streams that are asserted on the same backends.
struct Placed {
    backends: &'static [&'static str],
    /// Why on no other.
    why: &'static str,
    items: Lists<'static>,
}

/// Each item of streams once.
const PLACES: [Placed; 8] = [
    Placed {
        backends: &BACKENDS,
        why: "events are kept there",
        items: &[
            ("c", &[1..=2, 5..=6, 12..=14, 16..=19, 23..=23, 28..=48]),
            ("sn", &[1..=4, 6..=12, 14..=14, 17..=17, 21..=23, 25..=26]),
        ],
    },
    Placed {
        backends: &["memory", "redis", "valkey"],
        why: "what the embedded host keeps beside its log it keeps in memory",
        items: &[("c", &[22..=22, 24..=27, 75..=77, 82..=82]), ("sn", &[16..=16, 24..=24])],
    },
    Placed {
        backends: &["sqlite", "redis", "valkey"],
        why: "a host has its rows in its own store wherever its log is, and none has its log in memory",
        items: &[("sn", &[20..=20])],
    },
    Placed {
        backends: &["redis", "valkey"],
        why: "nothing else is reached over a connection",
        items: &[("c", &[20..=20]), ("sn", &[5..=5])],
    },
    Placed {
        backends: &[],
        why: "a batch, or the edge before it, refuses an event that no backend has seen yet",
        items: &[("c", &[3..=4])],
    },
    Placed {
        backends: &[],
        why: "upcasters are checked when they are registered, and a type is compared by who reads",
        items: &[("c", &[7..=8])],
    },
    Placed {
        backends: &[],
        why: "names are made of texts in one place, before anything is kept under them",
        items: &[("c", &[9..=11])],
    },
    Placed {
        backends: &[],
        why: "an error keeps its code from type to type, and an owner is computed from keys and members",
        items: &[("c", &[21..=21, 78..=81])],
    },
];

/// Of items that claim several things, what the tests of one of these begin with, and where it must hold.
const CLAIMS: [(&str, &[&str]); 6] = [
    ("c13_a_cap_", &BACKENDS),
    ("c13_change_streams_have_their_newest_entries_", &BACKENDS),
    ("sn4_what_a_cap_drops_", &BACKENDS),
    ("sn14_a_scope_survives_the_outbox_", &["redis", "valkey"]),
    ("sn17_eviction_by_the_tail_survives_", &["redis", "valkey"]),
    ("sn24_an_emptied_killed_or_paused_server_", &["redis", "valkey"]),
];

const CHANNEL_ITEMS: [(&str, &[RangeInclusive<u32>]); 1] = [("k", &[1..=21])];

const CONTROL_ITEMS: [(&str, &[RangeInclusive<u32>]); 3] =
    [("c", &[1..=63]), ("w", &[1..=15, 17..=21]), ("m", &[1..=18])];

/// Whose letters mean something else than everywhere else.
const CONTROL: &str = "control::";

#[test]
fn every_item_of_the_checklist_of_streams_has_a_test_of_its_name() {
    let missing = missing_of(&STREAM_ITEMS, &tests_beside_the_control_feed());
    assert!(missing.is_empty(), "no test is named after these: {missing:?}");
}

/// The same must hold wherever it could be otherwise.
#[test]
fn items_of_streams_about_what_a_backend_keeps_are_asserted_on_each() {
    let tests = tests_beside_the_control_feed();
    for backend in BACKENDS {
        let on_it = tests.iter().filter(|path| backend_of(path) == Some(backend)).cloned();
        let on_it: Vec<_> = on_it.collect();
        for Placed { items, why, .. } in PLACES.iter().filter(|place| place.backends.contains(&backend)) {
            let missing = missing_of(items, &on_it);
            assert!(missing.is_empty(), "{backend}: no test is named after these ({why}): {missing:?}");
        }
        for (claim, _) in CLAIMS.iter().filter(|(_, backends)| backends.contains(&backend)) {
            let there = on_it.iter().any(|path| name_of(path).starts_with(claim));
            assert!(there, "{backend}: no test begins with {claim}");
        }
    }
}

#[test]
fn every_item_of_the_checklist_of_streams_has_one_place() {
    let mut placed = BTreeSet::new();
    for Placed { items, why, .. } in &PLACES {
        for item in numbers_of(items) {
            assert!(placed.insert(item), "{item:?} has two places, one of them since {why}");
        }
    }
    let items: BTreeSet<_> = numbers_of(&STREAM_ITEMS).collect();
    let unplaced: Vec<_> = items.difference(&placed).collect();
    assert!(unplaced.is_empty(), "these have no place: {unplaced:?}");
}

/// The innermost module that is named after a backend says what a test runs on.
fn backend_of(path: &str) -> Option<&'static str> {
    let named =
        |module: &str| BACKENDS.into_iter().find(|backend| module.split('_').next() == Some(*backend));
    path.rsplit("::").skip(1).find_map(named)
}

/// Those of the control feed have a list of their own, which begins with the same letter.
fn tests_beside_the_control_feed() -> Vec<String> {
    let mut tests = paths_of_this_binary();
    tests.retain(|path| !path.starts_with(CONTROL));
    tests
}

#[test]
fn every_item_of_the_checklist_of_channels_has_a_test_of_its_name() {
    let missing = missing_of(&CHANNEL_ITEMS, &tests_beside_the_control_feed());
    assert!(missing.is_empty(), "no test is named after these: {missing:?}");
}

#[test]
fn every_item_of_the_checklist_of_the_control_feed_has_a_test_of_its_name() {
    let mut tests = paths_of_this_binary();
    tests.retain(|path| path.starts_with(CONTROL));
    let missing = missing_of(&CONTROL_ITEMS, &tests);
    assert!(missing.is_empty(), "no test is named after these: {missing:?}");
}

type Lists<'a> = &'a [(&'static str, &'a [RangeInclusive<u32>])];

/// Items that no test is named after.
fn missing_of(lists: Lists<'_>, tests: &[String]) -> Vec<(&'static str, u32)> {
    let mut found = BTreeSet::new();
    for path in tests {
        found.extend(name_of(path).split('_').map_while(|part| item(lists, part)));
    }
    let items: BTreeSet<_> = numbers_of(lists).collect();
    items.difference(&found).copied().collect()
}

fn numbers_of(lists: Lists<'_>) -> impl Iterator<Item = (&'static str, u32)> {
    lists.iter().flat_map(|(list, numbers)| numbers.iter().cloned().flatten().map(move |n| (*list, n)))
}

/// `c5`, `c05` and `sn12` name items.
fn item(lists: Lists<'_>, part: &str) -> Option<(&'static str, u32)> {
    let digits = part.find(|c: char| c.is_ascii_digit())?;
    let (list, number) = part.split_at(digits);
    let list = lists.iter().find(|(known, _)| *known == list)?.0;
    Some((list, number.parse().ok()?))
}

#[test]
fn every_item_of_the_checklist_has_a_test_of_its_name() {
    let mut tests: Vec<_> =
        tests_beside_the_control_feed().iter().map(|path| name_of(path).to_owned()).collect();
    tests.extend(unit_tests());
    let missing: Vec<String> = ITEMS
        .iter()
        .flat_map(|(letter, numbers)| numbers.iter().map(move |number| format!("{letter}{number}_")))
        .filter(|item| !tests.iter().any(|test| test.starts_with(item.as_str())))
        .collect();
    assert!(missing.is_empty(), "no test begins with these: {missing:?}");
}

/// A test's name without its modules.
fn name_of(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// Names of the tests that were compiled into this binary, with their modules.
fn paths_of_this_binary() -> Vec<String> {
    let this = std::env::current_exe().expect("a running test has a path");
    let output = Command::new(this).args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
    let output = output.expect("this binary runs");
    let list = String::from_utf8(output.stdout).expect("names are text");
    let paths = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let paths: Vec<_> = paths.map(str::to_owned).collect();
    assert!(paths.len() > 300, "it lists its tests: {}", paths.len());
    paths
}

/// Names of the host's own tests, which are in another binary, from their source.
fn unit_tests() -> Vec<String> {
    let mut names = Vec::new();
    for text in sources(&["host/src/live"]).values() {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ")
                && std::mem::take(&mut is_test)
            {
                names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    assert!(names.len() > 10, "the host has tests of its own: {names:?}");
    names
}
