//! Which change streams an event is in, and which one a subscriber means.

use millrace::error::Classify;
use millrace::event::{Event, Position};
use millrace::limits::{CHANGE_AGGREGATES_MAX, CHANGE_SCOPES_MAX, NAME_BYTES_MAX};
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

fn names(payload: &str, before: &[Option<String>]) -> Vec<String> {
    let scopes = declared();
    let derived = scopes.of("asset").unwrap().derive(&event(payload, "asset.updated"), before);
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
    let known = [Some("S0".to_owned())];
    let all = ["changes:asset:id:A1", "changes:asset:tenant", "changes:asset:site:S1"];
    assert_eq!(names(r#"{"n":{"site_id":"no"},"site_id":"S1"}"#, &[]), all);
    assert_eq!(names(r#"{"site_id":"S1"}"#, &known)[2..], ["changes:asset:site:S1", "changes:asset:site:S0"]);
    assert_eq!(names(r#"{"site_id":"S0"}"#, &known)[2..], ["changes:asset:site:S0"], "each once");
    assert_eq!(names(r#"{"site\u005fid":"S\u0031"}"#, &[]), all, "as the JSON means, not as it is written");
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
    assert_eq!(scopes.of("asset").unwrap().derive(&event(&long, "asset.updated"), &[]).too_long, 1);
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
