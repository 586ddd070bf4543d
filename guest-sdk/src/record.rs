//! An effect's numbers, as they cross: `wit/v0.1/types.wit` has the layout.

/// Bytes of an effect's numbers.
pub const EFFECT_BYTES: usize = 56;

/// What the host is asked to do; each has the number of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EffectKind {
    Put,
    Delete,
    StatePut,
    StateDelete,
    Emit,
    Append,
}

impl EffectKind {
    const ALL: [Self; 6] =
        [Self::Put, Self::Delete, Self::StatePut, Self::StateDelete, Self::Emit, Self::Append];
}

/// One effect's numbers. Its bytes lie in the arena from `start` on: key, aggregate, type, id, body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectRecord {
    pub kind: EffectKind,
    pub table: u32,
    pub event: u32,
    pub version: u64,
    pub at: i64,
    pub schema_version: u32,
    pub start: u32,
    pub key_bytes: u32,
    pub aggregate_bytes: u32,
    pub type_bytes: u32,
    pub id_bytes: u32,
    pub body_bytes: u32,
}

impl EffectRecord {
    /// Appends the numbers as they cross.
    #[inline]
    pub fn write(&self, into: &mut Vec<u8>) {
        let mut wire = [0; EFFECT_BYTES];
        let mut put = |at: usize, bytes: [u8; 4]| wire[at..at + 4].copy_from_slice(&bytes);
        put(0, (self.kind as u32).to_le_bytes());
        put(4, self.table.to_le_bytes());
        put(8, self.event.to_le_bytes());
        put(12, self.schema_version.to_le_bytes());
        put(32, self.start.to_le_bytes());
        put(36, self.key_bytes.to_le_bytes());
        put(40, self.aggregate_bytes.to_le_bytes());
        put(44, self.type_bytes.to_le_bytes());
        put(48, self.id_bytes.to_le_bytes());
        put(52, self.body_bytes.to_le_bytes());
        wire[16..24].copy_from_slice(&self.version.to_le_bytes());
        wire[24..32].copy_from_slice(&self.at.to_le_bytes());
        into.extend_from_slice(&wire);
    }

    /// Reads the numbers of all effects. Panics where they are none: only what this SDK wrote is read with it.
    pub fn read_all(records: &[u8]) -> impl Iterator<Item = Self> {
        let (records, rest) = records.as_chunks::<EFFECT_BYTES>();
        assert!(rest.is_empty(), "effects are handed back whole");
        records.iter().map(Self::read)
    }

    fn read(wire: &[u8; EFFECT_BYTES]) -> Self {
        let number = |at: usize| u32::from_le_bytes([wire[at], wire[at + 1], wire[at + 2], wire[at + 3]]);
        let word = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        Self {
            kind: EffectKind::ALL[number(0) as usize],
            table: number(4),
            event: number(8),
            schema_version: number(12),
            version: word(16),
            at: word(24).cast_signed(),
            start: number(32),
            key_bytes: number(36),
            aggregate_bytes: number(40),
            type_bytes: number(44),
            id_bytes: number(48),
            body_bytes: number(52),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_place() {
        let record = EffectRecord {
            kind: EffectKind::Append,
            table: 1,
            event: 2,
            schema_version: 3,
            version: 4 << 32 | 5,
            at: -6,
            start: 7,
            key_bytes: 8,
            aggregate_bytes: 9,
            type_bytes: 10,
            id_bytes: 11,
            body_bytes: u32::MAX,
        };
        let mut wire = vec![];
        record.write(&mut wire);
        let minus_six = 0xffff_fffa_u32;
        let numbers = [5, 1, 2, 3, 5, 4, minus_six, u32::MAX, 7, 8, 9, 10, 11, u32::MAX];
        assert_eq!(wire, numbers.map(u32::to_le_bytes).as_flattened());
        for kind in EffectKind::ALL {
            EffectRecord { kind, ..record }.write(&mut wire);
        }
        let kinds: Vec<_> = EffectRecord::read_all(&wire).skip(1).map(|record| record.kind).collect();
        assert_eq!(kinds, EffectKind::ALL);
        assert_eq!(EffectRecord::read_all(&wire).next(), Some(record));
    }
}
