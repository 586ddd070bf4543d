//! A run as bytes: of each channel its number, what appends change of its record, and the entries that a transaction has
//! appended to it. The rest of the record is as the stored one says: who changes that settles the channel.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::shared::from_json;
use crate::channels::{Channel, Entry, EntryType, Party, Sender};
use crate::event::{Micros, Position};

/// Begins runs. Without it a run has whole records, as JSON; no channel has such a number.
const BEGIN: [u8; 8] = (-2_i64).to_le_bytes();

/// A run with nothing in it.
pub(super) fn begin() -> Vec<u8> {
    BEGIN.to_vec()
}

pub(super) fn write_channel(
    run: &mut Vec<u8>,
    number: i64,
    channel: &Channel,
    entries: &[&Arc<Entry>],
) -> rusqlite::Result<()> {
    run.extend(number.to_le_bytes());
    write_state(run, channel)?;
    run.extend(length(entries.len())?);
    for entry in entries {
        run.extend(entry.position.0.to_le_bytes());
        run.extend(entry.epoch.to_le_bytes());
        run.extend(entry.sequence.to_le_bytes());
        // No entry answers number 0.
        run.extend(entry.in_reply_to.unwrap_or(0).to_le_bytes());
        run.extend(entry.at.0.to_le_bytes());
        run.push(byte_of(entry.entry_type));
        write_bytes(run, entry.sender.as_str().as_bytes())?;
        write_optional(run, entry.error.as_deref().map(str::as_bytes))?;
        write_optional(run, entry.payload.as_deref())?;
    }
    Ok(())
}

/// What appends change.
fn write_state(run: &mut Vec<u8>, channel: &Channel) -> rusqlite::Result<()> {
    let Channel {
        name: _,
        executor: _,
        epoch: _,
        options: _,
        created_at: _,
        newest,
        oldest,
        hot,
        bytes,
        archive_bytes,
        closing_entries,
        closing_bytes,
        senders,
    } = channel;
    for number in [newest.0, oldest.0, hot.0, *bytes, *archive_bytes, *closing_entries, *closing_bytes] {
        run.extend(number.to_le_bytes());
    }
    run.extend(length(senders.len())?);
    for Sender { party, epoch, last, ahead, ended } in senders {
        write_bytes(run, party.as_str().as_bytes())?;
        run.extend(epoch.to_le_bytes());
        run.extend(last.to_le_bytes());
        run.extend(length(ahead.len())?);
        for (first, last) in ahead {
            run.extend(first.to_le_bytes());
            run.extend(last.to_le_bytes());
        }
        run.push(ended.map_or(NOT_ENDED, byte_of));
    }
    Ok(())
}

const NOT_ENDED: u8 = u8::MAX;

fn byte_of(entry_type: EntryType) -> u8 {
    match entry_type {
        EntryType::Data => 0,
        EntryType::End => 1,
        EntryType::Error => 2,
    }
}

fn type_of(byte: u8) -> rusqlite::Result<EntryType> {
    match byte {
        0 => Ok(EntryType::Data),
        1 => Ok(EntryType::End),
        2 => Ok(EntryType::Error),
        _ => Err(damaged()),
    }
}

fn length(bytes: usize) -> rusqlite::Result<[u8; 4]> {
    u32::try_from(bytes)
        .map(u32::to_le_bytes)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn write_bytes(run: &mut Vec<u8>, bytes: &[u8]) -> rusqlite::Result<()> {
    run.extend(length(bytes.len())?);
    run.extend(bytes);
    Ok(())
}

fn write_optional(run: &mut Vec<u8>, bytes: Option<&[u8]>) -> rusqlite::Result<()> {
    run.push(u8::from(bytes.is_some()));
    bytes.map_or(Ok(()), |bytes| write_bytes(run, bytes))
}

/// Reads a run, channel by channel.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    has_whole_records: bool,
}

/// What a run says of a channel.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Whole(Box<Channel>),
    Changed(State),
}

