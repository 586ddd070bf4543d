//! Messages as they go over the wire: framed by hand, one behind the other in one buffer.

/// What a data message is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Text,
    Binary,
}

/// Whole messages of a host. Nothing is kept for them while there are none.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// With room for so many bytes, heads of messages included.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a message of so many bytes, which `write` appends.
    pub fn push(&mut self, kind: MessageKind, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let first = match kind {
            MessageKind::Text => 0x81,
            MessageKind::Binary => 0x82,
        };
        self.bytes.reserve(length + HEAD_BYTES_MAX);
        write_head(&mut self.bytes, first, length);
        let end = self.bytes.len() + length;
        write(&mut self.bytes);
        assert!(self.bytes.len() == end, "a message is as long as its head says");
    }

    /// Adds a message in parts that follow each other.
    pub fn push_parts<P: AsRef<[u8]>>(&mut self, kind: MessageKind, parts: &[P]) {
        let length = parts.iter().map(|part| part.as_ref().len()).sum();
        self.push(kind, length, |out| parts.iter().for_each(|part| out.extend_from_slice(part.as_ref())));
    }
}

pub(super) const HEAD_BYTES_MAX: usize = 10;

/// The head of a frame that is whole and, as a server's, not masked (RFC 6455 §5.2).
pub(super) fn write_head(out: &mut Vec<u8>, first: u8, length: usize) {
    out.push(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_shortest_length_that_fits() {
        let head = |length| {
            let mut out = Vec::new();
            write_head(&mut out, 0x81, length);
            assert!(out.len() <= HEAD_BYTES_MAX);
            out
        };
        assert_eq!(head(0), [0x81, 0]);
        assert_eq!(head(125), [0x81, 125]);
        assert_eq!(head(126), [0x81, 126, 0, 126]);
        assert_eq!(head(65_535), [0x81, 126, 0xff, 0xff]);
        assert_eq!(head(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn messages_stand_one_behind_the_other() {
        let mut frames = Frames::default();
        frames.push_parts(MessageKind::Text, &["a", "", "bc"]);
        frames.push(MessageKind::Binary, 2, |out| out.extend_from_slice(&[7, 8]));
        frames.push_parts::<&[u8]>(MessageKind::Binary, &[]);
        assert_eq!(frames.as_bytes(), [0x81, 3, b'a', b'b', b'c', 0x82, 2, 7, 8, 0x82, 0]);
    }
}
