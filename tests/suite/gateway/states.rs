//! What a plugin keeps, over HTTP.

use millrace::checkpoints::CheckpointStore;
use millrace::limits::STATE_SHOWN_BYTES_MAX;
use millrace_tests::conformance::effects::{Effects, commit, saved, task};
use serde_json::json;

use super::rig::Rig;

/// A task of the plugin that this edge knows, with this state and keyed entries.
async fn keep(rig: &Rig, tenant: &str, content_type: &str, state: &[u8], entries: &[(&[u8], &[u8])]) {
    let task = task("keeper", tenant, 0);
    let (generation, _) = rig.store.claim(&task).await.expect("claimed");
    let mut effects = Effects::default();
    for (key, value) in entries {
        effects.state_put(key, value);
    }
    let mut one = commit(&task, generation, 5, &[], &mut effects);
    one.saved = saved(state);
    if let Some(saved) = &mut one.saved {
        let mut changed = (**saved).clone();
        changed.content_type = content_type.into();
        *saved = changed.into();
    }
    rig.store.commit(one).await.expect("committed");
}

#[tokio::test]
async fn a_state_is_json_where_it_can_be_and_base64_otherwise() {
    let rig = Rig::start().await;
    let long = format!("\"{}\"", "x".repeat(STATE_SHOWN_BYTES_MAX));
    let plain = (None, false);
    for (content_type, state, json, (base64, truncated)) in [
        ("application/json", "{\"n\":9223372036854775807123}", true, plain),
        ("application/vnd.x.v1+JSON; a=b", "[1]", true, plain),
        ("application/json", "{", false, (Some("ew=="), false)),
        ("application/x-bytes", "[1]", false, (Some("WzFd"), false)),
        ("application/json", long.as_str(), false, (None, true)),
    ] {
        keep(&rig, "default", content_type, state.as_bytes(), &[]).await;
        let answer = rig.get("/v1/plugins/keeper/state").await;
        assert_eq!(answer.text().contains(&format!("\"json\":{state}")), json, "{content_type}");
        let saved = answer.json()["saved"].clone();
        assert_eq!((&saved["content_type"], &saved["bytes"]), (&json!(content_type), &json!(state.len())));
        assert_eq!(saved["truncated"], truncated);
        match base64 {
            Some(base64) => assert_eq!(saved["base64"], base64),
            None => assert_eq!(saved["base64"].is_string(), truncated),
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn keys_and_values_are_text_where_they_are_and_base64_otherwise() {
    let rig = Rig::start().await;
    let entries: [(&[u8], &[u8]); 3] = [(b"a", b"\xff"), (b"b", "ö".as_bytes()), (b"\xfe", b"")];
    keep(&rig, "default", "x/y", b"", &entries).await;
    let view = rig.get("/v1/plugins/keeper/state?limit=3").await.json();
    let page = json!([
        {"key": "a", "value_base64": "/w=="}, {"key": "b", "value": "ö"}, {"key_base64": "/g==", "value": ""},
    ]);
    assert_eq!(view["keyed"], json!({"entries": 3, "bytes": 6, "page": page}));
    assert!(view["position"].as_str().is_some_and(|cursor| cursor.ends_with(".5")));
    let none = rig.get("/v1/plugins/keeper/state?limit=0").await.json();
    assert_eq!(none["keyed"]["page"], json!([]));
    rig.get("/v1/plugins/keeper/state?offset=1").await.is_problem(400, "parameter_unknown");
    rig.get("/v1/plugins/keeper/state?lane=x").await.is_problem(400, "parameter_invalid");
    rig.get("/v1/plugins/keeper/state?lane=7").await.is_problem(404, "task_unknown");
    rig.get("/v1/plugins/keeper/state?limit=1001").await.is_problem(400, "guest_scan_max");
    rig.get("/v1/plugins/nobody/state").await.is_problem(404, "plugin_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_tenant_sees_its_own_state_and_an_admin_any() {
    let rig = Rig::with_tokens().await;
    keep(&rig, "alpha", "application/json", b"\"of alpha\"", &[]).await;
    keep(&rig, "beta", "application/json", b"\"of beta\"", &[]).await;
    let get = async |token: &str, query: &str| {
        let bearer = format!("Bearer {token}");
        let path = format!("/v1/plugins/keeper/state{query}");
        rig.send("GET", &path, &[("Authorization", &bearer)], b"").await
    };
    assert_eq!(get("alpha-read", "").await.json()["saved"]["json"], "of alpha");
    assert_eq!(get("alpha-read", "?tenant=alpha").await.json()["saved"]["json"], "of alpha");
    get("alpha-read", "?tenant=beta").await.is_problem(403, "right_missing");
    get("alpha-publish", "").await.is_problem(403, "right_missing");
    get("gamma-read", "").await.is_problem(404, "task_unknown");
    assert_eq!(get("beta-all-rights", "").await.json()["saved"]["json"], "of beta");
    assert_eq!(get("beta-all-rights", "?tenant=alpha").await.json()["saved"]["json"], "of alpha");
    get("beta-all-rights", "?tenant=nobody").await.is_problem(404, "task_unknown");
    rig.stop().await;
}
