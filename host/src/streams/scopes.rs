//! Change scopes: by what the changes of an aggregate can be followed.
//!
//! Pure: which aggregates have which scopes, which change streams an event
//! belongs to, and which stream a subscriber means. An event whose aggregate
//! declares nothing belongs to none. A change that moves an aggregate between
//! the values of a field belongs to both streams, and so does a delete to the
//! one it leaves; for that the log keeps the last known values of the fields.

mod payload;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::name::{ChangeStream, ID_SCOPE, TENANT_SCOPE};
use crate::error::{Blame, Classify, Retry};
use crate::event::{Event, Position};
use crate::limits::{CHANGE_AGGREGATES_MAX, CHANGE_SCOPES_MAX, NAME_BYTES_MAX, SCOPE_NAME_BYTES_MAX};
pub use payload::Member;

/// One way to follow the changes of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One stream for each aggregate, by its id.
    Id,
    /// One stream for all of the tenant's.
    Tenant,
    /// One stream for each value of a top-level member of the payload. Only text that is not empty counts.
    Field { name: String, member: String },
}

impl Scope {
    pub fn name(&self) -> &str {
        match self {
            Self::Id => ID_SCOPE,
            Self::Tenant => TENANT_SCOPE,
            Self::Field { name, .. } => name,
        }
    }

    /// Under what the last known value of a field is kept. A name has no colon.
    fn value_key(&self) -> Option<String> {
        match self {
            Self::Field { name, member } => Some(format!("{name}:{member}")),
            Self::Id | Self::Tenant => None,
        }
    }
}

/// The scopes of one aggregate, in the order in which its events go to their streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AggregateScopes {
    pub aggregate: String,
    pub scopes: Vec<Scope>,
}

/// The last known values of field scopes, by the scope's name and member, so that they stay what they are when other
/// scopes come, go or change places. What is not known is not in it.
pub type FieldValues = BTreeMap<String, String>;

/// [`FieldValues`] as a store has them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum StoredValues {
    Keyed(FieldValues),
    /// As they were written once: in the order of declaration of that time.
    Listed(Vec<Option<String>>),
}

/// Where an event goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// In the order of declaration, each once; where a field has changed, the new value's stream comes first.
    pub streams: Vec<ChangeStream>,
    /// What is known of the fields after the event. Empty after a delete: then nothing needs to be kept.
    pub values: FieldValues,
    /// Values that are too long for a stream's name, and were therefore passed over.
    pub too_long: u64,
}

impl AggregateScopes {
    /// Whether the log has to keep values for it.
    pub fn has_fields(&self) -> bool {
        self.scopes.iter().any(|scope| matches!(scope, Scope::Field { .. }))
    }

    fn value_keys(&self) -> impl Iterator<Item = String> {
        self.scopes.iter().filter_map(Scope::value_key)
    }

    /// The change streams of an event of this aggregate. A member that the payload does not have keeps its
    /// last known value, so that an event that says only what has changed reaches its scope, too; one that
    /// has no text any more leaves it.
    pub fn derive(&self, event: &Event<'_>, before: &FieldValues) -> Derived {
        let mut derived = Derived::default();
        let members = if self.has_fields() { payload::members(self, event.payload) } else { Vec::new() };
        let mut members = members.into_iter();
        let deleted = event.event_type == "deleted" || event.event_type.ends_with(".deleted");
        for scope in &self.scopes {
            match scope {
                Scope::Id => derived.add(&self.aggregate, ID_SCOPE, event.agg_id),
                Scope::Tenant => derived.add(&self.aggregate, TENANT_SCOPE, ""),
                Scope::Field { name, .. } => {
                    let key = scope.value_key().unwrap_or_default();
                    let known = before.get(&key).map(String::as_str);
                    let now = match members.next().unwrap_or(Member::Absent) {
                        Member::Absent => known.map(str::to_owned),
                        Member::NoText => None,
                        Member::TooLong => {
                            derived.too_long += 1;
                            None
                        }
                        Member::Text(text) => Some(text),
                    };
                    for value in [now.as_deref(), known].into_iter().flatten() {
                        derived.add(&self.aggregate, name, value);
                    }
                    if let Some(now) = now.filter(|_| !deleted) {
                        derived.values.insert(key, now);
                    }
                }
            }
        }
        derived
    }