/// What appends change of a channel's record.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    newest: Position,
    oldest: Position,
    hot: Position,
    bytes: u64,
    archive_bytes: u64,
    closing_entries: u64,
    closing_bytes: u64,
    senders: Vec<Sender>,
}

impl Record {
    pub(super) fn newest(&self) -> Position {
        match self {
            Self::Whole(channel) => channel.newest,
            Self::Changed(state) => state.newest,
        }
    }

    /// The record, given the one that is stored.
    pub(super) fn onto(self, stored: &Channel) -> Channel {
        match self {
            Self::Whole(channel) => *channel,
            Self::Changed(state) => {
                let State {
                    newest,
                    oldest,
                    hot,
                    bytes,
                    archive_bytes,
                    closing_entries,
                    closing_bytes,
                    senders,
                } = state;
                Channel {
                    name: stored.name.clone(),
                    executor: stored.executor.clone(),
                    epoch: stored.epoch,
                    options: stored.options.clone(),
                    created_at: stored.created_at,
                    newest,
                    oldest,
                    hot,
                    bytes,
                    archive_bytes,
                    closing_entries,
                    closing_bytes,
                    senders,
                }
            }
        }
    }
}

fn damaged() -> rusqlite::Error {
    let why = "a run of channel entries is cut off or damaged";
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, why.into())
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let behind = bytes.strip_prefix(&BEGIN);
        Self { bytes: behind.unwrap_or(bytes), has_whole_records: behind.is_none() }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self, count: usize) -> rusqlite::Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> rusqlite::Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    fn length(&mut self) -> rusqlite::Result<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| damaged())
    }

    fn sized(&mut self) -> rusqlite::Result<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> rusqlite::Result<&'a str> {
        std::str::from_utf8(self.sized()?).map_err(|_| damaged())
    }

    fn optional(&mut self) -> rusqlite::Result<Option<&'a [u8]>> {
        Ok(if self.array::<1>()?[0] == 0 { None } else { Some(self.sized()?) })
    }

    pub(super) fn channel(&mut self) -> rusqlite::Result<(i64, Record, Vec<Entry>)> {
        let number = i64::from_le_bytes(self.array()?);
        let record = if self.has_whole_records {
            Record::Whole(Box::new(from_json(self.text()?)?))
        } else {
            Record::Changed(self.state()?)
        };
        let entries = self.several(Self::entry)?;
        Ok((number, record, entries))
    }

    fn state(&mut self) -> rusqlite::Result<State> {
        Ok(State {
            newest: Position(self.number()?),
            oldest: Position(self.number()?),
            hot: Position(self.number()?),
            bytes: self.number()?,
            archive_bytes: self.number()?,
            closing_entries: self.number()?,
            closing_bytes: self.number()?,
            senders: self.several(Self::sender)?,
        })
    }

    fn sender(&mut self) -> rusqlite::Result<Sender> {
        Ok(Sender {
            party: self.party()?,
            epoch: u32::from_le_bytes(self.array()?),
            last: self.number()?,
            ahead: self.several(|reader| Ok((reader.number()?, reader.number()?)))?,
            ended: match self.array::<1>()?[0] {
                NOT_ENDED => None,
                byte => Some(type_of(byte)?),
            },
        })
    }

    /// A length, and so many of them. What is damaged is not believed to have more than come.
    fn several<T>(&mut self, read: impl Fn(&mut Self) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
        let count = self.length()?;
        (0..count).map(|_| read(self)).collect()
    }

    fn number(&mut self) -> rusqlite::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn party(&mut self) -> rusqlite::Result<Party> {
        Party::new(self.text()?).map_err(|_| damaged())
    }

    fn entry(&mut self) -> rusqlite::Result<Entry> {
        Ok(Entry {
            position: Position(self.number()?),
            epoch: u32::from_le_bytes(self.array()?),
            sequence: self.number()?,
            in_reply_to: Some(self.number()?).filter(|sequence| *sequence > 0),
            at: Micros(i64::from_le_bytes(self.array()?)),
            entry_type: type_of(self.array::<1>()?[0])?,
            sender: self.party()?,
            error: match self.optional()? {
                None => None,
                Some(text) => Some(std::str::from_utf8(text).map_err(|_| damaged())?.into()),
            },
            payload: self.optional()?.map(Bytes::copy_from_slice),
            wire: OnceLock::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::sqlite::shared::to_json;
    use crate::channels::{ChannelName, ChannelOptions};

    fn stored() -> Channel {
        let sender = |party: &str, epoch| Sender {
            party: Party::new(party).unwrap(),
            epoch,
            last: 7,
            ahead: vec![(9, 9), (12, 40)],
            ended: None,
        };
        Channel {
            name: ChannelName::new("out").unwrap(),
            executor: Some(Party::new("worker").unwrap()),
            epoch: 3,
            options: ChannelOptions::default(),
            created_at: Micros(1_700_000_000_000_000),
            newest: Position(9),
            oldest: Position(2),
            hot: Position(4),
            bytes: 1_000,
            archive_bytes: 70,
            closing_entries: 1,
            closing_bytes: 5,
            senders: vec![sender("client", 0), sender("worker", 3)],
        }
    }

    fn later() -> Channel {
        let mut channel = stored();
        (channel.newest, channel.oldest, channel.hot) = (Position(u64::MAX), Position(3), Position(5));
        (channel.bytes, channel.archive_bytes) = (2_000, 80);
        (channel.closing_entries, channel.closing_bytes) = (2, 6);
        channel.senders[0].ahead.clear();
        (channel.senders[0].last, channel.senders[0].ended) = (41, Some(EntryType::End));
        channel.senders[1].ended = Some(EntryType::Error);
        channel.senders.push(Sender { ahead: Vec::new(), epoch: u32::MAX, ..stored().senders[1].clone() });
        channel
    }

    fn entry() -> Arc<Entry> {
        Arc::new(Entry {
            position: Position(9),
            epoch: 3,
            sequence: 7,
            in_reply_to: Some(2),
            at: Micros(-1),
            entry_type: EntryType::Error,
            sender: Party::new("worker").unwrap(),
            error: Some("it fell".into()),
            payload: Some(Bytes::from_static(b"\0payload")),
            wire: OnceLock::new(),
        })
    }

    fn read(run: &[u8]) -> rusqlite::Result<Vec<(i64, Channel, String)>> {
        let (mut reader, mut found) = (Reader::new(run), Vec::new());
        while !reader.is_at_end() {
            let (number, record, entries) = reader.channel()?;
            assert_eq!(record.newest(), later().newest);
            found.push((number, record.onto(&stored()), format!("{entries:?}")));
        }
        Ok(found)
    }

    fn run() -> Vec<u8> {
        let (mut run, entry) = (begin(), entry());
        write_channel(&mut run, 5, &later(), &[&entry, &entry]).unwrap();
        write_channel(&mut run, i64::MAX, &later(), &[]).unwrap();
        run
    }

    #[test]
    fn what_appends_change_is_read_as_it_was_written() {
        let entries = format!("{:?}", [entry(), entry()]);
        let expected = [(5, later(), entries), (i64::MAX, later(), "[]".to_owned())];
        assert_eq!(read(&run()).unwrap(), expected);
    }

    #[test]
    fn runs_with_whole_records_are_read_as_ever() {
        let mut former = 5_i64.to_le_bytes().to_vec();
        write_bytes(&mut former, to_json(&later()).unwrap().as_bytes()).unwrap();
        former.extend(length(0).unwrap());
        assert_eq!(read(&former).unwrap(), [(5, later(), "[]".to_owned())]);
    }

    #[test]
    fn a_run_that_is_cut_off_anywhere_is_damaged() {
        let whole = run();
        let sound: Vec<usize> =
            (begin().len() + 1..whole.len()).filter(|cut| read(&whole[..*cut]).is_ok()).collect();
        // It has two channels.
        assert_eq!(sound.len(), 1, "{sound:?}");
    }
}
