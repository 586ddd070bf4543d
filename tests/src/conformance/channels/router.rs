//! Making, finding, reading and removing channels.

use std::time::Duration;

use millrace::channels::{
    Actor, Change, ChannelId, ChannelOptions, ChannelStats, Head, NewProcess, Outcome, Party, ProcessName,
    Router,
};
use millrace::event::TenantId;
use millrace::limits::CHANNEL_PAYLOAD_BYTES_MAX;

use super::{
    LONG, Stage, batch, by, channel_of, code, free, heard, labels, numbered, party, process, process_of,
    soon, talk_of, work,
};

pub async fn k01_a_channel_that_was_made_is_found_and_a_second_of_its_name_is_refused(stage: Stage) {
    let talk = stage.free().await;
    let side = channel_of(&talk.job, "side");
    let made = talk.router.create(&side, ChannelOptions::default()).await.unwrap();
    let found = talk.router.get(&talk.job.tenant, "job_side").await.unwrap();
    assert_eq!(found, made);
    assert_eq!((found.process.name.as_str(), found.channel.name.as_str()), ("job", "side"));
    assert_eq!((&found.process.submitter, &found.channel.executor), (&party("ann"), &Some(party("eve"))));
    talk.router.append(&side, &party("ann"), 1, None, "kept").await.unwrap();
    let again = talk.router.create(&side, ChannelOptions::default()).await;
    let error = again.unwrap_err();
    assert!(error.to_string().starts_with("channel already exists"), "{error}");
    assert_eq!(code::<()>(Err(error)), "channel_exists");
    assert_eq!(talk.router.log_size(&side).await.unwrap(), 1, "what was there is untouched");
    // An id is taken apart at its first `_`, and a process's name has none.
    talk.router.create(&channel_of(&talk.job, "a_b"), ChannelOptions::default()).await.unwrap();
    let found = talk.router.get(&talk.job.tenant, "job_a_b").await.unwrap();
    assert_eq!(found.channel.name.as_str(), "a_b");
    assert!(ProcessName::new("job_a").is_err());
}

pub async fn k02_channels_are_looked_up_by_process_and_name_and_counted(stage: Stage) {
    let router = stage.router(free()).await;
    router.create_process(work("one", &["zoo", "ape"])).await.unwrap();
    router.create_process(NewProcess { submitter: party("bob"), ..work("two", &["ape"]) }).await.unwrap();
    let of = |name: &str| channel_of(&process(name), "ape");
    for (name, submitter) in [("one", "ann"), ("two", "bob")] {
        let found = router.get_by_process_and_name(&of(name).process, &of(name).name).await.unwrap();
        assert_eq!((found.process.name.as_str(), &found.process.submitter), (name, &party(submitter)));
    }
    let zoo = channel_of(&process("two"), "zoo");
    assert_eq!(code(router.get_by_process_and_name(&zoo.process, &zoo.name).await), "channel_unknown");
    let names = |heads: Vec<Head>| -> Vec<String> {
        heads.iter().map(|head| head.channel.name.to_string()).collect()
    };
    let listed = router.channels_by_process(&process("one")).await.unwrap();
    assert_eq!(names(listed), ["zoo", "ape"], "in the order of their creation");
    assert_eq!(names(router.channels_by_process(&process("three")).await.unwrap()), [""; 0]);
    assert_eq!(router.stats().await.unwrap(), ChannelStats { channels: 3, processes: 2 });
}

pub async fn k03_reading_goes_on_after_an_index_and_stops_at_a_limit(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    talk.say("ann", 2, "b").await;
    talk.say("eve", 1, "c").await;
    let read = |index, limit| {
        let talk = &talk;
        async move { talk.router.read_after(&talk.id, &by("eve"), index, limit).await.unwrap() }
    };
    let all = read(0, 0).await;
    assert_eq!(labels(&all.entries), ["ann1", "ann2", "eve1"]);
    assert_eq!((all.next.0, all.oldest.0, all.newest.0, all.missed), (3, 1, 3, 0));
    let rest = read(1, 0).await;
    assert_eq!(labels(&rest.entries), ["ann2", "eve1"]);
    let two = read(0, 2).await;
    assert_eq!((labels(&two.entries), two.next.0), (vec!["ann1".to_owned(), "ann2".into()], 2));
    // Where nothing is, the reader stands where it stood.
    for index in [3, 4, 100] {
        let none = read(index, 0).await;
        assert_eq!((none.entries.len(), none.next.0, none.missed), (0, index, 0));
    }
    let positions: Vec<u64> = all.entries.iter().map(|entry| entry.position.0).collect();
    assert_eq!(positions, [1, 2, 3]);
    assert!(all.entries.iter().all(|entry| entry.at.0 > 0), "{:?}", all.entries);
}

