//! What of its tenant's tables a token shows: other tenants' rows never, other tables and rows not where it says so.

use std::collections::BTreeMap;

use millrace::gateway::{Right, TokenOptions};
use serde_json::{Value, json};

use super::issuer::{Signer, claims_with, get, rig_of, set};
use super::rig::{Answer, Rig, tokens};

fn keys_of(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let rows = answer.json()["rows"].as_array().expect("rows").clone();
    rows.iter().map(|row| row["key"].as_str().expect("a key").to_owned()).collect()
}

async fn filled(signer: &Signer) -> Rig {
    let rig = rig_of(&set(&[signer.jwk("k")]), |_| {}).await;
    rig.rows("alpha", &[("a", 1, None), ("b", 2, Some("2013-01-01T00:00:00Z")), ("c", 3, None)]).await;
    rig.rows("beta", &[("a", 10, None), ("z", 20, None)]).await;
    rig
}

fn token(signer: &Signer, tables: &Value) -> String {
    signer.token("k", &claims_with(&json!({ "tables": tables })))
}

#[tokio::test]
async fn n16_another_tenants_token_sees_nothing_on_any_path_that_reads() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    rig.append("alpha", 2).await;
    let alpha = signer.token("k", &claims_with(&json!({})));
    let other = signer.token("k", &claims_with(&json!({ "tenant": "gamma" })));
    for path in [
        "/v1/tables/things",
        "/v1/tables/things?where=size:gt:0",
        "/v1/tables/things?where={\"or\":[{\"column\":\"key\",\"op\":\"eq\",\"value\":\"a\"},{\"and\":[]}]}",
        "/v1/streams/events",
        "/v1/streams/events?after=oldest&limit=10",
    ] {
        let path = path.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let (own, none) = (get(&rig, &path, &alpha).await, get(&rig, &path, &other).await);
        let count = |answer: &Answer| {
            let body = answer.json();
            ["rows", "events"].iter().filter_map(|name| body[name].as_array()).map(Vec::len).sum::<usize>()
        };
        assert!(own.status == 200 && count(&own) > 0, "{path}: {}", own.text());
        assert!(none.status == 200 && count(&none) == 0, "{path}: {}", none.text());
    }
    get(&rig, "/v1/tables/things/a", &other).await.is_problem(404, "row_unknown");
    assert_eq!(get(&rig, "/v1/tables/things/z", &alpha).await.status, 404);
    // A tenant in the request is not even read.
    get(&rig, "/v1/tables/things?tenant=alpha", &other).await.is_problem(400, "tenant_in_body");
    // A cursor of one tenant shows another nothing but its own.
    let page = get(&rig, "/v1/tables/things?limit=1", &alpha).await.json();
    let cursor = page["next"].as_str().expect("a cursor").to_owned();
    assert!(keys_of(&get(&rig, &format!("/v1/tables/things?cursor={cursor}"), &other).await).is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_token_reads_the_tables_that_it_names_and_no_others() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    for (tables, reads) in [
        (json!(null), true),
        (json!(["things"]), true),
        (json!({ "things": null }), true),
        (json!({ "things": {} }), true),
        (json!(["others"]), false),
        (json!([]), false),
        (json!({}), false),
    ] {
        let token = token(&signer, &tables);
        let list = get(&rig, "/v1/tables", &token).await.json();
        assert_eq!(list["tables"].as_array().expect("tables").len(), usize::from(reads), "{tables}");
        let (rows, row) =
            (get(&rig, "/v1/tables/things", &token).await, get(&rig, "/v1/tables/things/a", &token).await);
        if reads {
            assert_eq!(keys_of(&rows), ["a", "b", "c"]);
            assert_eq!(row.status, 200);
        } else {
            rows.is_problem(403, "table_forbidden");
            row.is_problem(403, "table_forbidden");
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn rows_outside_of_a_tokens_condition_are_not_there() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    for (condition, visible) in [
        (json!("size:gte:2"), "bc"),
        (json!({ "column": "size", "op": "gte", "value": 2 }), "bc"),
        (
            json!([{ "column": "size", "op": "gte", "value": 2 }, { "not": { "column": "key", "op": "eq", "value": "c" } }]),
            "b",
        ),
        (
            json!({ "or": [{ "column": "key", "op": "eq", "value": "a" }, { "column": "seen", "op": "isnotnull" }] }),
            "ab",
        ),
        // Columns that nobody may filter by.
        (json!("raw:eq:AP8="), "abc"),
        (json!("raw:eq:AAAA"), ""),
        (json!("extra:eq:{}"), ""),
        (json!("size:gt:100"), ""),
    ] {
        let token = token(&signer, &json!({ "things": { "where": condition } }));
        let shown = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert_eq!(keys_of(&get(&rig, "/v1/tables/things", &token).await), shown(visible), "{condition}");
        // What is asked for narrows it and never opens it.
        let all = "/v1/tables/things?where=%7B%22or%22:[%7B%22and%22:[]%7D]%7D&order=size:desc";
        let backwards: String = visible.chars().rev().collect();
        assert_eq!(keys_of(&get(&rig, all, &token).await), shown(&backwards), "{condition}");
        let mut paged = Vec::new();
        let mut path = "/v1/tables/things?limit=1".to_owned();
        loop {
            let page = get(&rig, &path, &token).await;
            paged.extend(keys_of(&page));
            let Some(next) = page.json()["next"].as_str().map(str::to_owned) else { break };
            path = format!("/v1/tables/things?limit=1&cursor={next}");
        }
        assert_eq!(paged, shown(visible), "{condition}");
        for key in ["a", "b", "c"] {
            let row = get(&rig, &format!("/v1/tables/things/{key}"), &token).await;
            if visible.contains(key) {
                assert_eq!(row.json()["row"]["key"], key, "{condition}");
            } else {
                row.is_problem(404, "row_unknown");
            }
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_condition_that_does_not_fit_its_table_shows_nothing() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    for condition in [
        json!("carrier:eq:UA"),
        json!("size:eq:many"),
        json!("size:about:2"),
        json!("size"),
        json!(""),
        json!("{"),
        json!({ "column": "size" }),
        json!({ "or": { "column": "size", "op": "eq", "value": 1 } }),
        json!([[[[[[[[[[[[{ "column": "size", "op": "eq", "value": 1 }]]]]]]]]]]]]),
    ] {
        let token = token(&signer, &json!({ "things": { "where": condition } }));
        for path in ["/v1/tables/things", "/v1/tables/things/a"] {
            let problem = get(&rig, path, &token).await.is_problem(403, "table_forbidden");
            assert!(
                problem["detail"].as_str().is_some_and(|text| text.contains("does not fit")),
                "{problem}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn static_tokens_are_limited_to_tables_and_rows_too() {
    let limited = |token: &str, tables: &[(&str, Option<&str>)]| TokenOptions {
        token: token.into(),
        tenant: "alpha".into(),
        rights: vec![Right::Read],
        name: None,
        tables: Some(
            tables
                .iter()
                .map(|(name, text)| ((*name).into(), text.map(Into::into)))
                .collect::<BTreeMap<_, _>>(),
        ),
    };
    let rig = Rig::with(|options| {
        options.auth = tokens();
        options.auth.tokens.push(limited(
            "alpha-some-rows",
            &[("things", Some("title:ilike:%25c".replace("%25", "%").as_str()))],
        ));
        options.auth.tokens.push(limited("alpha-no-things", &[("others", None)]));
    })
    .await;
    rig.rows("alpha", &[("a", 1, None), ("b", 2, None), ("c", 3, None)]).await;
    assert_eq!(keys_of(&get(&rig, "/v1/tables/things", "alpha-some-rows").await), ["c"]);
    get(&rig, "/v1/tables/things/a", "alpha-some-rows").await.is_problem(404, "row_unknown");
    get(&rig, "/v1/tables/things", "alpha-no-things").await.is_problem(403, "table_forbidden");
    assert_eq!(keys_of(&get(&rig, "/v1/tables/things", "alpha-read").await).len(), 3);
    // Two tokens of one tenant, one browser cache.
    let tag = |answer: &Answer| answer.header("etag").expect("an ETag").to_owned();
    let all = tag(&get(&rig, "/v1/tables/things", "alpha-read").await);
    assert_ne!(all, tag(&get(&rig, "/v1/tables/things", "alpha-some-rows").await));
    let cached = [("Authorization", "Bearer alpha-some-rows"), ("If-None-Match", all.as_str())];
    assert_eq!(rig.send("GET", "/v1/tables/things", &cached, b"").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn a_token_for_some_tables_does_not_see_the_events_behind_them() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    rig.append("alpha", 1).await;
    let token = token(&signer, &json!(["things"]));
    for path in [
        "/v1/streams/events",
        "/v1/plugins",
        "/v1/plugins/keeper",
        "/v1/plugins/keeper/state",
        "/v1/plugins/keeper/dead-letters",
        "/v1/plugins/keeper/dead-letters/9",
    ] {
        get(&rig, path, &token).await.is_problem(403, "tables_only");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_session_shows_no_more_than_its_token() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    let token = token(&signer, &json!({ "things": { "where": "key:eq:b" } }));
    let headers = [("Authorization", &*format!("Bearer {token}"))];
    let opened = rig.send("POST", "/v1/session", &headers, b"").await;
    let cookie = opened.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
    let by_cookie = async |path: &str| rig.send("GET", path, &[("Cookie", &cookie)], b"").await;
    assert_eq!(keys_of(&by_cookie("/v1/tables/things").await), ["b"]);
    by_cookie("/v1/tables/things/a").await.is_problem(404, "row_unknown");
    by_cookie("/v1/streams/events").await.is_problem(403, "tables_only");
    rig.stop().await;
}
