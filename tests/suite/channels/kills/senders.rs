//! Who appends: one entry or some, the next when these are acknowledged, and the same again where no answer came.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Place, Said, Scene};

/// Entries of one append.
const BATCH_MAX: u64 = 5;

pub(super) struct Sender {
    pub(super) scene: Arc<Scene>,
    pub(super) place: Arc<Place>,
    pub(super) who: &'static str,
    pub(super) rng: StdRng,
    /// Whether it is done after so many entries, and not only at the end.
    pub(super) done_after: Option<u64>,
}

impl Sender {
    pub(super) async fn run(mut self) {
        let mut next = 1;
        loop {
            let is_last = self.scene.over.load(Ordering::Relaxed)
                || self.done_after.is_some_and(|entries| next > entries);
            let count = if self.rng.random_bool(0.4) { self.rng.random_range(2..=BATCH_MAX) } else { 1 };
            let numbers = next..next + count;
            let entries: Vec<Said> = numbers
                .map(|sequence| self.said(sequence, is_last && sequence == next + count - 1))
                .collect();
            self.append(&entries).await;
            next += count;
            if is_last {
                return;
            }
        }
    }

    fn said(&mut self, sequence: u64, is_last: bool) -> Said {
        let (who, Place { process, channel, .. }) = (self.who, &*self.place);
        let filler = "x".repeat(self.rng.random_range(0..300));
        Said {
            sender: who.to_owned(),
            epoch: u64::from(who == "exe"),
            sequence,
            entry_type: if is_last { "end" } else { "data" }.to_owned(),
            text: format!("{who} {sequence} in {channel} of {process} {filler}"),
        }
    }

    /// Until it is acknowledged.
    async fn append(&self, entries: &[Said]) {
        let bodies: Vec<Value> = entries.iter().map(Said::to_json).collect();
        let body = match bodies.as_slice() {
            [one] => one.clone(),
            _ => json!(bodies),
        };
        let last = entries.last().expect("there is one").sequence;
        {
            let mut notes = self.place.notes();
            for said in entries {
                notes.sent.insert((said.sender.clone(), said.sequence), said.clone());
            }
            notes.senders.entry(self.who.to_owned()).or_default().1 = last;
        }
        let url = format!("{}{}/entries?as={}", self.scene.url, self.place.path(), self.who);
        let mut tries = 0;
        // Open until what was answered is noted.
        let (_open, status, answer) = loop {
            tries += 1;
            let open = self.scene.gate.read().await;
            match self.try_once(&url, &body).await {
                Ok((status, answer)) => break (open, status, answer),
                Err(error) => {
                    self.scene.lost.fetch_add(u64::from(!error.is_connect()), Ordering::Relaxed);
                    drop(open);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let mut notes = self.place.notes();
        match status {
            200 | 201 => {
                let is_repeat = status == 200;
                assert!(tries > 1 || !is_repeat, "the first try is no repeat: {answer}");
                let appended = match answer.get("appended") {
                    Some(appended) => appended.as_array().expect("a list").clone(),
                    None => vec![answer],
                };
                assert_eq!(appended.len(), entries.len());
                let first = appended[0]["position"].as_u64().expect("a position");
                for ((position, said), one) in (first..).zip(entries).zip(&appended) {
                    let expected = json!({
                        "position": position,
                        "sequence": said.sequence,
                        "epoch": said.epoch,
                        "repeated": is_repeat,
                    });
                    assert_eq!(*one, expected, "one behind the other, all new or none");
                    let other = notes.acknowledged.insert(position, said.clone());
                    assert_eq!(other, None, "{position} is acknowledged twice");
                }
            }
            // It was there, and has been dropped since.
            409 if answer["code"] == "channel_sequence_forgotten" => {
                assert!(tries > 1 && self.place.drops(), "{answer}");
            }
            _ => panic!("{} of {}: {status}, {answer}", self.who, self.place.path()),
        }
        notes.senders.entry(self.who.to_owned()).or_default().0 = last;
        self.scene.acknowledged.fetch_add(entries.len() as u64, Ordering::Relaxed);
    }

    /// Status and answer; an error is no answer.
    async fn try_once(&self, url: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
        let answer = self.scene.http.post(url).json(body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }
}
