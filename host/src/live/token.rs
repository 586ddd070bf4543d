//! Resume tokens: which batch a client has last seen, of which life of which view of which store.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::event::{Epoch, Revision, TenantId};

const EPOCH_BYTES: usize = 8;
const QUERY_BYTES: usize = 8;
const BYTES: usize = EPOCH_BYTES + QUERY_BYTES + 8;

/// What is the same in all tokens of one view. Opaque to clients; nothing in it is a secret or grants anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ViewMark([u8; BYTES]);

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
        of_life.copy_from_slice(&incarnation.to_be_bytes());
        Self(mark)
    }

    /// Of a client that is exact at a revision, and wants the batch of this number next.
    pub(super) fn token(&self, revision: Revision, next: u64) -> String {
        format!("{}.{revision}.{next}", URL_SAFE_NO_PAD.encode(self.0))
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
        if mark[..EPOCH_BYTES] != self.0[..EPOCH_BYTES] {
            Err(Gap::Epoch)
        } else if mark[of_query.clone()] != self.0[of_query] {
            Err(Gap::View)
        } else if mark != self.0 {
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

    #[test]
    fn a_token_is_told_from_those_of_others_and_why() {
        let ours = mark("e1", "acme", "q", 7);
        assert_eq!(ours.resume(&ours.token(Revision(42), 3)), Ok(3));
        assert_eq!(ours.resume(&mark("e2", "acme", "q", 7).token(Revision(1), 1)), Err(Gap::Epoch));
        assert_eq!(ours.resume(&mark("e1", "acme", "r", 7).token(Revision(1), 1)), Err(Gap::View));
        assert_eq!(ours.resume(&mark("e1", "rival", "q", 7).token(Revision(1), 1)), Err(Gap::View));
        assert_eq!(ours.resume(&mark("e1", "acme", "q", 8).token(Revision(1), 1)), Err(Gap::Expired));
        let good = ours.token(Revision(1), 1);
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
