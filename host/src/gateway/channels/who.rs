//! On whose behalf somebody asks.

use crate::channels::{Actor, Party};
use crate::checkpoints::PLUGIN_PARTY;
use crate::gateway::auth::{Caller, Right};
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;

/// A caller, and the party that it acts for where it says so.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) caller: Caller,
    named: Option<Party>,
}

impl Asker {
    /// Takes the parameter `as`, which is for whoever runs the host.
    pub(super) fn take(caller: Caller, params: &mut Params) -> Result<Self, Problem> {
        Self::named(caller, params.take("as")?.as_deref())
    }

    /// Of a request that has no other parameter.
    pub(super) fn alone(caller: Caller, mut params: Params) -> Result<Self, Problem> {
        let asker = Self::take(caller, &mut params)?;
        params.finish()?;
        Ok(asker)
    }

    /// The same of one that changes a process that is there. Refuses those who neither publish nor run the host.
    pub(super) fn to_change(caller: Caller, params: Params) -> Result<Self, Problem> {
        let asker = Self::alone(caller, params)?;
        if asker.caller.may(Right::Publish) || asker.caller.may(Right::Admin) {
            return Ok(asker);
        }
        let detail = "this needs the right `publish`, which the token does not have";
        Err(Problem::new("right_missing", detail).with("right", "publish".into()))
    }

    /// For who says it elsewhere.
    pub(super) fn named(caller: Caller, name: Option<&str>) -> Result<Self, Problem> {
        let named = match name {
            None => None,
            Some(name) if caller.may(Right::Admin) => Some(Party::new(name)?),
            Some(_) => {
                let detail = "acting in the name of a party (`as`) needs the right `admin`";
                return Err(Problem::new("right_missing", detail).with("right", "admin".into()));
            }
        };
        Ok(Self { caller, named })
    }

    /// Who sees and changes: the party that is named, or else whoever runs the host, or else the caller's own party.
    pub(super) fn actor(&self) -> Result<Actor, Problem> {
        match &self.named {
            None if self.caller.may(Right::Admin) => Ok(Actor::Host),
            _ => self.party().map(Actor::Party),
        }
    }

    /// In whose name something is submitted or appended.
    pub(super) fn party(&self) -> Result<Party, Problem> {
        if let Some(named) = &self.named {
            return Ok(named.clone());
        }
        // That is how plugins are called.
        let own = self.caller.party.as_deref().filter(|name| !name.starts_with(PLUGIN_PARTY));
        let own = own.and_then(|name| Party::new(name).ok());
        own.ok_or_else(|| {
            let detail = format!("the credential `{}` names nobody who could take part", self.caller.name);
            Problem::new("channel_party_missing", detail)
        })
    }
}
