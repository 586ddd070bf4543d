//! Who may change a process.

use millrace::channels::{Actor, Change, ChannelName, ChannelOptions, NewProcess, Outcome, Router};

use super::{Stage, by, channel, channel_of, code, free, party, process, work};

fn changes() -> [(&'static str, Change, bool); 6] {
    let talk = || ChannelName::new("talk").unwrap();
    let close = Change::Close { outcome: Outcome::Success, reason: String::new() };
    [
        (
            "add",
            Change::AddChannel { channel: channel("new", ChannelOptions::default()), exists_ok: true },
            false,
        ),
        ("observe", Change::Observe(vec![party("olga"), party("oscar")]), false),
        ("assign one", Change::AssignChannel { channel: talk(), executor: Some(party("eli")) }, false),
        ("assign", Change::Assign(party("eve")), false),
        ("unassign", Change::Unassign, true),
        ("close", close, true),
    ]
}

async fn made(stage: &Stage) -> Router {
    let router = stage.router(free()).await;
    let new = NewProcess { observers: vec![party("oscar")], ..work("job", &["talk", "side"]) };
    router.create_process(new).await.unwrap();
    router
}

pub async fn strangers_and_observers_change_nothing(stage: Stage) {
    let router = made(&stage).await;
    let before = router.process(&process("job")).await.unwrap();
    for who in ["mallory", "oscar"] {
        for (name, change, _) in changes() {
            let refused = router.change(&process("job"), by(who), change).await;
            assert_eq!(code(refused), "channel_forbidden", "{who}: {name}");
        }
    }
    assert_eq!(router.process(&process("job")).await.unwrap(), before);
    for (name, change, _) in changes() {
        let refused = router.change(&process("other"), Actor::Host, change).await;
        assert_eq!(code(refused), "process_unknown", "{name}");
    }
}

pub async fn an_executor_closes_and_gives_back_and_changes_nothing_else(stage: Stage) {
    for (name, change, may) in changes() {
        let router = made(&stage).await;
        let answer = router.change(&process("job"), by("eve"), change).await;
        if may {
            assert!(answer.is_ok(), "{name}: {answer:?}");
        } else {
            let error = answer.unwrap_err();
            assert!(error.to_string().contains("only as its submitter"), "{name}: {error}");
            assert_eq!(code::<()>(Err(error)), "channel_forbidden");
        }
    }
    // Who executes one channel does not end the work of others.
    let router = made(&stage).await;
    router.set_executor_id(&channel_of(&process("job"), "side"), &party("eli")).await.unwrap();
    for change in [Change::Unassign, Change::Close { outcome: Outcome::Failed, reason: String::new() }] {
        let refused = router.change(&process("job"), by("eli"), change).await;
        assert_eq!(code(refused), "channel_forbidden");
    }
    router.change(&process("job"), by("eve"), Change::Unassign).await.unwrap();
    let refused = router.change(&process("job"), by("eve"), Change::Unassign).await;
    assert_eq!(code(refused), "channel_forbidden", "it has been unassigned");
}

pub async fn a_submitter_and_the_host_change_everything_and_a_version_says_so(stage: Stage) {
    for who in [by("ann"), Actor::Host] {
        let router = made(&stage).await;
        let mut version = router.process(&process("job")).await.unwrap().process.version;
        for (name, change, _) in changes() {
            let view = router.change(&process("job"), who.clone(), change.clone()).await.unwrap();
            assert!(view.process.version > version, "{name}");
            version = view.process.version;
            assert_eq!(router.process(&process("job")).await.unwrap(), view, "{name} is kept");
        }
        let view = router.process(&process("job")).await.unwrap();
        let names: Vec<_> = view.channels.iter().map(|channel| channel.name.as_str()).collect();
        assert_eq!(names, ["talk", "side", "new"]);
        assert_eq!(view.process.observers, [party("olga"), party("oscar")]);
        // What is so already changes nothing.
        let again = Change::Close { outcome: Outcome::Failed, reason: "late".to_owned() };
        assert_eq!(router.change(&process("job"), who, again).await.unwrap(), view);
    }
}
