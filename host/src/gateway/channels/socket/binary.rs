//! Entries and appends as binary messages. Numbers are big-endian.
//!
//! ```text
//! entry                                     append
//!  0  u8   version, 1                        0  u8   version, 1
//!  1  u32  number of the subscription        1  u64  reference
//!  5  u8   flags                             9  u8   flags
//!  6  u64  position                         10  u32  epoch, or 0
//! 14  u32  epoch                            14  u64  sequence, or 0: the next one
//! 18  u64  sequence                         22  u64  in reply to, or 0
//! 26  u64  in reply to, or 0                30  u8   length, and the process
//! 34  i64  microseconds since 1970              u8   length, and the channel
//! 42  u16  length, and the sender               u16  length, and `as`; empty: nobody
//!     u16  length, and the error                u16  length, and the error
//!     the payload                               the payload
//! ```
//!
//! Flags: the two lowest bits are the type (0 `data`, 1 `end`, 2 `error`), 4: there is a payload, 8 (entries only): there
//! is an error text, 16 (appends only): the epoch counts. All others are 0.

use bytes::Bytes;

use super::commands::{About, Appending, Command, Reference, Refused, Target};
use crate::channels::{Entry, EntryType, NewEntry};
use crate::gateway::problem::Problem;

const VERSION: u8 = 1;
const TYPE: u8 = 3;
const PAYLOAD: u8 = 4;
const ERROR: u8 = 8;
const EPOCH: u8 = 16;

/// Of a message with an entry whose texts are empty and that has no payload.
const ENTRY_BYTES: usize = 46;

/// How long a message with an entry is.
pub(super) fn entry_length(entry: &Entry) -> usize {
    let [sender, error] = texts(entry);
    ENTRY_BYTES + sender.len() + error.len() + entry.payload.as_ref().map_or(0, Bytes::len)
}

/// Appends a message with an entry.
pub(super) fn write_entry(out: &mut Vec<u8>, number: u32, entry: &Entry) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let entry_type = match entry.entry_type {
        EntryType::Data => 0,
        EntryType::End => 1,
        EntryType::Error => 2,
    };
    out.push(VERSION);
    out.extend_from_slice(&number.to_be_bytes());
    out.push(entry_type | flag(entry.payload.is_some(), PAYLOAD) | flag(entry.error.is_some(), ERROR));
    out.extend_from_slice(&entry.position.0.to_be_bytes());
    out.extend_from_slice(&entry.epoch.to_be_bytes());
    out.extend_from_slice(&entry.sequence.to_be_bytes());
    out.extend_from_slice(&entry.in_reply_to.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&entry.at.0.to_be_bytes());
    for text in texts(entry) {
        out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(text);
    }
    out.extend_from_slice(entry.payload.as_deref().unwrap_or_default());
}

/// Its sender, and the text of its error.
fn texts(entry: &Entry) -> [&[u8]; 2] {
    // Neither is longer: parties and error texts have bounds.
    let short = |text: &str| text.len().min(usize::from(u16::MAX));
    let (sender, error) = (entry.sender.as_str(), entry.error.as_deref().unwrap_or_default());
    [&sender.as_bytes()[..short(sender)], &error.as_bytes()[..short(error)]]
}

/// Reads a message of a client: an append.
pub(super) fn read(message: &[u8]) -> Result<Command<'_>, Refused> {
    let mut rest = Rest(message);
    let (version, number) = (rest.u8(), rest.u64());
    let about = match number {
        Some(number) => About::Append(Reference::Number(number)),
        None => About::Nothing,
    };
    match version {
        Some(VERSION) => {}
        Some(version) => {
            let detail = format!("the first byte is {version}; version {VERSION} is possible");
            return Err((about, Problem::new("channel_frame_invalid", detail)));
        }
        None => return Err((about, Problem::new("channel_frame_invalid", "the message is empty"))),
    }
    append(number, &mut rest).map(Command::Append).map_err(|problem| (about, problem))
}

/// Where an append was to go that is not one.
pub(super) fn target(message: &[u8]) -> Option<Target<'_>> {
    let mut rest = Rest(message);
    rest.take(9)?;
    let flags = rest.u8()?;
    rest.take(20)?;
    let process = rest.u8().and_then(|length| rest.text(length.into()))?.ok()?;
    let channel = rest.u8().and_then(|length| rest.text(length.into()))?.ok()?;
    let party = rest.u16().and_then(|length| rest.text(length.into()))?.ok()?;
    Some(Target {
        process: process.into(),
        channel: channel.into(),
        party: Some(party).filter(|party| !party.is_empty()).map(Into::into),
        entry_type: match flags & TYPE {
            1 => Some(EntryType::End.as_str().into()),
            2 => Some(EntryType::Error.as_str().into()),
            _ => None,
        },
    })
}

