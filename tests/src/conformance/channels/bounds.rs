//! How fast, how large, how many: bounds that callers reach, and what they are told then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use millrace::channels::{
    Actor, Change, ChannelLimits, ChannelName, ChannelOptions, ChannelStore as _, EntryType, NewEntry,
    NewProcess, Party, ProcessName, Router,
};
use millrace::error::{Classify, Retry};
use millrace::limits::{CHANNEL_PAGE_BYTES_MAX, CHANNEL_PAYLOAD_BYTES_MAX, CHANNEL_SENDERS_MAX};

use super::{
    Stage, batch, by, channel, channel_of, code, free, heard, labels, limit, numbered, party, process,
    process_of, soon, talk_of, work,
};
use crate::gated_channels::GatedChannels;

/// Buckets that are never filled again.
fn slow(burst: f64, sender_burst: f64) -> ChannelLimits {
    ChannelLimits {
        rate_limited: true,
        burst,
        rate: 0.0,
        sender_burst,
        sender_rate: 0.0,
        ..ChannelLimits::default()
    }
}

pub async fn k14_five_hundred_entries_at_once_are_within_the_rate_and_one_more_is_not(stage: Stage) {
    assert!(ChannelLimits::default().rate_limited);
    let talk = stage.talk(slow(500.0, 500.0), ChannelOptions::default()).await;
    for first in (1..=450).step_by(50) {
        talk.append("ann", numbered(first, &["x"; 50])).await.unwrap();
    }
    for sequence in 451..=500 {
        talk.say("ann", sequence, "x").await;
    }
    let refused = talk.try_say("ann", 501, "x").await.unwrap_err();
    assert!(refused.to_string().starts_with("rate limit exceeded"), "{refused}");
    assert_eq!((refused.code(), talk.router.rate_denied()), ("channel_rate_limited", 1));
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 500, "nothing of it is there");
    // Reading is free.
    assert_eq!(talk.log().await.len(), 500);
}

pub async fn k14_a_small_run_passes_by_default_and_any_where_nobody_is_limited(stage: Stage) {
    let talk = stage.talk(ChannelLimits::default(), ChannelOptions::default()).await;
    for sequence in 1..=10 {
        talk.say("ann", sequence, "x").await;
    }
    let talk = stage.free().await;
    for first in (1..=1_000).step_by(100) {
        talk.append("ann", numbered(first, &["x"; 100])).await.unwrap();
    }
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 1_000);
    assert_eq!((talk.router.limiters(), talk.router.rate_denied()), (0, 0));
}

pub async fn k14_processes_have_buckets_of_their_own_that_go_with_them(stage: Stage) {
    let talk = stage.talk(slow(3.0, 3.0), ChannelOptions::default()).await;
    talk.router.create_process(work("other", &["talk"])).await.unwrap();
    talk.append("ann", numbered(1, &["x"; 3])).await.unwrap();
    assert_eq!(code(talk.try_say("ann", 4, "x").await), "channel_rate_limited");
    let entries = numbered(1, &["x"; 3]);
    talk.router.append_all(&talk_of("other"), batch("ann", entries)).await.unwrap();
    assert_eq!(talk.router.limiters(), 2);
    talk.router.cleanup_process(&talk.job).await.unwrap();
    assert_eq!(talk.router.limiters(), 1);
    talk.router.create_process(work("job", &["talk"])).await.unwrap();
    talk.say("ann", 1, "a full bucket").await;
}

/// All channels and senders of a process share its bucket, and each sender has its own before that.
pub async fn a_denied_sender_costs_its_process_nothing_and_a_stranger_no_token(stage: Stage) {
    let talk = stage.talk(slow(3.0, 2.0), ChannelOptions::default()).await;
    let side = channel_of(&talk.job, "side");
    talk.router.create(&side, ChannelOptions::default()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(code(talk.try_say("mallory", 1, "x").await), "channel_forbidden");
        assert_eq!(code(talk.try_say("oscar", 1, "x").await), "channel_forbidden");
    }
    talk.append("ann", numbered(1, &["x"; 2])).await.unwrap();
    for _ in 0..10 {
        let refused = talk.router.append(&side, &party("ann"), 1, None, "x").await.unwrap_err();
        assert_eq!(refused.code(), "channel_rate_limited");
        assert!(refused.to_string().contains("sender `ann`"), "{refused}");
    }
    talk.say("eve", 1, "the third of the process").await;
    let refused = talk.try_say("eve", 2, "x").await.unwrap_err();
    assert!(refused.to_string().contains("process `job`"), "{refused}");
    assert_eq!(talk.router.rate_denied(), 11);
}

