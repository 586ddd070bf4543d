//! Claims about the names that are derived: of streams, of events, of entries and marks of the cache. Those of keys on a
//! server are in `redis/names.rs`.

use std::collections::BTreeSet;

use millrace::cache::{Holds, Keyspace, Partition};
use millrace::event::{TenantId, derived_id};
use millrace::limits::TENANT_BYTES_MAX;
use millrace::streams::groups::{ConsumerName, GroupName};
use millrace::streams::{ChangeStream, StreamName};
use millrace_tests::conformance::effects::tenant;

use super::layering::sources;

/// Parts that would be taken for two, or for another one, if they were written as they are.
const ODD: [&str; 14] =
    ["a", "b", "a:b", "a/b", "a%3Ab", "a%2Fb", "%", "%%", ":", "/", "a.b", "tenant", "id", "Zürich 😀"];

/// The reference's graph and index names have no counterpart; what names there are is made in one file each.
#[test]
fn c11_names_of_streams_and_keys_are_made_in_one_place() {
    for (what, mark, place) in [
        ("change streams", "\"changes:", &["streams/name.rs"][..]),
        ("keys on Redis", "format!(\"{{{", &["redis/scripts.rs", "redis/link.rs"]),
        ("entries and marks of the cache", "\"/v{}/\"", &["cache/names.rs"]),
    ] {
        let files: Vec<String> = sources(&["host/src"])
            .into_iter()
            .filter(|(_, text)| text.contains(mark))
            .map(|(path, _)| path.to_string_lossy().into_owned())
            .collect();
        assert!(!files.is_empty(), "{what} have names");
        let elsewhere: Vec<_> =
            files.iter().filter(|file| !place.iter().any(|place| file.ends_with(place))).collect();
        assert!(elsewhere.is_empty(), "{what} are named in {elsewhere:?}, too");
    }
}

#[test]
fn c11_streams_have_these_names() {
    let of = |aggregate, scope, id| StreamName::Changes(ChangeStream::new(aggregate, scope, id));
    for (stream, name) in [
        (StreamName::Events, "events"),
        (StreamName::Named("orders-2.eu_west".into()), "orders-2.eu_west"),
        (of("asset", "id", "A1"), "changes:asset:id:A1"),
        (of("asset", "tenant", ""), "changes:asset:tenant"),
        (of("asset", "site", "S1"), "changes:asset:site:S1"),
        (of("a:b", "id", "50% / \u{1}"), "changes:a%3Ab:id:50%25 / %01"),
        (of("größe", "id", "a%3Ab"), "changes:größe:id:a%253Ab"),
    ] {
        assert_eq!(stream.to_string(), name);
        assert_eq!(name.parse::<StreamName>().unwrap(), stream, "{name}");
    }
}

#[test]
fn c11_entries_and_marks_of_the_cache_have_these_names() {
    let asset = "asset/a".into();
    let rows = Keyspace::new("rows/x", Holds::RowsOf(asset)).version(3);
    let scope = Partition::Scope(tenant("a.b-c_0"), "site/1:%".into());
    for (partition, name, marks) in [
        (Partition::Global, "rows%2Fx/v3/g/k/1:%", vec!["k/rows%2Fx/g"]),
        (Partition::Tenant(tenant("acme")), "rows%2Fx/v3/t:acme/k/1:%", vec!["k/rows%2Fx/t:acme"]),
        (
            scope,
            "rows%2Fx/v3/s:a.b-c_0:site%2F1:%25/k/1:%",
            vec!["k/rows%2Fx/s:a.b-c_0:site%2F1:%25", "e/asset%2Fa/a:a.b-c_0"],
        ),
    ] {
        let entry = rows.entry(&partition, "k/1:%");
        assert_eq!(
            (entry.name.as_str(), entry.marks),
            (name, marks.into_iter().map(str::to_owned).collect())
        );
    }
}

