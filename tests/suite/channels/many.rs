//! Ten thousand channels on one host, each with a follower of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace::channels::{ChannelId, ChannelStats, CloseReason, Notice, Router, Subscription};
use millrace::config::ChannelsStore;
use millrace_tests::conformance::channels::{
    batch, by, channel_of, label, numbered, process, soon, text, work,
};
use millrace_tests::embedded::Embedded;
use millrace_tests::until;
use tokio::task::JoinSet;

const PROCESSES: usize = 1_000;
const CHANNELS: usize = 10;
/// Of each channel: two of the submitter, one of the executor.
const ENTRIES: usize = 3;

async fn say(router: &Router, id: &ChannelId, who: &str, sequence: u64) {
    let entries = numbered(sequence, &[&id.to_string()]);
    soon(router.append_all(id, batch(who, entries))).await.unwrap();
}

/// All that a follower was given: entries by sender, number and text, why it ended, and the last position.
async fn follow(mut follower: Subscription, heard: Arc<AtomicUsize>) -> (Vec<String>, CloseReason, u64) {
    let mut all = Vec::new();
    loop {
        match follower.next(100).await.unwrap().expect("it has not ended") {
            Notice::Ready { .. } => {}
            Notice::Entries(entries) => {
                all.extend(entries.iter().map(|entry| format!("{} {}", label(entry), text(entry))));
                heard.fetch_add(entries.len(), Ordering::Relaxed);
            }
            Notice::Closed { reason, last } => return (all, reason, last.0),
            other @ Notice::Lagged { .. } => panic!("{other:?} after {all:?}"),
        }
    }
}

/// With the bounds that a host has where nobody sets any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_followers_each_get_their_own_of_ten_thousand_channels_and_end_with_them() {
    let host = Embedded::start_with(|config| config.channels.store = ChannelsStore::Memory).await.unwrap();
    let router = host.host().channels().clone();
    let names: Vec<String> = (0..CHANNELS).map(|number| format!("out-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut channels = Vec::new();
    for number in 0..PROCESSES {
        let new = work(&format!("job-{number}"), &names);
        channels.extend(names.iter().map(|name| channel_of(&new.id, name)));
        soon(router.create_process(new)).await.unwrap();
    }
    for id in &channels {
        say(&router, id, "ann", 1).await;
    }
    let (heard, mut followers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for id in &channels {
        let follower = soon(router.subscribe(id, &by("eve"), 0)).await.unwrap();
        let (id, heard) = (id.clone(), Arc::clone(&heard));
        followers.spawn(async move { (id, follow(follower, heard).await) });
    }
    for id in &channels {
        say(&router, id, "ann", 2).await;
        say(&router, id, "eve", 1).await;
    }
    let all = channels.len() * ENTRIES;
    until("everybody has got as much as there is for it", || heard.load(Ordering::Relaxed) >= all).await;
    let stats = ChannelStats { channels: channels.len() as u64, processes: PROCESSES as u64 };
    assert_eq!(soon(router.stats()).await.unwrap(), stats);
    assert!(channels.iter().all(|id| router.subscriber_count(id) == 1));

    for number in 0..PROCESSES {
        assert!(soon(router.cleanup_process(&process(&format!("job-{number}")))).await.unwrap());
    }
    let mut ended = 0;
    while let Some(follower) = soon(followers.join_next()).await {
        let (id, (got, reason, last)) = follower.unwrap();
        let own = ["ann1", "ann2", "eve1"].map(|label| format!("{label} {id}"));
        assert_eq!((got.as_slice(), reason, last), (own.as_slice(), CloseReason::Removed, ENTRIES as u64));
        ended += 1;
    }
    assert_eq!(ended, channels.len());
    assert_eq!(soon(router.stats()).await.unwrap(), ChannelStats::default());
    assert!(channels.iter().all(|id| router.subscriber_count(id) == 0));
    host.stop().await;
}
