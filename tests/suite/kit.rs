//! The conformance kit: guests in four languages, and native code beside them, do the same to the byte.
//!
//! A test is a group of vectors and a guest, so that a component is loaded once for many of them.

use std::collections::{BTreeMap, BTreeSet};

use millrace::plugins::{RuntimeOptions, WasmRuntime};
use millrace::processors::ProcessorFactory;
use millrace_tests::kit::{
    GROUPS, Language, Partition, check, expected_manifest, faults, granted, text_of_the_guest, vectors,
};

use crate::plugins::rig::{load, options};

/// One module for each guest: what it says of itself, and a test for each group of vectors. Each vector is run as it is
/// written, event by event, in batches of any size and with restarts: a batch means the fold of its events.
macro_rules! kit {
    ($($guest:ident: $language:ident),*) => {$(
        mod $guest {
            use std::collections::BTreeMap;

            use super::{Language, batch_equals_the_fold_of_singles, says_what_it_is};

            #[test]
            fn describe() {
                says_what_it_is(&*Language::$language.factory(&BTreeMap::new()), Language::$language);
            }

            kit!(@groups $language: load, crossing, effects, failures, keyed, config, flush, snapshot);
        }
    )*};
    (@groups $language:ident: $($group:ident),*) => {$(
        #[test]
        fn $group() {
            batch_equals_the_fold_of_singles(Language::$language, stringify!($group));
        }
    )*};
}

kit!(rust: Rust, js: Js, python: Python, wat: Wat, native: Native);

fn batch_equals_the_fold_of_singles(language: Language, group: &str) {
    check(&|settings| language.factory(settings), &vectors(group));
}

pub(super) fn says_what_it_is(factory: &dyn ProcessorFactory, language: Language) {
    let (found, expected) = (factory.manifest(), expected_manifest(language));
    for (found, expected) in found.tables.iter().zip(&expected.tables) {
        assert_eq!(found, expected, "every flag of every column, and the window");
    }
    assert_eq!(found.ordering_key, expected.ordering_key, "the key");
    assert_eq!(found.changes, expected.changes, "who may follow changes");
    assert_eq!(*found, expected);
}

#[test]
fn there_are_enough_vectors_and_each_has_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for group in GROUPS {
        for vector in vectors(group) {
            assert!(names.insert((group, vector.name.clone())), "{group}: {} twice", vector.name);
        }
    }
    assert!(names.len() >= 100, "{} vectors", names.len());
}

/// Breaks the guest in one place after the other: the kit must notice each, or it would notice nothing.
#[test]
fn a_guest_that_breaks_a_rule_is_found_out() {
    let broken = [
        ("failures", "(global.set $record (local.get $record))", ""),
        ("failures", "(i32.const 0xc0)", "(i32.const 0xff)"),
        ("failures", "(i32.const 4096)", "(i32.const 4095)"),
        ("crossing", "(call $cell-optional (i32.const 7))", "(call $cell-optional (i32.const 6))"),
        ("crossing", "(call $cell-8 (i32.const 8) (call $at))", "(call $cell-8 (i32.const 8) (i64.const 0))"),
        ("crossing", "(i32.const 16777619)", "(i32.const 16777617)"),
        ("effects", "(i32.store offset=8 (local.get $r) (global.get $index))", ""),
        ("effects", "(i64.store offset=24 (local.get $r) (local.get $at))", ""),
        (
            "effects",
            "(local.set $has (i32.ne (call $schema) (i32.const 2)))",
            "(local.set $has (i32.const 1))",
        ),
        (
            "effects",
            "(i32.const 5) (i32.const 0) (i64.extend_i32_u (call $depth))",
            "(i32.const 5) (i32.const 0) (i64.const 0)",
        ),
        (
            "effects",
            "(call $entry (i32.const 0x612) (i32.const 3)",
            "(call $entry (i32.const 0x607) (i32.const 4)",
        ),
        (
            "config",
            "(i32.load8_u (i32.const 0x100)) (i32.load (i32.const 0x104))",
            "(i32.const 0) (i32.load (i32.const 0x104))",
        ),
        ("keyed", "(global.set $written (i32.add (global.get $written) (i32.const 1)))", ""),
        ("keyed", "(i64.lt_s (call $at) (local.get $expires))", "(i64.le_s (call $at) (local.get $expires))"),
        ("keyed", "(global.get $deletes) (i32.const 64)", "(global.get $deletes) (i32.const 65)"),
        ("keyed", "(i32.const 1000) (i32.const 0x100)", "(i32.const 0) (i32.const 0x100)"),
        ("keyed", "(local.set $more (i32.load8_u (i32.const 0x108)))", "(local.set $more (i32.const 0))"),
        ("keyed", "(br_if $next (i32.eqz (i32.load offset=24 (local.get $ours))))", ""),
        ("load", "(global.set $count (i64.load (local.get $state)))", ""),
        (
            "flush",
            "(i64.add (global.get $count) (i64.const 1)) (global.get $count)",
            "(i64.add (global.get $count) (i64.const 1)) (i64.const 0)",
        ),
        ("snapshot", "(global.set $count (i64.add (global.get $count) (i64.const 1)))", ""),
    ];
    // It is loaded for each vector anew, and compiled once.
    let code = tempfile::tempdir().expect("a folder");
    let options = RuntimeOptions { cache_dir: Some(code.path().into()), ..options() };
    let (whole, runtime) = (text_of_the_guest(), WasmRuntime::new(options).expect("the runtime starts"));
    for (group, rule, otherwise) in broken {
        assert!(whole.contains(rule), "{rule} is in the guest");
        let component = ::wat::parse_str(whole.replace(rule, otherwise)).expect("it is still a component");
        let guest = |settings: &BTreeMap<String, String>| {
            load(&runtime, &component, &granted(settings.clone())).expect("the guest loads")
        };
        let vectors = vectors(group);
        let wrong: Vec<_> = [Partition::AsWritten, Partition::Singles]
            .into_iter()
            .flat_map(|partition| faults(&guest, &vectors, partition))
            .collect();
        assert!(!wrong.is_empty(), "nobody notices {otherwise:?} in place of {rule}");
    }
}