/// All of these are different things, so none of the names comes twice.
#[track_caller]
fn all_differ(what: &str, names: impl IntoIterator<Item = String>) {
    let mut known = BTreeSet::new();
    for name in names {
        assert!(known.insert(name.clone()), "two {what} share the name {name}");
    }
    assert!(known.len() > ODD.len(), "{what} have names");
}

#[test]
fn c11_what_differs_in_any_part_never_shares_a_name() {
    let pairs = || ODD.iter().flat_map(|one| ODD.iter().map(move |other| (*one, *other)));
    let streams = pairs().flat_map(|(aggregate, id)| {
        let of = move |scope| StreamName::Changes(ChangeStream::new(aggregate, scope, id));
        [of("id"), of("site"), of("a:b")].map(|stream| stream.to_string())
    });
    all_differ("streams", streams.chain(["events".to_owned(), "orders".to_owned()]));

    let tenants = ["a", "b", "a.b", "a-b", "a_b", "ab"];
    let ids = tenants.iter().flat_map(|of| {
        let versions = |(aggregate, agg_id)| [1, 2, 11].map(|n| derived_id(of, aggregate, agg_id, n));
        pairs().flat_map(versions).collect::<Vec<_>>()
    });
    all_differ("events", ids);

    let scopes = tenants.iter().flat_map(|of| {
        let of = tenant(of);
        let scoped =
            ODD.iter().map(|scope| Partition::Scope(of.clone(), (*scope).into())).collect::<Vec<_>>();
        [Partition::Tenant(of.clone()), Partition::Scope(of, "".into())].into_iter().chain(scoped)
    });
    let partitions: Vec<Partition> = [Partition::Global].into_iter().chain(scopes).collect();
    let spaces: Vec<Keyspace> = ODD.iter().map(|name| Keyspace::new(name, Holds::Values)).collect();
    let versions = spaces.iter().flat_map(|space| [space.clone(), space.clone().version(11)]);
    let entries = versions.flat_map(|space| {
        let of = |partition: &Partition| ODD.map(|key| space.entry(partition, key).name);
        partitions.iter().flat_map(of).collect::<Vec<_>>()
    });
    all_differ("entries of the cache", entries);
    let marks = spaces.iter().flat_map(|space| {
        let of = |partition: &Partition| space.entry(partition, "k").marks;
        partitions.iter().flat_map(of).collect::<Vec<_>>()
    });
    all_differ("marks of keyspaces", marks);
    let entities = ODD.map(|entity| Keyspace::new("one", Holds::ResultsOf(entity.into())));
    let marks: BTreeSet<String> = entities
        .iter()
        .flat_map(|space| partitions.iter().flat_map(|partition| space.entry(partition, "k").marks))
        .collect();
    // Of the one keyspace one for each partition, of each entity another, and one of each tenant for all of its scopes.
    assert_eq!(marks.len(), partitions.len() * (1 + ODD.len()) + tenants.len() * ODD.len());
}

/// What parts of a name are told apart by can stand in none of those that are not escaped.
#[test]
fn c11_names_of_tenants_groups_and_consumers_hold_nothing_that_tells_parts_apart() {
    let all = (0..=u32::from(char::MAX)).filter_map(char::from_u32);
    for c in all.take(0x3000).chain([char::MAX]) {
        let lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        let letter = c.is_ascii_alphanumeric();
        for (name, inside) in [(format!("a{c}b"), true), (c.to_string(), false), (format!("a{c}"), true)] {
            let joined = inside && matches!(c, '.' | '_' | '-');
            assert_eq!(TenantId::new(&name).is_ok(), lower || joined, "{name:?}");
            assert_eq!(GroupName::new(&name).is_ok(), letter || joined, "{name:?}");
            assert_eq!(ConsumerName::new(&name).is_ok(), letter || joined, "{name:?}");
        }
    }
    assert!(TenantId::new("").is_err() && GroupName::new("").is_err());
    assert!(TenantId::new(&"a".repeat(TENANT_BYTES_MAX)).is_ok());
    assert!(TenantId::new(&"a".repeat(TENANT_BYTES_MAX + 1)).is_err());
}