fn append<'a>(number: Option<u64>, rest: &mut Rest<'a>) -> Result<Appending<'a>, Problem> {
    let short = |what: &str| {
        Problem::new("channel_frame_invalid", format!("the message ends before the end of its {what}"))
    };
    let reference = Reference::Number(number.ok_or_else(|| short("reference"))?);
    let flags = rest.u8().ok_or_else(|| short("flags"))?;
    if flags & !(TYPE | PAYLOAD | EPOCH) != 0 {
        return Err(Problem::new("channel_frame_invalid", format!("the flags {flags:#04x} are not known")));
    }
    let entry_type = match flags & TYPE {
        0 => EntryType::Data,
        1 => EntryType::End,
        2 => EntryType::Error,
        _ => return Err(Problem::new("channel_frame_invalid", "the type is 3; 0 to 2 are possible")),
    };
    let epoch = rest.u32().ok_or_else(|| short("epoch"))?;
    let sequence = rest.u64().ok_or_else(|| short("sequence"))?;
    let in_reply_to = rest.u64().ok_or_else(|| short("reply"))?;
    let process = rest.u8().and_then(|length| rest.text(length.into()));
    let process = process.ok_or_else(|| short("process"))??;
    let channel = rest.u8().and_then(|length| rest.text(length.into()));
    let channel = channel.ok_or_else(|| short("channel"))??;
    let party = rest.u16().and_then(|length| rest.text(length.into()));
    let party = party.ok_or_else(|| short("party"))??;
    let error = rest.u16().and_then(|length| rest.text(length.into()));
    let error = error.ok_or_else(|| short("error text"))??;
    let has_payload = flags & PAYLOAD != 0;
    if !has_payload && !rest.0.is_empty() {
        let detail = "the message has a payload, and its flags say that it has none";
        return Err(Problem::new("channel_frame_invalid", detail));
    }
    let entry = NewEntry {
        sequence: Some(sequence).filter(|sequence| *sequence > 0),
        in_reply_to: Some(in_reply_to).filter(|sequence| *sequence > 0),
        entry_type,
        error: Some(error).filter(|text| !text.is_empty()).map(Into::into),
        // A copy: a part of the message would keep all that was read along with it.
        payload: has_payload.then(|| Bytes::copy_from_slice(rest.0)),
    };
    Ok(Appending {
        reference,
        process: process.into(),
        channel: channel.into(),
        party: Some(party).filter(|party| !party.is_empty()).map(Into::into),
        epoch: (flags & EPOCH != 0).then_some(epoch),
        entries: vec![entry],
    })
}

/// What was not read yet. Each part is none where there is too little of it.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, length: usize) -> Option<Result<&'a str, Problem>> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes);
        Some(text.map_err(|_| Problem::new("channel_frame_invalid", "a text in the message is not UTF-8")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(message: &[u8]) -> Option<(bool, &'static str)> {
        match read(message) {
            Ok(_) => None,
            Err((about, problem)) => Some((matches!(about, About::Append(_)), problem.code())),
        }
    }

    /// An append of two bytes by `ada` to `work`, channel `out`, with an error text.
    fn message() -> Vec<u8> {
        let mut message = vec![VERSION];
        message.extend_from_slice(&7_u64.to_be_bytes());
        message.push(2 | PAYLOAD | EPOCH);
        message.extend_from_slice(&3_u32.to_be_bytes());
        message.extend_from_slice(&5_u64.to_be_bytes());
        message.extend_from_slice(&0_u64.to_be_bytes());
        for short in ["work", "out"] {
            message.push(u8::try_from(short.len()).expect("short"));
            message.extend_from_slice(short.as_bytes());
        }
        for long in ["ada", "no"] {
            message.extend_from_slice(&u16::try_from(long.len()).expect("short").to_be_bytes());
            message.extend_from_slice(long.as_bytes());
        }
        message.extend_from_slice(&[0, 255]);
        message
    }

    #[test]
    fn an_append_is_read_as_it_was_written() {
        let message = message();
        let Ok(Command::Append(append)) = read(&message) else { panic!("it is an append") };
        assert_eq!(append.reference, Reference::Number(7));
        assert_eq!((&*append.process, &*append.channel), ("work", "out"));
        assert_eq!((append.party.as_deref(), append.epoch), (Some("ada"), Some(3)));
        let entry = NewEntry {
            sequence: Some(5),
            in_reply_to: None,
            entry_type: EntryType::Error,
            error: Some("no".into()),
            payload: Some(vec![0, 255].into()),
        };
        assert_eq!(append.entries, [entry]);
    }

    #[test]
    fn whatever_a_message_ends_in_the_middle_of_it_is_refused_and_named_once_it_can_be() {
        let whole = message();
        for length in 0..whole.len() - 2 {
            let named = length >= 9;
            assert_eq!(code_of(&whole[..length]), Some((named, "channel_frame_invalid")), "{length} bytes");
        }
        for length in whole.len() - 2..=whole.len() {
            assert_eq!(code_of(&whole[..length]), None, "a payload has any length");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let whole = message();
        for at in 0..whole.len() {
            for value in 0..=u8::MAX {
                let mut changed = whole.clone();
                changed[at] = value;
                if let Some((_, code)) = code_of(&changed) {
                    assert_eq!(code, "channel_frame_invalid", "byte {at} is {value}");
                }
            }
        }
        for flags in [3, ERROR, 32, 64, 128, 255] {
            let mut changed = whole.clone();
            changed[9] = flags;
            assert_eq!(code_of(&changed), Some((true, "channel_frame_invalid")), "flags {flags}");
        }
        let mut silent = whole;
        silent[9] &= !PAYLOAD;
        assert_eq!(code_of(&silent), Some((true, "channel_frame_invalid")), "a payload that is not there");
    }
}