pub async fn k04_a_third_party_neither_appends_nor_reads(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    talk.say("eve", 1, "b").await;
    for stranger in ["mallory", "Ann", "ann ", "host"] {
        let refused = talk.try_say(stranger, 1, "x").await.unwrap_err();
        assert!(refused.to_string().starts_with("unauthorized access to channel"), "{refused}");
        assert_eq!(code::<()>(Err(refused)), "channel_forbidden");
        assert_eq!(code(talk.append(stranger, Vec::new()).await), "channel_forbidden");
        let read = talk.router.read_after(&talk.id, &by(stranger), 0, 0).await;
        assert_eq!(code(read), "channel_forbidden");
        let wait = talk.router.wait_after(&talk.id, &by(stranger), 2, 0, LONG).await;
        assert_eq!(code(wait), "channel_forbidden");
        assert_eq!(code(talk.router.process_for(&talk.job, &by(stranger)).await), "channel_forbidden");
    }
    assert!(talk.router.process_for(&talk.job, &by("eve")).await.is_ok());
    for party in ["ann", "eve", "oscar"] {
        let read = talk.router.read_after(&talk.id, &by(party), 0, 0).await.unwrap();
        assert_eq!(labels(&read.entries), ["ann1", "eve1"]);
    }
}

pub async fn k05_an_executor_is_accepted_once_it_is_assigned(stage: Stage) {
    let router = stage.router(free()).await;
    let new = NewProcess { executor: None, ..work("job", &["one", "two"]) };
    router.create_process(new).await.unwrap();
    let [one, two] = ["one", "two"].map(|name| channel_of(&process("job"), name));
    let eve = party("eve");
    assert_eq!(code(router.append(&one, &eve, 1, None, "x").await), "channel_forbidden");
    // The reference lets an empty name in while there is no executor: there is no such name.
    assert!(Party::new("").is_err());
    router.append(&one, &party("ann"), 1, None, "x").await.unwrap();
    let head = router.set_executor_id(&one, &eve).await.unwrap();
    assert_eq!(head.channel.executor, Some(eve.clone()));
    router.append(&one, &eve, 1, None, "x").await.unwrap();
    assert_eq!(code(router.append(&two, &eve, 1, None, "x").await), "channel_forbidden");
    let missing = channel_of(&process("job"), "three");
    assert_eq!(code(router.set_executor_id(&missing, &eve).await), "channel_unknown");
    assert_eq!(code(router.set_executor_id(&talk_of("other"), &eve).await), "channel_unknown");

    router.set_executor_id_for_process(&process("job"), &party("eli")).await.unwrap();
    for id in [&one, &two] {
        router.append(id, &party("eli"), 1, None, "x").await.unwrap();
        assert!(router.append(id, &eve, 2, None, "x").await.is_err());
    }
    let unknown = router.set_executor_id_for_process(&process("other"), &eve).await;
    assert!(unknown.is_ok(), "a process that is not there is left alone");
}

pub async fn k06_the_size_of_a_log_counts_its_entries(stage: Stage) {
    let talk = stage.free().await;
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 0);
    // The reference answers a number here that never moves; it is the newest position.
    assert_eq!(talk.router.sequence(&talk.id).await.unwrap().0, 0);
    talk.say("ann", 1, "a").await;
    talk.say("eve", 1, "b").await;
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 2);
    assert_eq!(talk.router.sequence(&talk.id).await.unwrap().0, 2);
}