    fn check(&self) -> Result<(), ScopeError> {
        let invalid = |reason: String| Err(ScopeError::Invalid { reason });
        let aggregate = cut(&self.aggregate);
        if !is_text(&self.aggregate) {
            return invalid(format!("`{aggregate}` is not an aggregate's name"));
        }
        if self.scopes.is_empty() {
            return invalid(format!("aggregate `{aggregate}` has no scopes"));
        }
        if self.scopes.len() > CHANGE_SCOPES_MAX {
            return Err(ScopeError::TooMany {
                limit: "change_scopes_max",
                what: "change scopes of one aggregate",
                asked: self.scopes.len(),
                max: CHANGE_SCOPES_MAX,
            });
        }
        let mut names = BTreeSet::new();
        for scope in &self.scopes {
            if let Scope::Field { name, member } = scope {
                if !is_scope_name(name) {
                    return invalid(format!(
                        "`{}` is not a scope's name: 1 to {SCOPE_NAME_BYTES_MAX} of a-z, 0-9, `_`, `-`, and neither `id` nor `tenant`",
                        cut(name)
                    ));
                }
                if !is_text(member) {
                    return invalid(format!("`{}` is not a member of a payload", cut(member)));
                }
            }
            if !names.insert(scope.name()) {
                return invalid(format!("aggregate `{aggregate}` has the scope `{}` twice", scope.name()));
            }
        }
        Ok(())
    }
}

impl Derived {
    fn add(&mut self, aggregate: &str, scope: &str, id: &str) {
        let known = |stream: &ChangeStream| stream.scope == scope && stream.id == id;
        if !self.streams.iter().any(known) {
            self.streams.push(ChangeStream::new(aggregate, scope, id));
        }
    }
}

/// The scopes of a log. Backends keep it as JSON and change it with [`Self::declare`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeScopes {
    aggregates: BTreeMap<String, Declared>,
}

/// An aggregate's scopes, and who declares them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Declared {
    scopes: AggregateScopes,
    owners: BTreeSet<String>,
    /// For each scope, the newest position when it was declared: what came until then is not in its streams.
    since: Vec<u64>,
    /// Whose values those are that were once written as a list; none where that is these scopes' order.
    #[serde(default)]
    listed: Option<Vec<String>>,
}

impl Declared {
    fn listed(&self) -> Vec<String> {
        self.listed.clone().unwrap_or_else(|| self.scopes.value_keys().collect())
    }
}

impl ChangeScopes {
    pub fn is_empty(&self) -> bool {
        self.aggregates.is_empty()
    }

    /// Whether somebody declares any.
    pub fn has_owner(&self, owner: &str) -> bool {
        self.aggregates.values().any(|declared| declared.owners.contains(owner))
    }

    /// An aggregate's scopes; none while nobody declares any.
    pub fn of(&self, aggregate: &str) -> Option<&AggregateScopes> {
        self.aggregates.get(aggregate).map(|declared| &declared.scopes)
    }

    /// The last known values of one of an aggregate's, as a store has them.
    pub fn known_values(&self, aggregate: &str, stored: StoredValues) -> FieldValues {
        match stored {
            StoredValues::Keyed(values) => values,
            StoredValues::Listed(values) => {
                let keys = self.aggregates.get(aggregate).map(Declared::listed).unwrap_or_default();
                keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
            }
        }
    }

    /// All of them, by aggregate.
    pub fn all(&self) -> impl Iterator<Item = &AggregateScopes> {
        self.aggregates.values().map(|declared| &declared.scopes)
    }

    /// Whether a declaration can be made; what is wrong with it where it cannot.
    pub fn check(&self, owner: &str, declarations: &[AggregateScopes]) -> Result<(), ScopeError> {
        if declarations.len() > CHANGE_AGGREGATES_MAX {
            return Err(ScopeError::TooMany {
                limit: "change_aggregates_max",
                what: "aggregates with change scopes",
                asked: declarations.len(),
                max: CHANGE_AGGREGATES_MAX,
            });
        }
        let mut seen = BTreeSet::new();
        for declaration in declarations {
            declaration.check()?;
            if !seen.insert(&declaration.aggregate) {
                let reason = format!("aggregate `{}` is declared twice", cut(&declaration.aggregate));
                return Err(ScopeError::Invalid { reason });
            }
            let Some(declared) = self.aggregates.get(&declaration.aggregate) else { continue };
            let other = declared.owners.iter().find(|other| *other != owner);
            if let Some(other) = other.filter(|_| declared.scopes != *declaration) {
                let aggregate = declaration.aggregate.clone();
                return Err(ScopeError::Taken { aggregate, owner: other.clone() });
            }
        }
        Ok(())
    }

