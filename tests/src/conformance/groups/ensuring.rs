//! Making groups: several at once, as many as there may be, and from what comes on.

use std::sync::Arc;

use millrace::clock::Clock as _;
use millrace::event::{Micros, Position};
use millrace::streams::groups::{
    GroupChange, GroupError, GroupId, GroupLimits, GroupOptions, GroupStart, GroupStatus,
};
use tokio::task::JoinSet;

use super::{Stage, THREE_TRIES, code, group};
use crate::conformance::change_streams::asset_scopes;
use crate::conformance::effects::tenant;

/// The same groups as another host sees them, where hosts share them.
fn other_host(stage: &Stage) -> Stage {
    if stage.shared { stage.restarted() } else { stage.clone() }
}

/// Has all of them make a group at once.
async fn at_once(makers: &[(&Stage, GroupId, GroupChange)]) -> Vec<Result<(GroupStatus, bool), GroupError>> {
    let mut making = JoinSet::new();
    for (stage, id, change) in makers {
        let (groups, id, change) = (Arc::clone(&stage.groups), id.clone(), *change);
        making.spawn(async move { groups.ensure(&id, GroupStart::Oldest, change).await });
    }
    making.join_all().await
}

pub async fn those_who_make_one_group_at_once_make_one_and_are_answered_alike(stage: Stage) {
    fn told(status: &GroupStatus) -> (GroupId, GroupOptions, Micros, Position, u64) {
        (status.group.clone(), status.options, status.created_at, status.low, status.lag_events)
    }
    let other = other_host(&stage);
    stage.append(&["a1"]).await;
    for round in 0..20 {
        let id = stage.group("acme", &format!("billing-{round}"));
        let makers = [&stage, &other, &stage, &other].map(|host| (host, id.clone(), THREE_TRIES));
        let made: Vec<_> = at_once(&makers).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(made.iter().filter(|(_, created)| *created).count(), 1, "one of them has made it");
        assert!(made.iter().all(|(status, _)| told(status) == told(&made[0].0)), "{made:?}");
        assert_eq!((made[0].0.lag_events, made[0].0.options.attempts_max), (1, 3));
        let listed = stage.groups.list(&tenant("acme"), &id.stream).await.unwrap();
        assert_eq!(listed.len(), round + 1);
    }
}

/// What is stored last is what entries are leased by.
pub async fn options_that_two_change_at_once_are_the_same_for_the_store_and_for_leases(stage: Stage) {
    let other = other_host(&stage);
    let id = stage.made(THREE_TRIES).await;
    for (round, key) in (0_u64..).zip('a'..='t') {
        let lease = |lease_ms| GroupChange { lease_ms: Some(lease_ms), ..GroupChange::default() };
        let makers = [(&stage, id.clone(), lease(1_000 + round)), (&other, id.clone(), lease(5_000 + round))];
        for made in at_once(&makers).await {
            let (status, created) = made.unwrap();
            assert!(!created && status.options.attempts_max == 3, "what is not named stays: {status:?}");
        }
        stage.append(&[&format!("{key}1")]).await;
        let taken = stage.take(&id, "one", 1).await;
        let leased = u64::try_from(taken[0].deadline.0 - stage.clock.now().0).unwrap();
        let stored = stage.status(&id).await.options.lease_ms;
        assert!([1_000 + round, 5_000 + round].contains(&stored), "{stored}");
        assert_eq!(leased, stored * 1_000);
        stage.ack(&id, &taken).await;
    }
}

pub async fn a_tenants_groups_are_counted_on_all_of_its_streams_and_one_that_goes_makes_room(stage: Stage) {
    stage.log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let limits = GroupLimits { tenant_groups_max: 3, ..GroupLimits::default() };
    let stage = stage.restarted_with(limits);
    let on = |stream: &str, name: &str| GroupId { stream: stream.into(), ..group("acme", name) };
    let ids = [on("events", "a"), on("orders", "a"), on("changes:asset:id:A%3A1", "a")];
    let make = async |stage: &Stage, id: &GroupId| {
        stage.groups.ensure(id, GroupStart::Oldest, THREE_TRIES).await.map(|(_, created)| created)
    };
    for id in &ids {
        assert!(make(&stage, id).await.unwrap(), "{id}");
    }
    let refused = |made: Result<bool, GroupError>| match made.unwrap_err() {
        GroupError::Limit { limit, asked, max, .. } => {
            assert_eq!((limit, asked, max), ("tenant_groups_max", 4, 3))
        }
        other => panic!("{other:?}"),
    };
    let more = [on("events", "b"), on("returns", "a"), on("changes:asset:tenant", "a")];
    for id in &more {
        refused(make(&stage, id).await);
    }
    // A process that begins now counts the same, and knows those that there are.
    let stage = stage.restarted_with(limits);
    refused(make(&stage, &more[0]).await);
    assert!(!make(&stage, &ids[1]).await.unwrap());
    assert!(make(&stage, &GroupId { tenant: tenant("acme-2"), ..ids[0].clone() }).await.unwrap());
    // What was not there leaves no room behind.
    assert_eq!(code(&stage.groups.remove(&more[0]).await.unwrap_err()), "group_unknown");
    refused(make(&stage, &more[0]).await);
    stage.groups.remove(&ids[2]).await.unwrap();
    // For one place, one of those who ask at once.
    let other = if stage.shared { stage.restarted_with(limits) } else { stage.clone() };
    let makers = [(&stage, 0), (&other, 1), (&stage, 2), (&other, 0)];
    let made = at_once(&makers.map(|(host, n)| (host, more[n].clone(), THREE_TRIES))).await;
    let mut there: Vec<GroupId> = made.into_iter().flatten().map(|(status, _)| status.group).collect();
    there.dedup();
    assert_eq!(there.len(), 1, "{there:?}");
    refused(make(&stage, &on("events", "c")).await);
    stage.groups.remove(&there[0]).await.unwrap();
    assert!(make(&stage, &on("events", "c")).await.unwrap());
}

/// Somebody publishes all the while.
pub async fn sn06_a_group_that_begins_with_what_comes_gets_all_of_it(stage: Stage) {
    for round in 1..=5 {
        let before = stage.log.bounds().newest.0;
        let writer = stage.clone();
        let mut writing = JoinSet::new();
        writing.spawn(async move {
            let mut positions = Vec::new();
            for key in 'a'..='z' {
                positions.extend(writer.append(&[&format!("{key}{round}")]).await);
                tokio::task::yield_now().await;
            }
            positions
        });
        let mut newest = stage.log.tail().newest();
        newest.wait_for(|newest| newest.0 > before + 3 * round).await.expect("the log lives");
        let id = stage.group("acme", &format!("comes-{round}"));
        let (status, _) = stage.groups.ensure(&id, GroupStart::Newest, THREE_TRIES).await.unwrap();
        let positions = writing.join_next().await.unwrap().unwrap();
        let mut seen = Vec::new();
        loop {
            let taken = stage.take(&id, "one", 100).await;
            if taken.is_empty() {
                break;
            }
            seen.extend(taken.iter().map(|delivery| delivery.receipt.position));
            stage.ack(&id, &taken).await;
        }
        let expected: Vec<Position> = positions.into_iter().filter(|at| *at > status.low).collect();
        assert_eq!(seen, expected, "all that came after {}", status.low);
    }
}
