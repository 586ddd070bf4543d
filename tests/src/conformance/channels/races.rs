//! Followers come and go while their channel is removed: nobody is left behind, nobody is told twice, and nothing panics.

use millrace::channels::{ChannelError, ChannelLimits, CloseReason, Notice, Subscription};
use tokio::task::JoinSet;

use super::{Stage, Talk, by, free, heard, next, party, soon, talk_of, work};

/// Until the end of a follower, which has one reason of those that are possible.
async fn ends(follower: &mut Subscription, possible: &[CloseReason]) -> CloseReason {
    loop {
        match next(follower).await {
            Notice::Closed { reason, .. } => {
                assert!(possible.contains(&reason), "{reason:?}");
                assert_eq!(soon(follower.next(1)).await.unwrap(), None);
                return reason;
            }
            Notice::Ready { .. } | Notice::Entries(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn prepared(stage: &Stage) -> Talk {
    let talk = stage.free().await;
    talk.router.cleanup_process(&talk.job).await.unwrap();
    talk
}

async fn race_cleanup_against(stage: Stage, rounds: usize, unsubscribes: usize) {
    let talk = prepared(&stage).await;
    for round in 0..rounds {
        talk.router.create_process(work("job", &["talk"])).await.unwrap();
        talk.say("ann", 1, "x").await;
        let mut follower = talk.router.subscribe(&talk.id, &by("ann"), 0).await.unwrap();
        let mut bystander = talk.router.subscribe(&talk.id, &by("eve"), 0).await.unwrap();
        let handle = follower.handle();
        let mut racing = JoinSet::new();
        for _ in 0..unsubscribes {
            let (router, handle) = (talk.router.clone(), handle.clone());
            racing.spawn(async move { router.unsubscribe(&handle) });
        }
        let (router, job) = (talk.router.clone(), talk.job.clone());
        racing.spawn(async move { assert!(router.cleanup_process(&job).await.unwrap()) });
        if round % 2 == 0 {
            // Somebody who reads all the while.
            ends(&mut follower, &[CloseReason::Unsubscribed, CloseReason::Removed]).await;
        }
        while let Some(ended) = soon(racing.join_next()).await {
            ended.unwrap();
        }
        assert_eq!(talk.followers(), 0);
        if round % 2 == 1 {
            ends(&mut follower, &[CloseReason::Unsubscribed, CloseReason::Removed]).await;
        }
        ends(&mut bystander, &[CloseReason::Removed]).await;
        talk.router.unsubscribe(&handle);
        drop((follower, bystander));
        assert_eq!(talk.followers(), 0);
    }
    assert_eq!(talk.store.stats().await.unwrap().processes, 0);
}

pub async fn k12_cleanup_and_an_unsubscribe_at_once_end_every_follower_once(stage: Stage) {
    race_cleanup_against(stage, 100, 1).await;
}

pub async fn k12_cleanup_and_two_unsubscribes_at_once_end_every_follower_once(stage: Stage) {
    race_cleanup_against(stage, 50, 2).await;
}

/// An unsubscribe beside another, without a cleanup: the count is that of those who are left.
pub async fn k12_unsubscribes_at_once_leave_the_others_counted(stage: Stage) {
    let talk = stage.free().await;
    let mut stays = talk.follow("eve", 0).await;
    for sequence in 1..=50 {
        let mut follower = talk.router.subscribe(&talk.id, &by("ann"), 0).await.unwrap();
        let handle = follower.handle();
        let mut racing = JoinSet::new();
        for _ in 0..2 {
            let (router, handle) = (talk.router.clone(), handle.clone());
            racing.spawn(async move { router.unsubscribe(&handle) });
        }
        racing.spawn(async move {
            ends(&mut follower, &[CloseReason::Unsubscribed]).await;
        });
        talk.say("ann", sequence, "x").await;
        while let Some(ended) = soon(racing.join_next()).await {
            ended.unwrap();
        }
        assert_eq!(talk.followers(), 1);
        assert_eq!(heard(&mut stays, 1).await, [format!("ann{sequence}")]);
    }
}

/// In the reference a follower that comes between the removal and its own registration is never told anything, and
/// hears what a later channel of the same name is told.
pub async fn whoever_subscribes_while_the_channel_is_removed_is_refused_or_told(stage: Stage) {
    let talk = prepared(&stage).await;
    let (mut refused, mut told) = (0, 0);
    for _ in 0..100 {
        talk.router.create_process(work("job", &["talk"])).await.unwrap();
        let mut racing = JoinSet::new();
        for _ in 0..3 {
            let router = talk.router.clone();
            racing.spawn(async move {
                match router.subscribe(&talk_of("job"), &by("ann"), 0).await {
                    Ok(follower) => Some(follower),
                    Err(ChannelError::Unknown { .. }) => None,
                    Err(error) => panic!("{error}"),
                }
            });
        }
        let (router, job) = (talk.router.clone(), talk.job.clone());
        racing.spawn(async move {
            assert!(router.cleanup_process(&job).await.unwrap());
            None
        });
        let mut followers = Vec::new();
        while let Some(ended) = soon(racing.join_next()).await {
            followers.extend(ended.unwrap());
        }
        assert_eq!(talk.followers(), 0);
        told += followers.len();
        refused += 3 - followers.len();
        // A later channel of the same name is nothing to them.
        talk.router.create_process(work("job", &["talk"])).await.unwrap();
        talk.say("ann", 1, "for others").await;
        for follower in &mut followers {
            match next(follower).await {
                Notice::Closed { reason: CloseReason::Removed, last } => assert_eq!(last.0, 0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(talk.followers(), 0);
        talk.router.cleanup_process(&talk.job).await.unwrap();
    }
    assert_eq!(told + refused, 300);
}

/// Followers of a channel that is appended to by two while followers come and go. In the reference two that meet a
/// full follower bring the host down.
pub async fn appends_at_once_and_followers_that_do_not_read_block_nobody(stage: Stage) {
    let limits = ChannelLimits { subscriber_entries_max: 1, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let mut idle = talk.follow("oscar", 0).await;
    let mut racing = JoinSet::new();
    for who in ["ann", "eve"] {
        let (router, id) = (talk.router.clone(), talk.id.clone());
        racing.spawn(async move {
            for sequence in 1..=100 {
                router.append(&id, &party(who), sequence, None, "x").await.unwrap();
            }
        });
    }
    let (router, id) = (talk.router.clone(), talk.id.clone());
    racing.spawn(async move {
        for _ in 0..100 {
            let follower = router.subscribe(&id, &by("oscar"), 0).await.unwrap();
            tokio::task::yield_now().await;
            router.unsubscribe(&follower.handle());
        }
    });
    while let Some(ended) = soon(racing.join_next()).await {
        ended.unwrap();
    }
    assert_eq!(talk.followers(), 1);
    let told = next(&mut idle).await;
    assert!(matches!(told, Notice::Lagged { missed: 0, behind: 200, .. }), "{told:?}");
    let heard = heard(&mut idle, 200).await;
    assert_eq!(heard, talk.log().await);
}
