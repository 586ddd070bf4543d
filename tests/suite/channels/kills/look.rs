//! A look at a channel while nobody appends, held against what its senders were told.

use std::collections::BTreeMap;

use super::followers::{Followed, request};
use super::{HELD, Place, Said, Scene};

/// What can be read of it, by position. What was acknowledged is there, nothing is there twice or was not sent, each
/// sender's numbers are in order, and the channel's record says what its entries say.
pub(super) async fn look(scene: &Scene, place: &Place) -> BTreeMap<u64, Said> {
    let path = place.path();
    let record = scene.get(&path).await;
    let number = |name: &str| record[name].as_u64().unwrap_or_else(|| panic!("{name}: {record}"));
    let (oldest, newest, hot) = (number("oldest"), number("newest"), number("hot"));
    let log = read(scene, place, newest).await;
    assert_eq!(log.keys().copied().collect::<Vec<_>>(), (oldest..=newest).collect::<Vec<_>>(), "{path}");
    assert!(oldest == 1 || place.drops(), "{record}");
    assert_eq!(number("entries"), log.len() as u64, "{record}");
    let bytes: usize = log.range(hot..).map(|(_, said)| said.text.len()).sum();
    assert_eq!(number("bytes"), bytes as u64, "{record}");

    let notes = place.notes();
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (position, said) in &log {
        let sent = notes.sent.get(&(said.sender.clone(), said.sequence));
        assert_eq!(sent, Some(said), "{path}: position {position} has what was sent");
        let before = last.insert(&said.sender, said.sequence);
        let in_order = match before {
            Some(before) => said.sequence == before + 1,
            None => said.sequence == 1 || oldest > 1,
        };
        assert!(in_order, "{path}: position {position} has {said:?} after {before:?}");
    }
    for (told, whom) in [(&notes.acknowledged, "its sender"), (&notes.followed, "a follower")] {
        for (position, said) in told.range(oldest..) {
            assert_eq!(log.get(position), Some(said), "{path}: position {position} as {whom} was told");
        }
    }
    let senders = record["senders"].as_array().expect("a list");
    for (who, (acknowledged, sent)) in &notes.senders {
        let known = senders.iter().find(|sender| sender["senderid"] == who.as_str());
        let known = known.map_or(0, |sender| sender["sequence"].as_u64().expect("a number"));
        // Of an append that was not answered there is all or nothing.
        assert!(known == *acknowledged || known == *sent, "{path}: {who} at {known}, {:?}", notes.senders);
        let in_log = last.get(who.as_str());
        assert!(in_log.is_none_or(|last| *last == known), "{path}: {who} at {known} and {in_log:?}");
    }
    log
}

async fn read(scene: &Scene, place: &Place, newest: u64) -> BTreeMap<u64, Said> {
    let mut log = BTreeMap::new();
    let mut after = 0;
    while after < newest {
        let page = scene.get(&format!("{}/entries?payload=text&after={after}&limit=100", place.path())).await;
        for entry in page["entries"].as_array().expect("a list") {
            let (position, said) = Said::read(entry);
            assert_eq!(log.insert(position, said), None, "{page}");
        }
        let (_, next) = page["next"].as_str().and_then(|next| next.split_once('.')).expect("a cursor");
        let next: u64 = next.parse().expect("a number");
        assert!(next > after, "a page moves on: {page}");
        after = next;
    }
    log
}

/// When all senders are done and its follower was told so.
pub(super) async fn at_the_end(scene: &Scene, place: &Place, log: &BTreeMap<u64, Said>, followed: &Followed) {
    let path = place.path();
    let record = scene.get(&path).await;
    assert_eq!(record["closed"], "ended", "{record}");
    for (who, (acknowledged, sent)) in &place.notes().senders {
        assert_eq!(acknowledged, sent, "{path}: {who}");
    }
    let newest = record["newest"].as_u64().expect("a number");
    assert_eq!(followed.position, newest, "{path}");
    assert!(followed.streams > 1, "{path}: no kill has cut its follower off");
    assert_eq!(place.notes().followed.len() as u64 + followed.missed, newest, "{path}");
    match place.channel {
        "drop_oldest" => assert!(record["dropped"].as_u64() > Some(0), "none had to go: {record}"),
        "archive" => assert!(record["hot"].as_u64() > Some(HELD), "the archive is empty: {record}"),
        _ => {}
    }
    if !place.drops() {
        assert_eq!(place.notes().followed, *log, "{path}");
    }
    // Whoever has seen the end is told to stay away.
    let again = request(scene, place, followed.id.as_deref()).send().await.unwrap();
    assert_eq!(again.status(), 204, "{path}");
}