    /// Replaces what an owner has declared; an empty list withdraws it. Owners may share an aggregate as
    /// long as they say the same. A scope that stays keeps what its streams have; one that is new begins after
    /// `newest`. Last known values stay with their fields; those of a field that went go with the next event of their
    /// aggregate. Answers the aggregates that have no fields any more: nothing keeps their values up to date.
    pub fn declare(
        &mut self,
        owner: &str,
        declarations: &[AggregateScopes],
        newest: Position,
    ) -> Result<Vec<String>, ScopeError> {
        self.check(owner, declarations)?;
        let before = self.aggregates.clone();
        for declared in self.aggregates.values_mut() {
            declared.owners.remove(owner);
        }
        for declaration in declarations {
            let former = before.get(&declaration.aggregate);
            let since = |scope: &Scope| {
                let place = former.and_then(|f| f.scopes.scopes.iter().position(|known| known == scope));
                former.zip(place).map_or(newest.0, |(former, place)| former.since[place])
            };
            let since = declaration.scopes.iter().map(since).collect();
            let mut owners =
                self.aggregates.remove(&declaration.aggregate).map(|d| d.owners).unwrap_or_default();
            owners.insert(owner.to_owned());
            let listed = Some(former.map(Declared::listed).unwrap_or_default());
            let declared = Declared { scopes: declaration.clone(), owners, since, listed };
            self.aggregates.insert(declaration.aggregate.clone(), declared);
        }
        self.aggregates.retain(|_, declared| !declared.owners.is_empty());
        let mut useless = Vec::new();
        for (aggregate, _) in before.iter().filter(|(_, former)| former.scopes.has_fields()) {
            match self.aggregates.get_mut(aggregate) {
                Some(declared) if declared.scopes.has_fields() => continue,
                Some(declared) => declared.listed = Some(Vec::new()),
                None => {}
            }
            useless.push(aggregate.clone());
        }
        Ok(useless)
    }

    /// The stream that a subscriber means. The scope `tenant` needs no id and ignores one.
    pub fn resolve(&self, aggregate: &str, scope: &str, id: &str) -> Result<ChangeStream, ScopeError> {
        let Some(declared) = self.aggregates.get(aggregate) else {
            return Err(ScopeError::AggregateUnknown { aggregate: cut(aggregate) });
        };
        if !declared.scopes.scopes.iter().any(|known| known.name() == scope) {
            return Err(ScopeError::ScopeUnknown { aggregate: cut(aggregate), scope: cut(scope) });
        }
        match (scope, id) {
            (TENANT_SCOPE, _) => Ok(ChangeStream::new(aggregate, scope, "")),
            (_, "") => Err(ScopeError::IdMissing { aggregate: cut(aggregate), scope: cut(scope) }),
            _ => Ok(ChangeStream::new(aggregate, scope, id)),
        }
    }

    /// After which position a stream has everything; none when its scope is not declared.
    pub fn since(&self, stream: &ChangeStream) -> Option<Position> {
        let declared = self.aggregates.get(&stream.aggregate)?;
        let place = declared.scopes.scopes.iter().position(|scope| scope.name() == stream.scope)?;
        declared.since.get(place).copied().map(Position)
    }
}

/// What is wrong with a declaration or with a subscriber's question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    #[error("no plugin declares change scopes for the aggregate `{aggregate}`")]
    AggregateUnknown { aggregate: String },
    #[error("the aggregate `{aggregate}` has no change scope `{scope}`")]
    ScopeUnknown { aggregate: String, scope: String },
    #[error("the change scope `{scope}` of `{aggregate}` needs an id")]
    IdMissing { aggregate: String, scope: String },
    #[error("plugin `{owner}` declares other change scopes for the aggregate `{aggregate}`")]
    Taken { aggregate: String, owner: String },
    #[error("change scopes: {reason}")]
    Invalid { reason: String },
    #[error("{asked} {what}; {limit} is {max}")]
    TooMany { limit: &'static str, what: &'static str, asked: usize, max: usize },
}

impl Classify for ScopeError {
    fn code(&self) -> &'static str {
        match self {
            Self::AggregateUnknown { .. } => "aggregate_unknown",
            Self::ScopeUnknown { .. } => "scope_unknown",
            Self::IdMissing { .. } => "scope_id_missing",
            Self::Taken { .. } => "change_scopes_taken",
            Self::Invalid { .. } => "change_scopes_invalid",
            Self::TooMany { limit, .. } => limit,
        }
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn blame(&self) -> Blame {
        Blame::Caller
    }
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.bytes().any(|b| b.is_ascii_control())
}

fn is_scope_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name != ID_SCOPE
        && name != TENANT_SCOPE
        && name.len() <= SCOPE_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(good)
        && name.bytes().all(|b| good(b) || matches!(b, b'_' | b'-'))
}

/// Text for an error.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