/// What one asks for beyond its rate costs the store nothing, however often it asks, and the others get through.
pub async fn k14_what_is_refused_for_its_rate_never_reaches_the_store_and_others_get_through(stage: Stage) {
    let limits = slow(500.0, 20.0);
    let store = GatedChannels::new(stage.store(limits).await);
    let router = Router::new(Arc::new(store.clone()));
    let names: Vec<String> = (0..20).map(|n| format!("other-{n}")).collect();
    for name in names.iter().map(String::as_str).chain(["job"]) {
        router.create_process(work(name, &["talk"])).await.unwrap();
    }
    // A hundred times what it may.
    let hog = async {
        let (ann, id, mut refused) = (party("ann"), talk_of("job"), 0);
        for sequence in 1..=2_000 {
            match router.append(&id, &ann, sequence, None, "x").await {
                Ok(appended) => assert_eq!(appended.position.0, sequence),
                Err(error) => {
                    assert_eq!(error.code(), "channel_rate_limited");
                    refused += 1;
                }
            }
        }
        refused
    };
    let others = join_all(names.iter().map(|name| async {
        let (ann, id) = (party("ann"), talk_of(name));
        for sequence in 1..=20 {
            router.append(&id, &ann, sequence, None, "x").await.unwrap();
        }
    }));
    let (refused, others) = soon(async { tokio::join!(hog, others) }).await;
    assert_eq!((refused, others.len()), (1_980, 20));
    assert_eq!((store.appends(), router.rate_denied()), (21 * 20, 1_980));
    // Nor does who may not append at all, where nobody else could have given it the right.
    let (heads, mallory, id) = (store.heads(), party("mallory"), talk_of("job"));
    for _ in 0..100 {
        assert_eq!(code(router.append(&id, &mallory, 1, None, "x").await), "channel_forbidden");
    }
    assert_eq!(store.appends(), 21 * 20);
    if !store.is_shared() {
        assert_eq!(store.heads(), heads, "what is in memory says it");
    }
}

/// An append passes where there is a token, however many entries it has, and the next one waits until they are paid.
pub async fn a_large_append_passes_like_a_small_one_and_owes_the_rest(stage: Stage) {
    let talk = stage.talk(slow(600.0, 500.0), ChannelOptions::default()).await;
    talk.append("ann", numbered(1, &["x"; 499])).await.unwrap();
    talk.append("ann", numbered(500, &["x"; 1_000])).await.unwrap();
    assert_eq!(code(talk.try_say("ann", 1_500, "x").await), "channel_rate_limited");
    assert_eq!(code(talk.try_say("eve", 1, "x").await), "channel_rate_limited", "its process owes, too");
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 1_499);
}

pub async fn who_is_too_fast_is_told_when_to_ask_again(stage: Stage) {
    let limits = ChannelLimits { rate: 0.5, sender_rate: 0.25, ..slow(2.0, 2.0) };
    let talk = stage.talk(limits, ChannelOptions::default()).await;
    talk.append("ann", numbered(1, &["x"; 2])).await.unwrap();
    match talk.try_say("ann", 3, "x").await.unwrap_err().retry() {
        Retry::After(wait) => {
            let most = Duration::from_secs(4);
            assert!(wait > Duration::ZERO && wait <= most, "a token takes four seconds: {wait:?}");
        }
        Retry::Never => panic!("it passes"),
    }
}

pub async fn k15_a_payload_of_ten_mebibytes_is_kept_whole_and_one_byte_more_is_refused(stage: Stage) {
    assert_eq!(CHANNEL_PAYLOAD_BYTES_MAX, 10 * 1_024 * 1_024);
    let talk = stage.free().await;
    let largest: Bytes = (0_u8..=255).cycle().take(CHANNEL_PAYLOAD_BYTES_MAX).collect();
    let ann = party("ann");
    talk.router.append(&talk.id, &ann, 1, None, largest.clone()).await.unwrap();
    let read = talk.read(0).await;
    assert!(read.len() == 1 && read[0].payload.as_ref() == Some(&largest), "it is there byte by byte");
    let larger: Bytes = (0_u8..=255).cycle().take(CHANNEL_PAYLOAD_BYTES_MAX + 1).collect();
    let refused = talk.router.append(&talk.id, &ann, 2, None, larger).await.unwrap_err();
    assert!(refused.to_string().starts_with("message payload exceeds maximum size"), "{refused}");
    assert_eq!(refused.code(), "channel_payload_bytes_max");
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 1);
}

pub async fn k15_empty_and_missing_payloads_are_kept_apart(stage: Stage) {
    let talk = stage.free().await;
    let missing = NewEntry { payload: None, ..NewEntry::data(2, "") };
    talk.append("ann", vec![NewEntry::data(1, ""), missing]).await.unwrap();
    let read = talk.read(0).await;
    assert_eq!((read[0].payload.clone(), read[1].payload.clone()), (Some(Bytes::new()), None));
}

