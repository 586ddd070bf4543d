//! Which change streams an event is in, and which one a subscriber means.

use millrace::error::Classify;
use millrace::event::{Event, Position};
use millrace::limits::{CHANGE_AGGREGATES_MAX, CHANGE_SCOPES_MAX, NAME_BYTES_MAX};
use millrace::streams::scopes::{FieldValues, StoredValues};
use millrace::streams::{AggregateScopes, ChangeScopes, ChangeStream, Scope, ScopeError, StreamName};
use millrace_tests::conformance::change_streams::asset_scopes;

fn declared() -> ChangeScopes {
    let mut scopes = ChangeScopes::default();
    scopes.declare("assets", &asset_scopes(), Position::START).unwrap();
    scopes
}

fn event<'a>(payload: &'a str, event_type: &'a str) -> Event<'a> {
    Event { aggregate: "asset", agg_id: "A1", event_type, payload: payload.as_bytes(), ..Event::default() }
}

/// What is known before of the fields `site` and `kind`.
fn known(values: &[(&str, &str)]) -> FieldValues {
    let key = |name: &str| if name == "site" { "site:site_id".to_owned() } else { format!("{name}:{name}") };
    values.iter().map(|(name, value)| (key(name), (*value).to_owned())).collect()
}

fn names(payload: &str, before: &[(&str, &str)]) -> Vec<String> {
    let scopes = declared();
    let derived = scopes.of("asset").unwrap().derive(&event(payload, "asset.updated"), &known(before));
    derived.streams.iter().map(ToString::to_string).collect()
}

#[test]
fn c09_change_streams_have_three_shapes() {
    let shapes = [("id", "A1", "changes:asset:id:A1"), ("tenant", "", "changes:asset:tenant")];
    for (scope, id, name) in shapes.into_iter().chain([("site", "S1", "changes:asset:site:S1")]) {
        assert_eq!(ChangeStream::new("asset", scope, id).to_string(), name);
    }
}

#[test]
fn c10_the_main_stream_is_events() {
    assert_eq!(StreamName::Events.to_string(), "events");
    assert_eq!("events".parse(), Ok(StreamName::Events));
}

#[test]
fn c28_an_id_a_field_and_the_tenant_resolve_and_the_tenant_ignores_an_id() {
    let scopes = declared();
    assert_eq!(scopes.resolve("asset", "id", "A1"), Ok(ChangeStream::new("asset", "id", "A1")));
    assert_eq!(scopes.resolve("asset", "site", "S1"), Ok(ChangeStream::new("asset", "site", "S1")));
    for id in ["", "rival"] {
        assert_eq!(scopes.resolve("asset", "tenant", id), Ok(ChangeStream::new("asset", "tenant", "")));
    }
}

/// That there is a tenant needs no check here: nothing is asked without a credential that names one.
#[test]
fn c29_what_is_unknown_or_missing_resolves_to_nothing() {
    let scopes = declared();
    let code = |aggregate, scope, id| scopes.resolve(aggregate, scope, id).unwrap_err().code();
    assert_eq!(code("pump", "id", "P1"), "aggregate_unknown");
    assert_eq!(code("asset", "site_id", "S1"), "scope_unknown");
    assert_eq!(code("asset", "id", ""), "scope_id_missing");
    assert_eq!(code("asset", "site", ""), "scope_id_missing");
}

