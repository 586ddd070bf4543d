//! What is left when a store is opened again.

use millrace::channels::{
    Append, Change, ChannelOptions, CloseReason, EntryType, Gaps, NewEntry, NewProcess, Outcome, Router,
    WhenFull,
};

use super::{
    Stage, batch, by, channel, channel_of, code, free, heard, labels, next, numbered, party, positions,
    process, talk_of, to_the_end, work,
};

async fn opened(stage: &Stage, place: u64) -> Router {
    Router::new(stage.open(place, free()).await)
}

/// Of a store that keeps nothing: a place is empty when it is opened again.
pub async fn a_store_has_what_was_acknowledged_when_it_is_opened_again_if_it_lasts(stage: Stage) {
    let place = stage.place();
    let router = opened(&stage, place).await;
    let talk = talk_of("job");
    let options = ChannelOptions { full: WhenFull::DropOldest, entries_max: 4, ..free().default_options() };
    let arrival = ChannelOptions { gaps: Gaps::Arrival, ..free().default_options() };
    let new = NewProcess {
        observers: vec![party("oscar")],
        channels: vec![channel("talk", options), channel("side", arrival)],
        ..work("job", &[])
    };
    router.create_process(new).await.unwrap();
    router.append_all(&talk, batch("eve", numbered(1, &["a", "b"]))).await.unwrap();
    let assign = Change::Assign(party("eli"));
    let epoch = router.change(&process("job"), by("ann"), assign).await.unwrap().process.epoch;
    let bytes = NewEntry::data(1, &b"\x00\xff"[..]).replying_to(2);
    let nothing = NewEntry { payload: None, ..NewEntry::data(2, "") };
    let failed = NewEntry { error: Some("broken".into()), ..NewEntry::data(3, "") }.of_type(EntryType::Error);
    router.append_all(&talk, batch("eli", vec![bytes, nothing, failed])).await.unwrap();
    router.append_all(&talk, batch("ann", numbered(1, &["c"]))).await.unwrap();
    let side = channel_of(&process("job"), "side");
    for sequence in [2, 5, 4] {
        router.append(&side, &party("ann"), sequence, None, "x").await.unwrap();
    }
    router.create_process(work("other", &["talk"])).await.unwrap();
    router.create_process(work("gone", &["talk"])).await.unwrap();
    router.cleanup_process(&process("gone")).await.unwrap();
    let close = Change::Close { outcome: Outcome::Failed, reason: "because".to_owned() };
    router.change(&process("other"), by("ann"), close).await.unwrap();
    let view = router.process(&process("job")).await.unwrap();
    let other = router.process(&process("other")).await.unwrap();
    let page = router.read_after(&talk, &by("oscar"), 0, 0).await.unwrap();
    assert_eq!(labels(&page.entries), ["eli1", "eli2", "eli3", "ann1"]);
    drop(router);

    let router = opened(&stage, place).await;
    if !stage.lasts {
        assert_eq!(code(router.process(&process("job")).await), "process_unknown");
        return;
    }
    assert_eq!(router.process(&process("job")).await.unwrap(), view);
    assert_eq!(router.process(&process("other")).await.unwrap(), other);
    assert_eq!(code(router.process(&process("gone")).await), "process_unknown");
    assert_eq!(router.read_after(&talk, &by("oscar"), 0, 0).await.unwrap(), page);
    // Numbers, rights, halves and positions go on where they were.
    let again = router.append_all(&talk, batch("ann", numbered(1, &["c", "d"]))).await.unwrap();
    assert_eq!((positions(&again), again[0].repeated), (vec![6, 7], true));
    assert_eq!(code(router.append(&talk, &party("eli"), 4, None, "x").await), "channel_half_closed");
    assert_eq!(code(router.append(&talk, &party("eve"), 3, None, "x").await), "channel_access_revoked");
    let late = Append { epoch: Some(epoch - 1), ..batch("eli", numbered(4, &["x"])) };
    assert_eq!(code(router.append_all(&talk, late).await), "channel_access_revoked");
    assert!(router.append(&side, &party("ann"), 5, None, "x").await.unwrap().repeated);
    assert_eq!(router.append(&side, &party("ann"), 3, None, "x").await.unwrap().position.0, 4);
    let closed = router.append(&talk_of("other"), &party("ann"), 1, None, "x").await;
    assert_eq!(code(closed), "process_closed");
    let mut follower = router.subscribe(&talk_of("other"), &by("ann"), 0).await.unwrap();
    next(&mut follower).await;
    assert_eq!(to_the_end(&mut follower).await.1, CloseReason::Closed(Outcome::Failed));
    // A follower goes on with the position that it had.
    let mut follower = router.subscribe(&talk, &by("oscar"), 5).await.unwrap();
    next(&mut follower).await;
    assert_eq!(heard(&mut follower, 2).await, ["ann1", "ann2"]);
}
