//! Assignments: an executor's rights are those of one epoch, and somebody may watch.

use millrace::channels::{
    Actor, Append, Change, ChannelOptions, CloseReason, EntryType, NewProcess, Notice, Outcome, Role,
};

use super::{
    Stage, batch, by, channel_of, code, free, heard, labels, next, numbered, party, process, soon, talk_of,
    to_the_end, work,
};

/// In the reference the old executor keeps what it has, and the new one's numbers collide with its.
pub async fn an_executor_loses_its_rights_with_its_assignment(stage: Stage) {
    let talk = stage.free().await;
    let first = talk.say("eve", 1, "a").await;
    let epoch = talk.assign("eli").await;
    assert!(epoch > first.epoch, "{epoch}");
    let refused = talk.try_say("eve", 2, "b").await.unwrap_err();
    assert!(refused.to_string().starts_with("unauthorized access to channel"), "{refused}");
    assert_eq!(code::<()>(Err(refused)), "channel_access_revoked");
    assert_eq!(code(talk.try_say("eve", 1, "a").await), "channel_access_revoked", "a repeat is an append");
    assert_eq!(code(talk.router.read_after(&talk.id, &by("eve"), 0, 0).await), "channel_access_revoked");
    assert_eq!(code(talk.router.subscribe(&talk.id, &by("eve"), 0).await), "channel_access_revoked");
    // The new one begins with 1 and has the whole log.
    let anew = talk.say("eli", 1, "b").await;
    assert_eq!((anew.position.0, anew.epoch, anew.repeated), (2, epoch, false));
    let read = talk.router.read_after(&talk.id, &by("eli"), 0, 0).await.unwrap();
    assert_eq!(labels(&read.entries), ["eve1", "eli1"]);
    let epochs: Vec<u32> = read.entries.iter().map(|entry| entry.epoch).collect();
    assert_eq!(epochs, [first.epoch, epoch]);
    assert_eq!(talk.say("ann", 1, "c").await.epoch, 0, "the submitter's never changes");
}

pub async fn a_subscription_ends_with_the_assignment_that_it_lives_by(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    let mut eve = talk.follow("eve", 0).await;
    let mut ann = talk.follow("ann", 0).await;
    let mut oscar = talk.follow("oscar", 0).await;
    assert_eq!(heard(&mut eve, 1).await, ["ann1"]);
    let (end, _) = soon(async { tokio::join!(to_the_end(&mut eve), talk.assign("eli")) }).await;
    assert_eq!(end, (vec![], CloseReason::Revoked, 1));
    // What was said after it is not for the former executor, also where it had not looked yet.
    let mut eli = talk.follow("eli", 1).await;
    talk.assign("eve").await;
    talk.say("ann", 2, "secret").await;
    assert_eq!(to_the_end(&mut eli).await, (vec![], CloseReason::Revoked, 1));
    for other in [&mut ann, &mut oscar] {
        assert_eq!(heard(other, 2).await, ["ann1", "ann2"]);
    }
    assert_eq!(talk.followers(), 2);
    // The same party again is another executor.
    let mut eve = talk.follow("eve", 2).await;
    talk.assign("eve").await;
    assert_eq!(to_the_end(&mut eve).await, (vec![], CloseReason::Revoked, 2));
}

pub async fn an_append_of_another_epoch_is_refused(stage: Stage) {
    let talk = stage.free().await;
    let in_epoch = |epoch, entries| Append { epoch: Some(epoch), ..batch("eve", entries) };
    let old = talk.say("eve", 1, "a").await.epoch;
    let now = talk.assign("eve").await;
    assert!(now > old);
    for (epoch, sequence) in [(old, 2), (old, 1), (now + 1, 1), (0, 1)] {
        let append = in_epoch(epoch, numbered(sequence, &["late"]));
        assert_eq!(code(talk.router.append_all(&talk.id, append).await), "channel_access_revoked");
    }
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 1);
    let append = in_epoch(now, numbered(1, &["b"]));
    assert_eq!(talk.router.append_all(&talk.id, append).await.unwrap()[0].position.0, 2);
    let submitter = Append { epoch: Some(0), ..batch("ann", numbered(1, &["c"])) };
    talk.router.append_all(&talk.id, submitter).await.unwrap();
}

pub async fn nobody_executes_what_was_unassigned(stage: Stage) {
    let talk = stage.free().await;
    talk.say("eve", 1, "a").await;
    let mut eve = talk.follow("eve", 1).await;
    let before = talk.router.process(&talk.job).await.unwrap().process.epoch;
    let view = talk.change(Change::Unassign).await;
    assert_eq!((view.process.executor.clone(), view.channels[0].executor.clone()), (None, None));
    assert!(view.process.epoch > before);
    assert_eq!(to_the_end(&mut eve).await.1, CloseReason::Revoked);
    assert_eq!(code(talk.try_say("eve", 2, "b").await), "channel_access_revoked");
    assert_eq!(talk.change(Change::Unassign).await, view, "it is so already");
    talk.say("ann", 1, "anybody there?").await;
    let epoch = talk.assign("eve").await;
    assert!(epoch > view.process.epoch);
    assert_eq!(talk.say("eve", 1, "yes").await.epoch, epoch, "it begins anew");
}

