//! The model of live queries, in its short form: 300 worlds of 600 steps in memory, and some over the embedded
//! store. `cargo xtask soak` has the long one.

use millrace_tests::model::{Kind, Tally, run};

const STEPS: usize = 600;

/// So many worlds, of seeds that follow each other.
fn worlds(kind: Kind, count: u64) {
    let first: u64 = rand::random::<u64>() >> 16;
    let mut tally = Tally::default();
    for seed in first..first + count {
        match run(kind, seed, STEPS) {
            Ok(ran) => tally += ran,
            Err(why) => panic!("{why}\nonce more: {}", millrace_tests::model::again(kind, seed, STEPS)),
        }
    }
    let least = usize::try_from(count).expect("few") * 50;
    assert!(tally.compared > least && tally.resumed * 20 > least, "{tally:?} is too little to mean anything");
    assert!(tally.reanchored * 20 > least, "{tally:?} is too little to mean anything");
}

// 300 runs of 600 steps, in parts that run side by side.

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_first_part() {
    worlds(Kind::Memory, 75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_second_part() {
    worlds(Kind::Memory, 75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_third_part() {
    worlds(Kind::Memory, 75);
}

#[test]
fn n17_every_clients_array_is_its_query_after_every_batch_fourth_part() {
    worlds(Kind::Memory, 75);
}

#[test]
fn n17_every_clients_array_is_its_query_over_the_embedded_store_too() {
    worlds(Kind::Store, 2);
}