/// Whatever is asked of it, a channel that is not there is not there.
async fn is_unknown(router: &Router, id: &ChannelId) {
    let ann = party("ann");
    assert_eq!(code(router.get(&id.process.tenant, &id.to_string()).await), "channel_unknown");
    assert_eq!(code(router.get_by_process_and_name(&id.process, &id.name).await), "channel_unknown");
    assert_eq!(code(router.append(id, &ann, 1, None, "x").await), "channel_unknown");
    assert_eq!(code(router.read_after(id, &by("ann"), 0, 0).await), "channel_unknown");
    assert_eq!(code(router.wait_after(id, &by("ann"), 0, 0, LONG).await), "channel_unknown");
    assert_eq!(code(router.subscribe(id, &by("ann"), 0).await), "channel_unknown");
    assert_eq!(code(router.log_size(id).await), "channel_unknown");
    assert_eq!(code(router.sequence(id).await), "channel_unknown");
    assert_eq!(router.subscriber_count(id), 0);
}

pub async fn k07_what_is_not_there_is_not_found_whatever_is_asked(stage: Stage) {
    let talk = stage.free().await;
    let side = channel_of(&talk.job, "side");
    is_unknown(&talk.router, &side).await;
    is_unknown(&talk.router, &talk_of("other")).await;
    let message = talk.router.log_size(&side).await.unwrap_err().to_string();
    assert!(message.starts_with("channel not found"), "{message}");
    // Size is looked at before anything else.
    let large = vec![0; CHANNEL_PAYLOAD_BYTES_MAX + 1];
    let refused = talk.router.append(&side, &party("ann"), 1, None, large).await;
    assert_eq!(code(refused), "channel_payload_bytes_max");
    for id in ["job", "_talk", "job_", ""] {
        assert_eq!(code(talk.router.get(&talk.job.tenant, id).await), "channel_name_invalid", "{id}");
    }
    assert_eq!(code(talk.router.process(&process("other")).await), "process_unknown");
}

pub async fn k08_cleanup_removes_the_channels_of_one_process_only(stage: Stage) {
    let talk = stage.free().await;
    let (gone, side) = (process("gone"), channel_of(&process("gone"), "side"));
    talk.router.create_process(work("gone", &["talk", "side"])).await.unwrap();
    talk.say("ann", 1, "stays").await;
    let kibibyte = "x".repeat(1_024);
    for first in (0..1_000).step_by(100) {
        let entries = numbered(first + 1, &[kibibyte.as_str(); 100]);
        talk.router.append_all(&side, batch("ann", entries)).await.unwrap();
    }
    assert_eq!(talk.router.log_size(&side).await.unwrap(), 1_000);

    assert!(talk.router.cleanup_process(&gone).await.unwrap());
    is_unknown(&talk.router, &side).await;
    is_unknown(&talk.router, &talk_of("gone")).await;
    assert!(talk.router.channels_by_process(&gone).await.unwrap().is_empty());
    assert!(!talk.router.cleanup_process(&gone).await.unwrap(), "there is none any more");
    assert!(!talk.router.cleanup_process(&process("never")).await.unwrap());
    assert_eq!(talk.router.stats().await.unwrap(), ChannelStats { channels: 1, processes: 1 });
    assert_eq!(talk.log().await, ["ann1"]);
    // One of the same name is a new one: nothing of the former is in it.
    talk.router.create_process(work("gone", &["talk", "side"])).await.unwrap();
    assert_eq!(talk.router.log_size(&side).await.unwrap(), 0);
    let first = talk.router.append(&side, &party("ann"), 1, None, "new").await.unwrap();
    assert_eq!((first.position.0, first.repeated), (1, false));
}

