//! Answers what is asked on a channel: tells of each text that comes on `requests` what it is made of, word by word, on
//! `answers` of the same process.
//!
//! A piece of an answer is an entry, and an answer ends with a line break; all of it is committed with the request that
//! it answers, so each request has one answer, whatever falls over meanwhile. What is asked after an answer has begun is
//! answered after it. When the other side has ended its requests, so does this one its answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use millrace_guest::{
    ChannelEntry, Context, Effects, EntryType, Event, Failure, Manifest, NewEntry, Processor, Saved,
};

const REQUESTS: &str = "requests";
const ANSWERS: &str = "answers";
/// As whom the host lets it take part.
const PARTY: &str = "plugin:answers";
/// Letters of a word that are repeated.
const WORD_LETTERS_MAX: usize = 40;
/// Words that are told with how often they come.
const FREQUENT_MAX: usize = 3;

/// The processor.
#[derive(Debug)]
pub struct Answers;

impl Processor for Answers {
    fn manifest() -> Manifest {
        Manifest::new("answers", env!("CARGO_PKG_VERSION"))
            .summary("Answers on the channel `answers` what is asked on `requests`, piece by piece")
            // Nobody but the host writes events of these three.
            .types(&["channel.data", "channel.end", "channel.error"])
            .aggregates(&["channel"])
            .grants(&["channels"])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        let entry = event.payload_as::<ChannelEntry>()?;
        // Somebody else's work, also where it is asked on a channel of this name. A request that came before anybody was
        // assigned is tried all the same: if nobody is by now, it waits.
        let is_ours = entry.executor.as_deref().is_none_or(|executor| executor == PARTY);
        if entry.channel != REQUESTS || entry.sender == PARTY || !is_ours {
            return Ok(());
        }
        match entry.entry_type {
            EntryType::Data => {
                for piece in pieces(&answer(entry.text.as_deref())) {
                    out.append(&entry.process, ANSWERS, &NewEntry::text(piece))?;
                }
                Ok(())
            }
            EntryType::End => out.append(&entry.process, ANSWERS, &NewEntry::end()),
            EntryType::Error => {
                let error = NewEntry::error("the requests ended with an error");
                out.append(&entry.process, ANSWERS, &error)
            }
        }
    }
}

/// What there is to say about a request; none where it is no text. Always the same for the same text.
fn answer(request: Option<&str>) -> String {
    let Some(text) = request else { return "I read text only.\n".into() };
    let words: Vec<String> = text
        .split(|letter: char| !letter.is_alphanumeric() && letter != '\'')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let Some(longest) = words.iter().rev().max_by_key(|word| word.chars().count()) else {
        return "There is no word in that.\n".into();
    };
    let letters: usize = words.iter().map(|word| word.chars().count()).sum();
    let mut told = format!(
        "I read {} with {}. The longest is {}.",
        counted(words.len(), "word"),
        counted(letters, "letter"),
        short(longest)
    );
    let frequent = frequent(&words);
    if !frequent.is_empty() {
        told.push_str(" You said");
        for (index, (word, times)) in frequent.iter().enumerate() {
            let before = match index {
                0 => " ",
                _ if index + 1 == frequent.len() => " and ",
                _ => ", ",
            };
            // Writing to a String cannot fail.
            let _ = write!(told, "{before}{} {times} times", short(word));
        }
        told.push('.');
    }
    told.push('\n');
    told
}

/// The words that come more than once: the most frequent first, and those that come as often by the alphabet.
fn frequent(words: &[String]) -> Vec<(&str, usize)> {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for word in words {
        *times.entry(word).or_default() += 1;
    }
    let mut often: Vec<_> = times.into_iter().filter(|(_, times)| *times > 1).collect();
    often.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    often.truncate(FREQUENT_MAX);
    often
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("one {what}") } else { format!("{count} {what}s") }
}

fn short(word: &str) -> String {
    let mut letters = word.chars();
    let begin: String = letters.by_ref().take(WORD_LETTERS_MAX).collect();
    if letters.next().is_some() { format!("“{begin}…”") } else { format!("“{begin}”") }
}

/// The text cut behind each of its spaces: put together, the pieces are the text.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

millrace_guest::export!(Answers);

#[cfg(test)]
mod tests {
    use millrace_guest::FailureKind;
    use millrace_guest::testing::{Driver, TestEvent, batch_equals_singles};