pub async fn k16_a_full_channel_refuses_and_stays_as_it_is(stage: Stage) {
    let limits = ChannelLimits { entries_max: 5, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    for sequence in 1..=5 {
        talk.say("ann", sequence, "x").await;
    }
    let refused = talk.try_say("ann", 6, "x").await.unwrap_err();
    assert!(refused.to_string().starts_with("channel log is full"), "{refused}");
    assert_eq!(refused.code(), "channel_full");
    assert_eq!(code(talk.try_say("eve", 1, "x").await), "channel_full");
    assert_eq!(talk.log().await, ["ann1", "ann2", "ann3", "ann4", "ann5"]);
    assert!(talk.say("ann", 5, "x").await.repeated, "what is there needs no room");
    // A hundred are few by default.
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["x"; 100])).await.unwrap();
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 100);
}

pub async fn k17_a_process_has_so_many_channels_and_not_more(stage: Stage) {
    let limits = ChannelLimits { channels_max: 3, ..free() };
    let router = stage.router(limits.clone()).await;
    router.create_process(work("job", &["one"])).await.unwrap();
    let id = |name: &str| channel_of(&process("job"), name);
    let options = ChannelOptions::default();
    router.create(&id("two"), options.clone()).await.unwrap();
    router.create_if_not_exists(&id("three"), options.clone()).await.unwrap();
    for refused in [
        router.create(&id("four"), options.clone()).await,
        router.create_if_not_exists(&id("four"), options.clone()).await,
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().starts_with("process has too many channels"), "{error}");
        assert_eq!(error.code(), "channels_max");
    }
    router.append(&id("one"), &party("ann"), 1, None, "x").await.unwrap();
    // One that is there stays as it is, whatever it is asked to be.
    let other = ChannelOptions { entries_max: 7, ..options.clone() };
    let head = router.create_if_not_exists(&id("one"), other).await.unwrap();
    assert_eq!((head.channel.newest.0, head.channel.options.clone()), (1, options));
    assert_eq!(router.channels_by_process(&process("job")).await.unwrap().len(), 3);
    router.create_process(work("other", &["one", "two", "three"])).await.unwrap();
    let too_many = work("more", &["one", "two", "three", "four"]);
    assert_eq!(code(router.create_process(too_many).await), "channels_max");
    assert_eq!(code(router.process(&process("more")).await), "process_unknown");

    let router = stage.router(free()).await;
    let names: Vec<String> = (0..50).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    router.create_process(work("job", &names)).await.unwrap();
    assert_eq!(router.channels_by_process(&process("job")).await.unwrap().len(), 50);
}