pub async fn a_channel_can_have_an_executor_of_its_own(stage: Stage) {
    let router = stage.router(free()).await;
    router.create_process(work("job", &["talk", "side"])).await.unwrap();
    let (talk, side) = (talk_of("job"), channel_of(&process("job"), "side"));
    let mut on_talk = router.subscribe(&talk, &by("eve"), 0).await.unwrap();
    let mut on_side = router.subscribe(&side, &by("eve"), 0).await.unwrap();
    router.append(&side, &party("eve"), 1, None, "x").await.unwrap();
    let head = router.set_executor_id(&side, &party("eli")).await.unwrap();
    assert_eq!((&head.process.executor, &head.channel.executor), (&Some(party("eve")), &Some(party("eli"))));
    assert_eq!(code(router.append(&side, &party("eve"), 2, None, "x").await), "channel_access_revoked");
    assert_eq!(router.append(&side, &party("eli"), 1, None, "x").await.unwrap().epoch, head.channel.epoch);
    router.append(&talk, &party("eve"), 1, None, "x").await.unwrap();
    assert_eq!(code(router.append(&talk, &party("eli"), 1, None, "x").await), "channel_forbidden");
    assert!(matches!(next(&mut on_side).await, Notice::Closed { reason: CloseReason::Revoked, .. }));
    assert!(matches!(next(&mut on_talk).await, Notice::Ready { .. }), "the other one's goes on");
    assert_eq!(heard(&mut on_talk, 1).await, ["eve1"]);
    assert!(router.process_for(&process("job"), &by("eli")).await.is_ok());
    // A channel that is made later has the executor of the process.
    let late = channel_of(&process("job"), "late");
    let head = router.create(&late, ChannelOptions::default()).await.unwrap();
    assert_eq!(head.channel.executor, Some(party("eve")));
    let channel = side.name.clone();
    let nobody = Change::AssignChannel { channel, executor: None };
    router.change(&process("job"), by("ann"), nobody).await.unwrap();
    assert_eq!(code(router.append(&side, &party("eli"), 2, None, "x").await), "channel_access_revoked");
}

pub async fn who_submits_and_executes_is_one_sender(stage: Stage) {
    let router = stage.router(free()).await;
    let new = NewProcess { executor: Some(party("ann")), ..work("job", &["talk"]) };
    router.create_process(new).await.unwrap();
    let (id, ann) = (talk_of("job"), party("ann"));
    router.append(&id, &ann, 1, None, "to myself").await.unwrap();
    let answer = router.append(&id, &ann, 2, Some(1), "well").await.unwrap();
    assert_eq!((answer.position.0, answer.epoch), (2, 0));
    assert!(router.append(&id, &ann, 1, None, "to myself").await.unwrap().repeated);
    let mut follower = router.subscribe(&id, &by("ann"), 2).await.unwrap();
    assert!(matches!(next(&mut follower).await, Notice::Ready { .. }));
    router.append_with_type(&id, &ann, 3, None, "", EntryType::End).await.unwrap();
    assert_eq!(to_the_end(&mut follower).await, (vec!["ann3".into()], CloseReason::Ended, 3), "both sides");
    let head = router.get_by_process_and_name(&id.process, &id.name).await.unwrap();
    assert_eq!((head.role(&ann), head.channel.senders.len()), (Some(Role::Submitter), 1));
}

pub async fn observers_read_and_append_nothing(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    let mut oscar = talk.follow("oscar", 0).await;
    assert_eq!(heard(&mut oscar, 1).await, ["ann1"]);
    let refused = talk.try_say("oscar", 1, "x").await.unwrap_err();
    assert!(refused.to_string().contains("submitter or executor"), "{refused}");
    assert_eq!(code::<()>(Err(refused)), "channel_forbidden");
    assert!(talk.router.process_for(&talk.job, &by("oscar")).await.is_ok());
    // Another one instead: who followed follows no more.
    let observe = Change::Observe(vec![party("olga")]);
    let (end, _) = soon(async { tokio::join!(to_the_end(&mut oscar), talk.change(observe)) }).await;
    assert_eq!(end, (vec![], CloseReason::Revoked, 1));
    assert_eq!(code(talk.router.read_after(&talk.id, &by("oscar"), 0, 0).await), "channel_forbidden");
    assert_eq!(heard(&mut talk.follow("olga", 0).await, 1).await, ["ann1"]);
    // An observer that becomes the executor appends, and reads as such.
    talk.assign("olga").await;
    talk.say("olga", 1, "b").await;
}

pub async fn the_host_follows_what_nobody_can_take_from_it(stage: Stage) {
    let talk = stage.free().await;
    let mut host = talk.router.subscribe(&talk.id, &Actor::Host, 0).await.unwrap();
    assert!(matches!(next(&mut host).await, Notice::Ready { .. }));
    talk.assign("eli").await;
    talk.change(Change::Observe(Vec::new())).await;
    talk.say("eli", 1, "a").await;
    assert_eq!(heard(&mut host, 1).await, ["eli1"]);
    talk.close(Outcome::Success).await;
    assert_eq!(to_the_end(&mut host).await.1, CloseReason::Closed(Outcome::Success));
}