pub async fn tenants_have_processes_of_their_own_under_the_same_names(stage: Stage) {
    let talk = stage.free().await;
    let theirs = process_of("rival", "job");
    let new = NewProcess { id: theirs.clone(), ..work("job", &["talk"]) };
    talk.router.create_process(new).await.unwrap();
    let their_talk = channel_of(&theirs, "talk");
    let mut ours = talk.follow("ann", 0).await;
    talk.router.append(&their_talk, &party("ann"), 1, None, "theirs").await.unwrap();
    talk.router.append(&their_talk, &party("ann"), 2, None, "theirs").await.unwrap();
    assert_eq!(talk.log().await, [""; 0]);
    assert_eq!(talk.say("ann", 1, "ours").await.position.0, 1);
    assert_eq!(heard(&mut ours, 1).await, ["ann1"]);
    let names = |tenant: &'static str| {
        let talk = &talk;
        async move {
            let tenant = TenantId::new(tenant).unwrap();
            talk.router.processes(&tenant, None, 10).await.unwrap().len()
        }
    };
    assert_eq!((names("acme").await, names("rival").await, names("nobody").await), (1, 1, 0));
    assert!(talk.router.cleanup_process(&theirs).await.unwrap());
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 1);
    talk.say("ann", 2, "ours").await;
    assert_eq!(heard(&mut ours, 1).await, ["ann2"], "its follower is not told of theirs");
}

pub async fn processes_are_listed_by_name_in_pages(stage: Stage) {
    let router = stage.router(free()).await;
    for name in ["c", "a", "B", "a.1", "d"] {
        router.create_process(work(name, &[])).await.unwrap();
    }
    let tenant = process("a").tenant;
    let (mut listed, mut after) = (Vec::new(), None::<ProcessName>);
    loop {
        let page = router.processes(&tenant, after.as_ref(), 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        listed.extend(page.iter().map(|process| process.name.to_string()));
    }
    assert_eq!(listed, ["B", "a", "a.1", "c", "d"]);
}

pub async fn a_process_is_made_once_and_found_again_by_the_same_request(stage: Stage) {
    let talk = stage.free().await;
    let new = || NewProcess { observers: vec![party("oscar")], ..work("job", &["talk"]) };
    talk.say("ann", 1, "a").await;
    let (view, created) = talk.router.create_process(new()).await.unwrap();
    assert!(!created);
    assert_eq!(view.channels[0].newest.0, 1);
    // Whoever asks again does not know of a later executor.
    talk.assign("eli").await;
    let later = NewProcess { executor: None, ..new() };
    let (view, created) = talk.router.create_process(later).await.unwrap();
    assert_eq!((created, &view.process.executor), (false, &Some(party("eli"))));
    for other in [
        NewProcess { submitter: party("bob"), ..new() },
        NewProcess { observers: Vec::new(), ..new() },
        NewProcess { channels: work("job", &["side"]).channels, ..new() },
    ] {
        assert_eq!(code(talk.router.create_process(other).await), "process_exists");
    }
    let twice = work("other", &["talk", "talk"]);
    assert_eq!(code(talk.router.create_process(twice).await), "channel_exists");
    assert_eq!(code(talk.router.process(&process("other")).await), "process_unknown", "nothing of it");
}

pub async fn a_reader_waits_for_what_comes_and_not_where_nothing_can_come(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    let host = &Actor::Host;
    let wait = |index| talk.router.wait_after(&talk.id, host, index, 10, LONG);
    let (page, _) = soon(async { tokio::join!(wait(1), talk.say("eve", 1, "b")) }).await;
    assert_eq!(labels(&page.unwrap().entries), ["eve1"]);
    let none = talk.router.wait_after(&talk.id, host, 2, 10, Duration::ZERO).await.unwrap();
    assert!(none.entries.is_empty() && none.next.0 == 2, "{none:?}");
    let (page, _) = soon(async { tokio::join!(wait(2), talk.close(Outcome::Success)) }).await;
    assert!(page.unwrap().entries.is_empty(), "nothing can come any more");
    assert!(soon(wait(2)).await.unwrap().entries.is_empty());

    // Also of a channel that nobody has used since the store was opened.
    talk.router.create_process(work("quiet", &["talk"])).await.unwrap();
    let close = Change::Close { outcome: Outcome::Failed, reason: String::new() };
    talk.router.change(&process("quiet"), Actor::Host, close).await.unwrap();
    let quiet = talk_of("quiet");
    let page = soon(talk.router.wait_after(&quiet, host, 0, 10, LONG)).await.unwrap();
    assert!(page.entries.is_empty());
}
