//! Plugins over HTTP, health, descriptions and pages.

use std::collections::BTreeSet;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use super::rig::Rig;

#[tokio::test]
async fn the_description_has_every_route_and_every_problem() {
    let rig = Rig::start().await;
    let api = rig.get("/openapi.json").await.json();
    let described: BTreeSet<(String, String)> = api["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods.keys().map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
        })
        .collect();
    let routed: BTreeSet<(String, String)> = millrace::gateway::operations()
        .into_iter()
        .map(|(method, path)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(described, routed);
    for (method, path) in &described {
        let operation = &api["paths"][path][method.to_lowercase()];
        assert!(operation["responses"]["default"].is_object(), "{method} {path} has errors");
        assert!(operation["summary"].is_string(), "{method} {path} says what it does");
    }
    let problems = api["x-problems"].as_array().expect("problems");
    assert_eq!(problems.len(), millrace::gateway::PROBLEMS.len());
    // Every shape that is named is there.
    let text = api.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(api["components"]["schemas"][name].is_object(), "shape {name}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn every_problem_has_its_own_code() {
    let codes: BTreeSet<&str> = millrace::gateway::PROBLEMS.iter().map(|kind| kind.code).collect();
    assert_eq!(codes.len(), millrace::gateway::PROBLEMS.len());
    for kind in millrace::gateway::PROBLEMS {
        assert!((400..600).contains(&kind.status), "{}", kind.code);
        assert!(!kind.title.is_empty() && !kind.fix.is_empty(), "{}", kind.code);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let rig = Rig::start().await;
    rig.get("/v2/events").await.is_problem(404, "path_unknown");
    rig.get("/v1/tables/things/").await.is_problem(404, "path_unknown");
    let answer = rig.get("/v1/events").await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = rig.send("PUT", "/v1/plugins", &[], b"").await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET, POST, HEAD"));
    rig.stop().await;
}

#[tokio::test]
async fn pages_load_nothing_from_elsewhere() {
    let rig = Rig::start().await;
    for path in [
        "/",
        "/docs",
        "/demo/",
        "/demo/app.js",
        "/demo/rows.js",
        "/demo/board.css",
        "/demo/answers/",
        "/demo/answers/answers.js",
        "/demo/answers/answers.css",
        "/docs/docs.js",
        "/page.css",
        "/client.js",
        "/client.d.ts",
    ] {
        let answer = rig.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-security-policy").is_some_and(|p| p.contains("default-src 'self'")));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let text = answer.text();
        assert!(!text.contains("://"), "{path} names another address");
        assert!(
            !text.contains("<script>") && !text.contains(" style=") && !text.contains(" onclick="),
            "{path}"
        );
    }
    assert_eq!(rig.get("/demo").await.header("location"), Some("/demo/"));
    assert_eq!(rig.get("/demo/answers").await.header("location"), Some("/demo/answers/"));
    rig.stop().await;
}

#[tokio::test]
async fn health_and_metrics_answer() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/healthz").await.text(), "ok\n");
    assert_eq!(rig.get("/readyz").await.json(), json!({"ready": true, "reasons": []}));
    assert_eq!(rig.get("/metrics").await.text(), "millrace_test 1\n");
    assert_eq!(rig.send("HEAD", "/healthz", &[], b"").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn plugins_are_deployed_paused_and_removed() {
    let rig = Rig::start().await;
    rig.append("default", 1).await;
    let cursor = rig.get("/v1/streams/events").await.json()["next"].as_str().expect("a cursor").to_owned();
    let wasm = [("Content-Type", "application/wasm")];
    let path = format!("/v1/plugins?name=keeper&from={cursor}");
    assert_eq!(rig.send("POST", &path, &wasm, b"12345").await.json()["name"], "keeper");
    assert_eq!(rig.send("POST", "/v1/plugins?from=tail", &wasm, b"1").await.status, 200);
    assert_eq!(rig.send("POST", "/v1/plugins/keeper/pause", &[], b"").await.status, 200);
    assert_eq!(rig.send("POST", "/v1/plugins/keeper/resume", &[], b"").await.status, 200);
    assert_eq!(rig.send("DELETE", "/v1/plugins/keeper", &[], b"").await.status, 204);
    assert_eq!(rig.get("/v1/plugins/keeper/history").await.json()["deployments"][0]["version"], "1.0.0");
    let letters = rig.get("/v1/plugins/keeper/dead-letters?limit=5").await;
    assert!(letters.text().contains("9223372036854775807"));
    assert_eq!(letters.json()["dead_letters"][0]["message"], "bad {}");
    let asked = rig.plugins.asked.lock().expect("no panic").clone();
    assert_eq!(
        asked,
        [
            "deploy 5 bytes, Some(\"keeper\"), After(1), api:loopback",
            "deploy 1 bytes, None, Tail, api:loopback",
            "pause keeper",
            "resume keeper",
            "remove keeper",
            "dead letters of keeper, Some(TenantId(default)), 5",
        ]
    );
    rig.get("/v1/plugins/nobody").await.is_problem(404, "plugin_unknown");
    rig.send("POST", "/v1/plugins?from=OTHER.1", &wasm, b"1").await.is_problem(410, "cursor_foreign");
    rig.send("POST", "/v1/plugins", &[("Content-Type", "application/zip")], b"1")
        .await
        .is_problem(415, "content_type_unsupported");
    rig.stop().await;
}

#[tokio::test]
async fn a_component_that_is_too_large_is_refused() {
    let rig = Rig::with(|options| options.component_bytes_max = 10).await;
    let answer = rig.send("POST", "/v1/plugins", &[("Content-Type", "application/wasm")], &[0; 11]).await;
    let problem = answer.is_problem(413, "component_bytes_max");
    assert_eq!((&problem["asked"], &problem["max"]), (&json!(11), &json!(10)));
    rig.stop().await;
}

#[tokio::test]
async fn what_other_tenants_do_is_for_admins() {
    let rig = Rig::with_tokens().await;
    let tenants = |value: &Value| -> Vec<String> {
        let each = value.as_array().expect("a list").iter();
        each.map(|one| one["tenant"].as_str().expect("a tenant").to_owned()).collect()
    };
    for path in ["/v1/plugins", "/v1/plugins/keeper"] {
        let seen = async |token: &str| {
            let answer = rig.send("GET", path, &[("Authorization", token)], b"").await.json();
            answer.pointer("/plugins/0").cloned().unwrap_or(answer)
        };
        let own = seen("Bearer alpha-read").await;
        assert_eq!(
            (tenants(&own["tasks"]), tenants(&own["tenant_failures"])),
            (vec!["alpha".into()], vec!["alpha".into()])
        );
        assert_eq!((&own["state"], &own["message"]), (&json!("failed"), &json!("tenant alpha: it is full")));
        assert!(!own.to_string().contains("beta"), "{own}");
        let none = seen("Bearer gamma-read").await;
        assert_eq!(
            (&none["state"], &none["message"], &none["tasks"]),
            (&json!("running"), &json!(""), &json!([]))
        );
        for status in [&own, &none] {
            assert!(status.get("lag_events").is_none() && status.get("counters").is_none(), "{status}");
            assert_eq!(status["grants"][0]["reach"], json!([]), "where to is the operator's affair");
        }
        let whole = seen("Bearer alpha-all").await;
        assert_eq!(tenants(&whole["tasks"]), ["alpha", "beta"]);
        let letters = [&own, &none, &whole].map(|status| status["waiting"]["dead_letters"].as_u64());
        assert_eq!(letters, [Some(2), Some(0), Some(7)]);
        assert_eq!(whole["grants"][0]["reach"], json!(["api.example.com"]));
        assert_eq!((&whole["lag_events"], &whole["counters"]["events"]), (&json!(7), &json!(77)));
        assert!(
            whole["message"].as_str().is_some_and(|text| text.contains("tenant beta: its key")),
            "{whole}"
        );
    }
    rig.stop().await;
}

/// The value of a metric's line, zero where there is none.
fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a whole number"))
}

#[tokio::test]
async fn what_the_edge_does_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle).await;
    let line = |version: u32| {
        format!("{{\"aggregate\":\"a\",\"agg_id\":\"a\",\"version\":{version},\"type\":\"t\"}}\n")
    };
    let upload = [line(1), line(2), "nonsense\n".into(), line(3), line(2)].concat();
    assert_eq!(rig.post("application/x-ndjson", upload.as_bytes()).await.lines().len(), 5);
    assert_eq!(rig.post("application/json", line(3).as_bytes()).await.status, 200);
    rig.get("/v1/streams/events?after=OTHER.1").await.is_problem(410, "cursor_foreign");
    rig.get("/v2/one").await.is_problem(404, "path_unknown");
    rig.get("/v2/two").await.is_problem(404, "path_unknown");
    let mut follower = rig.connect().await;
    let head = "GET /v1/streams/events?after=oldest HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    follower.write(head.as_bytes()).await;
    let mut seen = String::new();
    follower.read_until(&mut seen, "\"version\":3,").await;
    let text = rig.get("/metrics").await.text();
    for (name, wanted) in [
        ("millrace_published_events_total", 3),
        ("millrace_published_repeats_total", 2),
        ("millrace_http_problems_total{code=\"json_malformed\"}", 1),
        ("millrace_http_problems_total{code=\"cursor_foreign\"}", 1),
        ("millrace_http_problems_total{code=\"path_unknown\"}", 2),
        ("millrace_http_requests_total{route=\"/v1/events\",method=\"POST\",status=\"2xx\"}", 2),
        ("millrace_http_requests_total{route=\"/v1/streams/{stream}\",method=\"GET\",status=\"2xx\"}", 1),
        ("millrace_http_requests_total{route=\"unmatched\",method=\"GET\",status=\"4xx\"}", 2),
        ("millrace_sse_clients", 1),
    ] {
        assert_eq!(metric(&text, name), wanted, "{name}\n{text}");
    }
    assert!(metric(&text, "millrace_http_connections") >= 2, "this one's and the follower's:\n{text}");
    assert!(text.contains("# TYPE millrace_http_request_seconds"), "{text}");
    drop(follower);
    let gone = async {
        while metric(&rig.get("/metrics").await.text(), "millrace_sse_clients") != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::rig::PATIENCE, gone).await.expect("the follower's end is noticed");
    rig.stop().await;
}
