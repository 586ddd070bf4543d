//! The conformance kit: guests in four languages, and native code beside them, do the same to the byte.
//!
//! A test is a group of vectors and a guest, so that a component is loaded once for many of them.

use std::collections::{BTreeMap, BTreeSet};

use millrace_tests::kit::{GROUPS, Language, Partition, check_group, expected_manifest, vectors};

/// One module for each guest: what it says of itself, and a test for each group of vectors. Each vector is run as it is
/// written, event by event, in batches of any size and with restarts: a batch means the fold of its events.
macro_rules! kit {
    ($($guest:ident: $language:ident),*) => {$(
        mod $guest {
            use super::{Language, batch_equals_the_fold_of_singles, says_what_it_is};

            #[test]
            fn describe() {
                says_what_it_is(Language::$language);
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
    let random = [1, 2].map(Partition::Random);
    for partition in
        [Partition::AsWritten, Partition::Singles, Partition::RestartEach].into_iter().chain(random)
    {
        check_group(language, group, partition);
    }
}

fn says_what_it_is(language: Language) {
    let factory = language.factory(&BTreeMap::new());
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
