//! Resume tokens: which batch a client has last seen, of which life of which view of which store.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::event::{Epoch, Revision, TenantId};
use crate::tables::write_integer;

// Tokens are in every batch, so they are short; what a wrong one could do at worst is to resume at a place that
// another store, query or life of the view has, for which all three would have to agree by chance.
const EPOCH_BYTES: usize = 4;
const QUERY_BYTES: usize = 5;
const LIFE_BYTES: usize = 6;
const BYTES: usize = EPOCH_BYTES + QUERY_BYTES + LIFE_BYTES;
/// As Base64 without padding.
const TEXT_BYTES: usize = BYTES.div_ceil(3) * 4;

/// What is the same in all tokens of one view. Opaque to clients; nothing in it is a secret or grants anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ViewMark {
    mark: [u8; BYTES],
    text: [u8; TEXT_BYTES],
}

/// Why a token does not resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gap {
    /// It is no token.
    Invalid,
    /// It is of another store, or of another life of this one.
    Epoch,
    /// It is of another query.
    View,
    /// What came after it is no longer kept.
    Expired,
    /// The client fell so far behind that what it missed is no longer kept.
    Slow,
}

impl Gap {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Epoch => "epoch",
            Self::View => "view",
            Self::Expired => "expired",
            Self::Slow => "slow",
        }
    }

    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::Invalid => "the token is not one of this host's",
            Self::Epoch => "the token is of another store",
            Self::View => "the token is of another query",
            Self::Expired => "what followed the token is no longer kept",
            Self::Slow => "the client took too long to read; what it missed is no longer kept",
        }
    }
}

impl ViewMark {
    /// Of a query of a tenant, and a number that is another one in each life of the view.
    pub(super) fn new(epoch: &Epoch, tenant: &TenantId, query: &str, incarnation: u64) -> Self {
        let mut mark = [0; BYTES];
        let (of_store, rest) = mark.split_at_mut(EPOCH_BYTES);
        let (of_query, of_life) = rest.split_at_mut(QUERY_BYTES);
        of_store.copy_from_slice(&Sha256::digest(epoch.0.as_bytes())[..EPOCH_BYTES]);
        let query = Sha256::new().chain_update(tenant.as_str()).chain_update([0]).chain_update(query);
        of_query.copy_from_slice(&query.finalize()[..QUERY_BYTES]);
        of_life.copy_from_slice(&incarnation.to_be_bytes()[..LIFE_BYTES]);
        let mut text = [0; TEXT_BYTES];
        text.copy_from_slice(URL_SAFE_NO_PAD.encode(mark).as_bytes());
        Self { mark, text }
    }

    /// Of a client that is exact at a revision, and wants the batch of this number next.
    pub(super) fn write(&self, revision: Revision, next: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text);
        out.push(b'.');
        write_integer(out, revision.0);
        out.push(b'.');
        write_integer(out, next);
    }

    /// The number of the batch that a client with this token wants next.
    pub(super) fn resume(&self, token: &str) -> Result<u64, Gap> {
        let mut parts = token.split('.');
        let (Some(mark), Some(revision), Some(next), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Gap::Invalid);
        };
        let mark = URL_SAFE_NO_PAD.decode(mark).map_err(|_| Gap::Invalid)?;
        let mark: [u8; BYTES] = mark.try_into().map_err(|_| Gap::Invalid)?;
        let _: u64 = revision.parse().map_err(|_| Gap::Invalid)?;
        let next = next.parse().map_err(|_| Gap::Invalid)?;
        let of_query = EPOCH_BYTES..EPOCH_BYTES + QUERY_BYTES;
        if mark[..EPOCH_BYTES] != self.mark[..EPOCH_BYTES] {
            Err(Gap::Epoch)
        } else if mark[of_query.clone()] != self.mark[of_query] {
            Err(Gap::View)
        } else if mark != self.mark {
            Err(Gap::Expired)
        } else {
            Ok(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: &str, tenant: &str, query: &str, incarnation: u64) -> ViewMark {
        let tenant = TenantId::new(tenant).expect("a good name");
        ViewMark::new(&Epoch(epoch.into()), &tenant, query, incarnation)
    }

    fn token(mark: &ViewMark, revision: u64, next: u64) -> String {
        let mut out = Vec::new();
        mark.write(Revision(revision), next, &mut out);
        String::from_utf8(out).expect("plain text")
    }

    #[test]
    fn a_token_is_told_from_those_of_others_and_why() {
        let ours = mark("e1", "acme", "q", 7 << 20);
        assert_eq!(ours.resume(&token(&ours, 42, 3)), Ok(3));
        assert_eq!(ours.resume(&token(&mark("e2", "acme", "q", 7 << 20), 1, 1)), Err(Gap::Epoch));
        assert_eq!(ours.resume(&token(&mark("e1", "acme", "r", 7 << 20), 1, 1)), Err(Gap::View));
        assert_eq!(ours.resume(&token(&mark("e1", "rival", "q", 7 << 20), 1, 1)), Err(Gap::View));
        assert_eq!(ours.resume(&token(&mark("e1", "acme", "q", 8 << 20), 1, 1)), Err(Gap::Expired));
        let good = token(&ours, 1, 1);
        for bad in [
            "",
            ".",
            "x",
            "x.1.1",
            &good[1..],
            &format!("{good}.1"),
            &format!("{good}x"),
            &good.replace('.', ".-"),
            "é.1",
        ] {
            assert_eq!(ours.resume(bad), Err(Gap::Invalid), "{bad}");
        }
    }
}
