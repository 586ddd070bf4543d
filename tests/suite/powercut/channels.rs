//! What is left of channels after a cut, held against the notes.

use std::collections::BTreeMap;

use millrace::backends::sqlite::SqliteStore;
use millrace::channels::{
    ChannelError, ChannelId, ChannelName, ChannelStore, ProcessId, ProcessName, ReadLimit,
};
use millrace::event::{Position, TenantId};

/// Every acknowledged entry lies at its position, positions have no hole, each sender's numbers are in order, and the
/// channel's record says what its entries say.
pub(super) async fn look(store: &SqliteStore, tenant: &TenantId, notes: &str) -> Result<(), String> {
    let mut noted: BTreeMap<&str, BTreeMap<u64, (String, u64)>> = BTreeMap::new();
    for line in notes.lines() {
        // The last line may be torn.
        let mut words = line.split(' ').skip(1);
        let (Some(channel), Some(sender), Some(sequence), Some(position)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        if !line.starts_with("entry ") {
            continue;
        }
        let (Ok(sequence), Ok(position)) = (sequence.parse(), position.parse()) else { continue };
        noted.entry(channel).or_default().insert(position, (sender.to_owned(), sequence));
    }
    for (name, noted) in noted {
        look_at(store, tenant, name, &noted).await?;
    }
    Ok(())
}

async fn look_at(
    store: &SqliteStore,
    tenant: &TenantId,
    name: &str,
    noted: &BTreeMap<u64, (String, u64)>,
) -> Result<(), String> {
    let failed = |error: ChannelError| format!("channel {name}: {error}");
    let process = ProcessId { tenant: tenant.clone(), name: ProcessName::new("job").expect("a name") };
    let id = ChannelId { process, name: ChannelName::new(name).expect("a name") };
    let channel = ChannelStore::head(store, &id).await.map_err(failed)?.channel;
    let limit = ReadLimit { entries: 10_000, bytes: usize::MAX };
    let after = Position(channel.oldest.0 - 1);
    let page = ChannelStore::read(store, &id, after, limit).await.map_err(failed)?;
    let positions: Vec<u64> = page.entries.iter().map(|entry| entry.position.0).collect();
    if positions != (channel.oldest.0..=channel.newest.0).collect::<Vec<_>>() {
        let (oldest, newest) = (channel.oldest, channel.newest);
        return Err(format!("channel {name} has {positions:?}, its record says {oldest} to {newest}"));
    }
    let bytes: u64 = page.entries.iter().map(|entry| entry.bytes() as u64).sum();
    if bytes != channel.bytes {
        return Err(format!("channel {name} has {bytes} bytes, its record says {}", channel.bytes));
    }
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in &page.entries {
        let (sender, sequence) = (entry.sender.as_str(), entry.sequence);
        let expected = last.get(sender).map_or(sequence, |before| before + 1);
        let payload = format!("{sender} {sequence}");
        if sequence != expected || entry.payload.as_deref() != Some(payload.as_bytes()) {
            return Err(format!("channel {name} has {entry:?} where {sender} {expected} belongs"));
        }
        last.insert(sender, sequence);
        let note = noted.get(&entry.position.0);
        if note.is_some_and(|(who, number)| (who.as_str(), *number) != (sender, sequence)) {
            return Err(format!("channel {name} has {entry:?} where {note:?} was acknowledged"));
        }
    }
    for sender in &channel.senders {
        if last.get(sender.party.as_str()).is_some_and(|last| *last != sender.last) {
            return Err(format!("channel {name}: its record says {sender:?}, its entries {last:?}"));
        }
    }
    match noted.last_key_value() {
        Some((newest, note)) if *newest > channel.newest.0 => {
            Err(format!("channel {name}: acknowledged and gone: {note:?} at {newest}"))
        }
        _ => Ok(()),
    }
}
