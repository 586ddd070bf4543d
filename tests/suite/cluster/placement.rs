//! Which partition a key lies in, and who owns it.

use std::collections::BTreeMap;

use millrace::cluster::placement::{PARTITIONS, owner, partition};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("shard-{n}")).collect()
}

fn owners(members: &[String]) -> Vec<&str> {
    (0..PARTITIONS).map(|one| owner(members.iter().map(String::as_str), one).expect("an owner")).collect()
}

#[test]
fn c78_keys_lie_in_partitions_of_their_own_evenly() {
    let mut counts = vec![0; 256];
    for tenant in 0..200 {
        for entity in 0..100 {
            let place = || partition(&format!("tenant-{tenant}"), &format!("entity-{entity}"), PARTITIONS);
            assert_eq!(place(), place());
            counts[usize::try_from(place()).expect("small")] += 1;
        }
    }
    let empty = counts.iter().filter(|count| **count == 0).count();
    assert!(empty * 10 <= counts.len(), "{empty} of 256 are empty");
    assert_ne!(partition("ab", "c", 1 << 40), partition("a", "bc", 1 << 40), "where one ends counts");
    assert_eq!(partition("a", "b", 0), 0);
    // Another version of the host has to agree.
    assert_eq!((partition("acme", "flight", PARTITIONS), partition("acme", "lobby", 16)), (99, 9));
}

#[test]
fn c79_everybody_finds_the_same_owner_and_everybody_owns_something() {
    let members = names(3);
    let mut turned = members.clone();
    turned.rotate_left(1);
    assert_eq!(owners(&members), owners(&turned));
    for member in &members {
        assert!(owners(&members).contains(&member.as_str()), "{member}");
    }
    assert_eq!(owner(std::iter::empty::<&str>(), 7), None);
    assert_eq!(owners(&["b".to_owned(), "a".to_owned(), "a".to_owned()]), owners(&["a".into(), "b".into()]));
}

#[test]
fn c80_when_a_member_goes_only_its_partitions_move() {
    let members = names(5);
    let before = owners(&members);
    for gone in 0..5 {
        let mut left = members.clone();
        let name = left.remove(gone);
        for (place, (before, after)) in before.iter().zip(owners(&left)).enumerate() {
            assert!(*before == name || *before == after, "partition {place}: {before} to {after}");
        }
    }
}

#[test]
fn c81_five_members_share_within_a_half_and_twice() {
    let members = names(5);
    let mut shares = BTreeMap::new();
    for owner in owners(&members) {
        *shares.entry(owner).or_insert(0_usize) += 1;
    }
    for (member, share) in &shares {
        assert!((26..=102).contains(share), "{member} has {share} of 256: {shares:?}");
    }
    assert_eq!(shares.len(), 5);
}
