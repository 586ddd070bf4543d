//! Entries that a plugin appends to a channel: they stay as the first run has left them, and those of the second are
//! counted.

use millrace::channels::{
    ChannelId, ChannelName, ChannelOptions, ChannelStore, NewChannel, NewProcess, Party, ProcessId,
    ProcessName, ReadLimit,
};
use millrace::event::Position;
use millrace::plugins::{DroppedEffects, PluginControl, RebuildStage};

use super::{Rig, tenant, wait};

/// The channel that scripted plugins append to, of a process that `alpha` executes.
async fn channel(rig: &Rig) -> ChannelId {
    let process = ProcessId { tenant: tenant(), name: ProcessName::new("p").expect("a good name") };
    let name = ChannelName::new("c").expect("a good name");
    let party = |name: &str| Party::new(name).expect("a good name");
    let new = NewProcess {
        id: process.clone(),
        submitter: party("ada"),
        executor: Some(party("plugin:alpha")),
        observers: Vec::new(),
        channels: vec![NewChannel { name: name.clone(), options: ChannelOptions::default() }],
    };
    assert!(ChannelStore::create(&rig.store, new).await.expect("it is made").1);
    ChannelId { process, name }
}

/// Place, number and text of each entry, in order.
async fn entries(rig: &Rig, id: &ChannelId) -> Vec<(u64, u64, String)> {
    let limit = ReadLimit { entries: 10_000, bytes: 16 << 20 };
    let page = ChannelStore::read(&rig.store, id, Position::START, limit).await.expect("it can be read");
    let of = page.entries.iter().map(|entry| {
        let text = String::from_utf8_lossy(entry.payload.as_deref().unwrap_or_default()).into_owned();
        (entry.position.0, entry.sequence, text)
    });
    of.collect()
}

async fn texts(rig: &Rig, id: &ChannelId) -> Vec<String> {
    let mut texts: Vec<_> = entries(rig, id).await.into_iter().map(|(_, _, text)| text).collect();
    texts.sort();
    texts
}

/// Events that append, of these numbers: each at once, or with the next flush.
async fn say(rig: &Rig, event_type: &str, numbers: std::ops::Range<u32>) {
    let said: Vec<_> =
        numbers.map(|n| (format!("k{}", n % 7), format!(r#"{{"text":"{event_type} {n:04}"}}"#))).collect();
    let events: Vec<_> = said.iter().map(|(key, said)| (key.as_str(), event_type, said.as_str())).collect();
    rig.publish(&events).await;
}

fn said(event_type: &str, numbers: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    numbers.map(move |n| format!("{event_type} {n:04}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_stays_as_it_is_and_what_was_not_appended_again_is_counted() {
    let rig = Rig::new();
    let id = channel(&rig).await;
    rig.deploy("alpha 1").await.expect("it is deployed");
    say(&rig, "append", 0..150).await;
    say(&rig, "later", 150..170).await;
    rig.publish(&[("k1", "append", r#"{"text":"thrice","times":3}"#), ("k2", "emit", "1")]).await;
    rig.settle("alpha").await;
    // A stop flushes what was to come later.
    rig.registry.pause("alpha").await.expect("it pauses");
    rig.registry.resume("alpha").await.expect("it goes on");
    let before = entries(&rig, &id).await;
    assert_eq!(before.len(), 150 + 20 + 3);
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    let view = rig.flipped("alpha").await;
    assert_eq!(view.dropped, DroppedEffects { emitted: 1, appended: before.len() as u64 });
    rig.settle("alpha").await;
    assert_eq!(entries(&rig, &id).await, before);
    // The new version appends what comes from now on, and a second rebuild leaves that out, too.
    say(&rig, "append", 170..180).await;
    rig.settle("alpha").await;
    let after = entries(&rig, &id).await;
    assert_eq!(after[..before.len()], before);
    let added: Vec<_> = after[before.len()..].iter().map(|(_, _, text)| text.clone()).collect();
    assert_eq!(added, said("append", 170..180).collect::<Vec<_>>());
    rig.rebuild("alpha", None).await.expect("it begins");
    let view = rig.flipped("alpha").await;
    assert_eq!(view.dropped.appended, after.len() as u64);
    assert_eq!(entries(&rig, &id).await, after);
    rig.swept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_were_not_appended_again_are_counted_over_a_restart() {
    let mut rig = Rig::new();
    let id = channel(&rig).await;
    rig.deploy("alpha 1").await.expect("it is deployed");
    say(&rig, "append", 0..120).await;
    rig.settle("alpha").await;
    let before = entries(&rig, &id).await;
    rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    // It handles what there is, and cannot take over: the plugin does not stand where it does.
    rig.registry.pause("alpha").await.expect("it pauses");
    rig.open_gate();
    let appended = async |count: u64| {
        let view = rig.view("alpha").await;
        assert_ne!(view.stage, RebuildStage::Flipped);
        view.dropped.appended >= count && view.message.contains("is paused")
    };
    wait("it has handled what there is", async || appended(120).await).await;
    rig.restart().await;
    assert_eq!(rig.view("alpha").await.dropped.appended, 120, "the count is written down at the end");
    // The rest it handles before the plugin does.
    say(&rig, "append", 120..200).await;
    say(&rig, "later", 200..230).await;
    let appended = async || rig.view("alpha").await.dropped.appended >= 200;
    wait("it has handled the rest", appended).await;
    assert_eq!(entries(&rig, &id).await, before, "a rebuild appends nothing");
    rig.registry.resume("alpha").await.expect("it goes on");
    let view = rig.flipped("alpha").await;
    assert_eq!(view.dropped.appended, 230, "what the first run appended, each entry once");
    rig.settle("alpha").await;
    let expected: Vec<String> = said("append", 0..200).chain(said("later", 200..230)).collect();
    assert_eq!(texts(&rig, &id).await, expected);
    assert_eq!(entries(&rig, &id).await[..before.len()], before);
}