pub async fn a_channel_may_hold_less_than_the_host_allows_and_not_more(stage: Stage) {
    let limits = ChannelLimits { entries_max: 10, bytes_max: 100, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let side = channel_of(&talk.job, "side");
    for wrong in [
        ChannelOptions { entries_max: 11, ..limits.default_options() },
        ChannelOptions { entries_max: 0, ..limits.default_options() },
        ChannelOptions { bytes_max: 101, ..limits.default_options() },
        ChannelOptions { bytes_max: 0, ..limits.default_options() },
    ] {
        assert_eq!(code(talk.router.create(&side, wrong).await), "channel_option_invalid");
    }
    let less = ChannelOptions { entries_max: 1, bytes_max: 1, ..limits.default_options() };
    let head = talk.router.create(&side, less.clone()).await.unwrap();
    assert_eq!(head.channel.options, less);
}

pub async fn a_tenant_has_so_many_processes_and_a_process_so_many_observers(stage: Stage) {
    let limits = ChannelLimits { processes_max: 2, observers_max: 2, ..free() };
    let router = stage.router(limits).await;
    for name in ["one", "two"] {
        router.create_process(work(name, &[])).await.unwrap();
    }
    assert_eq!(limit(router.create_process(work("three", &[])).await), ("processes_max", 3, 2));
    assert!(!router.create_process(work("two", &[])).await.unwrap().1, "it is there");
    let theirs = NewProcess { id: process_of("rival", "three"), ..work("three", &[]) };
    router.create_process(theirs).await.unwrap();
    router.cleanup_process(&process("one")).await.unwrap();
    let observers = |count: usize| -> Vec<Party> { (0..count).map(|n| party(&format!("o{n}"))).collect() };
    let many = NewProcess { observers: observers(3), ..work("three", &[]) };
    assert_eq!(limit(router.create_process(many).await), ("process_observers_max", 3, 2));
    router.create_process(NewProcess { observers: observers(2), ..work("three", &[]) }).await.unwrap();
    let (three, more) = (process("three"), Change::Observe(observers(3)));
    assert_eq!(limit(router.change(&three, Actor::Host, more).await), ("process_observers_max", 3, 2));
    let view = router.change(&three, by("ann"), Change::Observe(observers(1))).await.unwrap();
    assert_eq!(view.process.observers, observers(1));
}

pub async fn an_append_has_so_many_entries_and_bytes_and_not_more(stage: Stage) {
    let limits = ChannelLimits { batch_entries_max: 3, batch_bytes_max: 100, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let four = talk.append("ann", numbered(1, &["x"; 4])).await;
    assert_eq!(limit(four), ("channel_batch_entries_max", 4, 3));
    let half = "x".repeat(51);
    let large = talk.append("ann", numbered(1, &[&half, &half])).await;
    assert_eq!(limit(large), ("channel_batch_bytes_max", 102, 100));
    let text = NewEntry { error: Some("x".repeat(4_097).into()), ..NewEntry::default() };
    let refused = talk.append("ann", vec![text.of_type(EntryType::Error)]).await;
    assert_eq!(limit(refused), ("channel_error_bytes_max", 4_097, 4_096));
    assert_eq!(talk.append("ann", Vec::new()).await.unwrap(), []);
    assert_eq!(talk.log().await, [""; 0]);
    talk.append("ann", numbered(1, &["x"; 3])).await.unwrap();
}

pub async fn a_page_is_bound_in_bytes_and_always_has_an_entry(stage: Stage) {
    let talk = stage.free().await;
    let part = "x".repeat(CHANNEL_PAGE_BYTES_MAX / 2 - 10);
    let whole = "x".repeat(CHANNEL_PAGE_BYTES_MAX + 1);
    for (sequence, text) in (1..).zip([&part, &part, &part, &whole, &part]) {
        talk.say("ann", sequence, text).await;
    }
    let (mut pages, mut index) = (Vec::new(), 0);
    loop {
        let page = talk.router.read_after(&talk.id, &by("eve"), index, 0).await.unwrap();
        if page.entries.is_empty() {
            break;
        }
        assert_eq!((page.newest.0, page.missed), (5, 0));
        index = page.next.0;
        pages.push(labels(&page.entries).concat());
    }
    assert_eq!(pages, ["ann1ann2", "ann3", "ann4", "ann5"]);
    let few = talk.router.read_after(&talk.id, &by("eve"), 0, 1).await.unwrap();
    assert_eq!((labels(&few.entries).concat(), few.next.0), ("ann1".to_owned(), 1));
    // A follower gets them all the same.
    let mut follower = talk.follow("eve", 0).await;
    assert_eq!(heard(&mut follower, 5).await.len(), 5);
}

/// Executors come and go. What they have sent stays; who cannot append any more is forgotten in the end.
pub async fn a_channel_remembers_so_many_senders_and_always_those_who_may_append(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "x").await;
    let executors = CHANNEL_SENDERS_MAX + 10;
    for n in 0..executors {
        let name = format!("e{n}");
        talk.assign(&name).await;
        assert_eq!(talk.say(&name, 1, "x").await.sequence, 1);
    }
    let head = talk.router.get_by_process_and_name(&talk.job, &talk.id.name).await.unwrap();
    assert!(head.channel.senders.len() <= CHANNEL_SENDERS_MAX, "{}", head.channel.senders.len());
    assert!(talk.say("ann", 1, "x").await.repeated, "the submitter is known");
    let last = format!("e{}", executors - 1);
    assert!(talk.say(&last, 1, "x").await.repeated, "and so is the executor");
    assert!(talk.try_say("e0", 2, "x").await.is_err());
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), executors as u64 + 1);
}

pub async fn names_are_checked_before_anything_is_kept(stage: Stage) {
    let talk = stage.free().await;
    for name in ["", "_a", "a_b", "a/b", "a b", "ä", ".a", &"x".repeat(129)] {
        assert!(ProcessName::new(name).is_err(), "{name:?}");
    }
    for name in ["", "_a", "a:b", "a/b", "a b", "ä", "-a", &"x".repeat(65)] {
        assert!(ChannelName::new(name).is_err(), "{name:?}");
    }
    for name in ["", "a\nb", "a\0", &"x".repeat(257)] {
        assert!(Party::new(name).is_err(), "{name:?}");
    }
    let odd = process("1:a.b-c");
    let new = NewProcess {
        id: odd.clone(),
        submitter: party("Zoë 👋 <a@b.example>"),
        channels: vec![channel("A_b.c-1", ChannelOptions::default())],
        ..work("x", &[])
    };
    talk.router.create_process(new).await.unwrap();
    let head = talk.router.get(&odd.tenant, "1:a.b-c_A_b.c-1").await.unwrap();
    assert_eq!(head.process.submitter.as_str(), "Zoë 👋 <a@b.example>");
}