    use super::*;

    fn asks(position: u64, text: &str) -> TestEvent {
        TestEvent::entry("p-1", REQUESTS, position, "ada", text.as_bytes())
    }

    /// What was answered, put together.
    fn answers(driver: &Driver<Answers>) -> String {
        driver.appended().iter().map(|entry| entry.text()).collect()
    }

    fn answered(text: &str) -> String {
        let mut driver = Driver::<Answers>::new();
        driver.send(&[asks(1, text)]).unwrap();
        answers(&driver)
    }

    #[test]
    fn an_answer_tells_what_the_request_is_made_of() {
        for (asked, answer) in [
            ("Hello", "I read one word with 5 letters. The longest is “hello”.\n"),
            (
                "The mill turns, and the stream, and the wheel!",
                "I read 9 words with 35 letters. The longest is “stream”. You said “the” 3 times and “and” 2 times.\n",
            ),
            (
                "a a b b c c d d",
                "I read 8 words with 8 letters. The longest is “a”. You said “a” 2 times, “b” 2 times and “c” 2 times.\n",
            ),
            (
                "Grüße, Grüße",
                "I read 2 words with 10 letters. The longest is “grüße”. You said “grüße” 2 times.\n",
            ),
            ("", "There is no word in that.\n"),
            (" ?! ", "There is no word in that.\n"),
        ] {
            assert_eq!(answered(asked), answer);
        }
        let long = answered(&"x".repeat(1_000));
        assert!(long.contains(&format!("“{}…”", "x".repeat(40))) && long.len() < 200, "{long}");
    }

    #[test]
    fn an_answer_comes_word_by_word_and_ends_with_a_line_break() {
        let mut driver = Driver::<Answers>::new();
        driver.send(&[asks(1, "one two"), asks(2, "three")]).unwrap();
        let pieces: Vec<&str> = driver.appended().iter().map(|entry| entry.text()).collect();
        assert_eq!(pieces[..3], ["I ", "read ", "2 "]);
        assert!(pieces.iter().all(|piece| piece.trim_end().split(' ').count() == 1), "{pieces:?}");
        assert_eq!(answers(&driver).lines().count(), 2);
        let to =
            |entry: &millrace_guest::testing::Appended| entry.process == "p-1" && entry.channel == ANSWERS;
        assert!(driver.appended().iter().all(to));
    }

    #[test]
    fn what_is_no_text_is_answered_too() {
        let mut driver = Driver::<Answers>::new();
        driver.send(&[TestEvent::entry("p-1", REQUESTS, 1, "ada", &[0xff])]).unwrap();
        assert_eq!(answers(&driver), "I read text only.\n");
    }

    #[test]
    fn the_end_of_the_requests_ends_the_answers() {
        let mut driver = Driver::<Answers>::new();
        let failed = TestEvent::entry_error("p-2", REQUESTS, 1, "ada", "gone");
        driver.send(&[TestEvent::entry_end("p-1", REQUESTS, 1, "ada"), failed]).unwrap();
        let ends: Vec<_> = driver.appended().iter().map(|e| (e.process.as_str(), e.entry_type)).collect();
        assert_eq!(ends, [("p-1", EntryType::End), ("p-2", EntryType::Error)]);
    }

    #[test]
    fn other_channels_other_executors_and_itself_are_left_alone() {
        let mut driver = Driver::<Answers>::new();
        driver
            .send(&[
                TestEvent::entry("p-1", ANSWERS, 1, "ada", b"no request"),
                asks(1, "for another").executed_by("plugin:other"),
                TestEvent::entry("p-1", REQUESTS, 2, PARTY, b"its own"),
            ])
            .unwrap();
        assert!(driver.appended().is_empty());
        driver.send(&[asks(3, "for it").executed_by(PARTY)]).unwrap();
        assert!(!driver.appended().is_empty());
    }

    #[test]
    fn what_is_no_entry_is_rejected() {
        let event = TestEvent::new("channel", "p-1_requests", 1, "channel.data");
        let failed = Driver::<Answers>::new().send(&[event]).unwrap_err();
        assert_eq!(failed.failure.kind, FailureKind::Reject);
    }

    #[test]
    fn a_batch_means_the_same_as_its_events() {
        batch_equals_singles::<Answers>(&[asks(1, "one"), asks(2, "two two"), asks(3, "")]);
    }
}