#[test]
fn c30_streams_are_derived_in_the_order_of_declaration() {
    let known = [("site", "S0")];
    let all = ["changes:asset:id:A1", "changes:asset:tenant", "changes:asset:site:S1"];
    assert_eq!(names(r#"{"n":{"site_id":"no"},"site_id":"S1"}"#, &[]), all);
    assert_eq!(names(r#"{"site_id":"S1"}"#, &known)[2..], ["changes:asset:site:S1", "changes:asset:site:S0"]);
    assert_eq!(names(r#"{"site_id":"S0"}"#, &known)[2..], ["changes:asset:site:S0"], "each once");
    assert_eq!(names(r#"{"site\u005fid":"S\u0031"}"#, &[]), all, "as the JSON means, not as it is written");
}

#[test]
fn c30_another_order_with_two_fields_is_kept_and_each_new_value_stands_before_its_old_one() {
    let mut other = asset_scopes();
    let kind = Scope::Field { name: "kind".to_owned(), member: "kind".to_owned() };
    other[0].scopes.insert(0, kind);
    other[0].scopes.reverse();
    let derive = |payload: &str, before: &[(&str, &str)]| {
        let derived = other[0].derive(&event(payload, "asset.updated"), &known(before));
        (derived.streams.iter().map(ToString::to_string).collect::<Vec<_>>(), derived.values)
    };
    let payload = r#"{"kind":"pump","site_id":"S1"}"#;
    let (names, values) = derive(payload, &[]);
    let fresh =
        ["changes:asset:site:S1", "changes:asset:tenant", "changes:asset:id:A1", "changes:asset:kind:pump"];
    assert_eq!(names, fresh);
    assert_eq!(values, known(&[("site", "S1"), ("kind", "pump")]));
    let (names, _) = derive(payload, &[("site", "S0"), ("kind", "valve")]);
    let moved = [
        "changes:asset:site:S1",
        "changes:asset:site:S0",
        "changes:asset:tenant",
        "changes:asset:id:A1",
        "changes:asset:kind:pump",
        "changes:asset:kind:valve",
    ];
    assert_eq!(names, moved);
    let (names, values) = derive(r#"{"kind":null}"#, &[("site", "S0"), ("kind", "valve")]);
    assert_eq!((&names[0][..], &names[3][..]), ("changes:asset:site:S0", "changes:asset:kind:valve"));
    assert_eq!(values, known(&[("site", "S0")]));
}

/// Stores that were written before hold values as lists, in the order that was declared at that time.
#[test]
fn sn11_values_that_were_kept_as_a_list_keep_their_meaning_when_the_order_changes() {
    let json = serde_json::to_value(declared()).unwrap();
    let mut old = json.clone();
    old["aggregates"]["asset"].as_object_mut().unwrap().remove("listed");
    let mut scopes: ChangeScopes = serde_json::from_value(old).unwrap();
    let listed = || serde_json::from_str::<StoredValues>(r#"["S1"]"#).unwrap();
    let expected = known(&[("site", "S1")]);
    assert_eq!(scopes.known_values("asset", listed()), expected);
    let mut more = asset_scopes();
    more[0].scopes.insert(0, Scope::Field { name: "kind".to_owned(), member: "kind".to_owned() });
    for _ in 0..2 {
        let useless = scopes.declare("assets", &more, Position(7)).unwrap();
        assert_eq!((useless.len(), scopes.known_values("asset", listed())), (0, expected.clone()));
    }
    let keyed = serde_json::from_str(r#"{"site:site_id":"S1"}"#).unwrap();
    assert_eq!(scopes.known_values("asset", keyed), expected);
    // Without fields nothing keeps values up to date: they go, and are not taken up again.
    let id = AggregateScopes { aggregate: "asset".to_owned(), scopes: vec![Scope::Id] };
    assert_eq!(scopes.declare("assets", &[id], Position(8)).unwrap(), ["asset"]);
    scopes.declare("assets", &asset_scopes(), Position(9)).unwrap();
    assert_eq!(scopes.known_values("asset", listed()), FieldValues::new());
}

#[test]
fn c31_a_field_without_text_is_skipped() {
    let without = ["null", "0", "1e999", "true", "\"\"", "[\"S1\"]", "{\"site_id\":\"S1\"}"];
    for value in without {
        assert_eq!(names(&format!("{{\"site_id\":{value}}}"), &[]).len(), 2, "{value}");
    }
    for payload in ["{}", "null", "[{\"site_id\":\"S1\"}]", "\"site_id\"", "7"] {
        assert_eq!(names(payload, &[]).len(), 2, "{payload}");
    }
    let long = format!("{{\"site_id\":\"{}\"}}", "x".repeat(NAME_BYTES_MAX + 1));
    assert_eq!(names(&long, &[]).len(), 2, "a value that no id can have");
    let scopes = declared();
    let derived = scopes.of("asset").unwrap().derive(&event(&long, "asset.updated"), &FieldValues::new());
    assert_eq!(derived.too_long, 1);
}

#[test]
fn a_declaration_is_checked() {
    let field = |name: &str, member: &str| Scope::Field { name: name.to_owned(), member: member.to_owned() };
    let of =
        |aggregate: &str, scopes: Vec<Scope>| AggregateScopes { aggregate: aggregate.to_owned(), scopes };
    let invalid = [
        vec![of("", vec![Scope::Id])],
        vec![of("a\n", vec![Scope::Id])],
        vec![of("a", vec![])],
        vec![of("a", vec![Scope::Id, Scope::Id])],
        vec![of("a", vec![field("id", "x")])],
        vec![of("a", vec![field("tenant", "x")])],
        vec![of("a", vec![field("Site", "x")])],
        vec![of("a", vec![field("", "x")])],
        vec![of("a", vec![field("site", "")])],
        vec![of("a", vec![Scope::Id]), of("a", vec![Scope::Tenant])],
    ];
    let mut scopes = ChangeScopes::default();
    for declarations in invalid {
        let refused = scopes.declare("p", &declarations, Position::START).unwrap_err();
        assert_eq!(refused.code(), "change_scopes_invalid", "{declarations:?}");
    }
    let many = (0..=CHANGE_SCOPES_MAX).map(|n| field(&format!("f{n}"), "x")).collect();
    let refused = scopes.declare("p", &[of("a", many)], Position::START).unwrap_err();
    assert_eq!(refused.code(), "change_scopes_max");
    let many: Vec<_> = (0..=CHANGE_AGGREGATES_MAX).map(|n| of(&format!("a{n}"), vec![Scope::Id])).collect();
    let refused = scopes.declare("p", &many, Position::START).unwrap_err();
    assert!(matches!(refused, ScopeError::TooMany { limit: "change_aggregates_max", .. }), "{refused}");
    assert!(scopes.is_empty(), "nothing of a refused declaration stays");
}
