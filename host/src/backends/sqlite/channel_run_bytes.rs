//! A run as bytes: of each channel its number, its record, and the entries that a transaction has appended to it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::shared::{from_json, to_json};
use crate::channels::{Channel, Entry, EntryType, Party};
use crate::event::{Micros, Position};

pub(super) fn write_channel(
    run: &mut Vec<u8>,
    number: i64,
    channel: &Channel,
    entries: &[&Arc<Entry>],
) -> rusqlite::Result<()> {
    let record = to_json(channel)?;
    run.extend(number.to_le_bytes());
    write_bytes(run, record.as_bytes())?;
    run.extend(length(entries.len())?);
    for entry in entries {
        run.extend(entry.position.0.to_le_bytes());
        run.extend(entry.epoch.to_le_bytes());
        run.extend(entry.sequence.to_le_bytes());
        // No entry answers number 0.
        run.extend(entry.in_reply_to.unwrap_or(0).to_le_bytes());
        run.extend(entry.at.0.to_le_bytes());
        run.push(match entry.entry_type {
            EntryType::Data => 0,
            EntryType::End => 1,
            EntryType::Error => 2,
        });
        write_bytes(run, entry.sender.as_str().as_bytes())?;
        write_optional(run, entry.error.as_deref().map(str::as_bytes))?;
        write_optional(run, entry.payload.as_deref())?;
    }
    Ok(())
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
    pub(super) bytes: &'a [u8],
}

fn damaged() -> rusqlite::Error {
    let why = "a run of channel entries is cut off or damaged";
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, why.into())
}

impl<'a> Reader<'a> {
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

    pub(super) fn channel(&mut self) -> rusqlite::Result<(i64, Channel, Vec<Entry>)> {
        let number = i64::from_le_bytes(self.array()?);
        let channel = from_json(self.text()?)?;
        let count = self.length()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(self.entry()?);
        }
        Ok((number, channel, entries))
    }

    fn entry(&mut self) -> rusqlite::Result<Entry> {
        Ok(Entry {
            position: Position(u64::from_le_bytes(self.array()?)),
            epoch: u32::from_le_bytes(self.array()?),
            sequence: u64::from_le_bytes(self.array()?),
            in_reply_to: Some(u64::from_le_bytes(self.array()?)).filter(|sequence| *sequence > 0),
            at: Micros(i64::from_le_bytes(self.array()?)),
            entry_type: match self.array::<1>()?[0] {
                0 => EntryType::Data,
                1 => EntryType::End,
                2 => EntryType::Error,
                _ => return Err(damaged()),
            },
            sender: Party::new(self.text()?).map_err(|_| damaged())?,
            error: match self.optional()? {
                None => None,
                Some(text) => Some(std::str::from_utf8(text).map_err(|_| damaged())?.into()),
            },
            payload: self.optional()?.map(Bytes::copy_from_slice),
            wire: OnceLock::new(),
        })
    }
}
