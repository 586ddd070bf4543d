//! The table of routes, and what every answer passes through.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post, put};
use tokio::time::Instant;

use super::auth::sessions;
use super::problem::{Problem, ProblemCode};
use super::{
    Edge, admin_checkpoints, artifacts, auth, candidates, changes, channels, cors, fleet, groups, letters,
    live, metrics, pages, plugins, presence, publish, rebuilds, sources, state, streams, tables, unread,
};

type Shared = Arc<Edge>;

/// One path of the edge.
struct Route {
    /// As the router reads it.
    path: &'static str,
    /// As OpenAPI says it; none for what pages load.
    documented: Option<&'static str>,
    methods: &'static [&'static str],
    handlers: MethodRouter<Shared>,
}

fn page<H: Handler<T, Shared>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { path, documented: Some(path), methods: &["GET"], handlers: get(handler) }
}

fn part<H: Handler<T, Shared>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { path, documented: None, methods: &["GET"], handlers: get(handler) }
}

fn action<H: Handler<T, Shared>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { path, documented: Some(path), methods: &["POST"], handlers: post(handler) }
}

/// Every path. The router is built from this list and from nothing else.
fn table() -> Vec<Route> {
    vec![
        action("/v1/events", publish::publish),
        Route {
            path: "/v1/streams/{stream}",
            documented: Some("/v1/streams/{stream}"),
            methods: &["GET", "POST"],
            handlers: get(streams::read).post(streams::append),
        },
        page("/v1/changes/{aggregate}/{scope}", changes::read_scope),
        Route {
            path: "/v1/changes/{aggregate}/{scope}/{*id}",
            documented: Some("/v1/changes/{aggregate}/{scope}/{id}"),
            methods: &["GET"],
            handlers: get(changes::read),
        },
        page("/v1/streams/{stream}/groups", groups::list),
        Route {
            path: "/v1/streams/{stream}/groups/{group}",
            documented: Some("/v1/streams/{stream}/groups/{group}"),
            methods: &["GET", "PUT", "DELETE"],
            handlers: get(groups::show).put(groups::ensure).delete(groups::remove),
        },
        action("/v1/streams/{stream}/groups/{group}/read", groups::consume::read),
        action("/v1/streams/{stream}/groups/{group}/ack", groups::consume::ack),
        action("/v1/streams/{stream}/groups/{group}/nack", groups::consume::nack),
        action("/v1/streams/{stream}/groups/{group}/renew", groups::consume::renew),
        action("/v1/streams/{stream}/groups/{group}/seek", groups::seek),
        page("/v1/streams/{stream}/groups/{group}/consumers", groups::consume::consumers),
        page("/v1/streams/{stream}/groups/{group}/dead-letters", groups::letters::list),
        page("/v1/streams/{stream}/groups/{group}/dead-letters/{letter}", groups::letters::show),
        action("/v1/streams/{stream}/groups/{group}/dead-letters/{letter}/replay", groups::letters::replay),
        action("/v1/streams/{stream}/groups/{group}/dead-letters/{letter}/discard", groups::letters::discard),
        page("/v1/presence/{room}", presence::read),
        Route {
            path: "/v1/presence/{room}/members/{member}",
            documented: Some("/v1/presence/{room}/members/{member}"),
            methods: &["PUT", "DELETE"],
            handlers: put(presence::join).delete(presence::leave),
        },
        action("/v1/presence/{room}/messages", presence::say),
        page("/v1/processes", channels::processes::list),
        Route {
            path: "/v1/processes/{process}",
            documented: Some("/v1/processes/{process}"),
            methods: &["GET", "PUT", "DELETE"],
            handlers: get(channels::processes::show)
                .put(channels::processes::ensure)
                .delete(channels::processes::remove),
        },
        action("/v1/processes/{process}/observers", channels::processes::observe),
        action("/v1/processes/{process}/assign", channels::processes::assign),
        action("/v1/processes/{process}/unassign", channels::processes::unassign),
        action("/v1/processes/{process}/close", channels::processes::close),
        Route {
            path: "/v1/processes/{process}/channels/{channel}",
            documented: Some("/v1/processes/{process}/channels/{channel}"),
            methods: &["GET", "PUT"],
            handlers: get(channels::single::show).put(channels::single::ensure),
        },
        action("/v1/processes/{process}/channels/{channel}/assign", channels::single::assign),
        Route {
            path: "/v1/processes/{process}/channels/{channel}/entries",
            documented: Some("/v1/processes/{process}/channels/{channel}/entries"),
            methods: &["GET", "POST"],
            handlers: get(channels::read::read).post(channels::append::append),
        },
        page("/v1/channels/ws", channels::socket::open),
        Route {
            path: "/v1/session",
            documented: Some("/v1/session"),
            methods: &["POST", "DELETE"],
            handlers: delete(sessions::close).post(sessions::open),
        },
        action("/v1/auth/revoke", sessions::revoke),
        page("/v1/tables", tables::list),
        page("/v1/tables/{table}", tables::query),
        Route {
            path: "/v1/tables/{table}/{*key}",
            documented: Some("/v1/tables/{table}/{key}"),
            methods: &["GET"],
            handlers: get(tables::row),
        },
        Route {
            path: "/v1/live",
            documented: Some("/v1/live"),
            methods: &["GET", "POST"],
            handlers: get(live::http::get).post(live::http::post),
        },
        page("/v1/live/ws", live::ws::open),
        Route {
            path: "/v1/plugins",
            documented: Some("/v1/plugins"),
            methods: &["GET", "POST"],
            handlers: get(plugins::list).post(plugins::deploy),
        },
        Route {
            path: "/v1/plugins/{plugin}",
            documented: Some("/v1/plugins/{plugin}"),
            methods: &["GET", "DELETE"],
            handlers: delete(plugins::remove).get(plugins::show),
        },
        action("/v1/plugins/{plugin}/pause", plugins::pause),
        action("/v1/plugins/{plugin}/resume", plugins::resume),
        action("/v1/plugins/{plugin}/confirm", candidates::confirm),
        action("/v1/plugins/{plugin}/rollback", candidates::rollback),
        Route {
            path: "/v1/plugins/{plugin}/candidate",
            documented: Some("/v1/plugins/{plugin}/candidate"),
            methods: &["DELETE"],
            handlers: delete(candidates::abandon),
        },
        Route {
            path: "/v1/plugins/{plugin}/rebuild",
            documented: Some("/v1/plugins/{plugin}/rebuild"),
            methods: &["GET", "POST", "DELETE"],
            handlers: get(rebuilds::show).post(rebuilds::begin).delete(rebuilds::abandon),
        },
        page("/v1/plugins/{plugin}/history", plugins::history),
        page("/v1/plugins/{plugin}/state", state::show),
        page("/v1/plugins/{plugin}/dead-letters", letters::list),
        page("/v1/plugins/{plugin}/dead-letters/{letter}", letters::show),
        action("/v1/plugins/{plugin}/dead-letters/{letter}/replay", letters::replay),
        action("/v1/plugins/{plugin}/dead-letters/{letter}/discard", letters::discard),
        action("/v1/plugins/{plugin}/replay", letters::replay_apart),
        page("/v1/sources", sources::list),
        page("/v1/sources/{source}", sources::show),
        Route {
            path: "/v1/admin/checkpoints/{client}",
            documented: Some("/v1/admin/checkpoints/{client}"),
            methods: &["GET", "PUT"],
            handlers: get(admin_checkpoints::show).put(admin_checkpoints::replace),
        },
        page("/v1/artifacts", artifacts::list),
        action("/v1/artifacts/collect", artifacts::collect),
        Route {
            path: "/v1/artifacts/{digest}",
            documented: Some("/v1/artifacts/{digest}"),
            methods: &["GET", "PUT"],
            handlers: get(artifacts::get).put(artifacts::put),
        },
        Route {
            path: "/v1/artifacts/{digest}/pins/{name}",
            documented: Some("/v1/artifacts/{digest}/pins/{name}"),
            methods: &["PUT", "DELETE"],
            handlers: put(artifacts::pin).delete(artifacts::unpin),
        },
        Route {
            path: "/v1/artifacts/{digest}/signatures",
            documented: Some("/v1/artifacts/{digest}/signatures"),
            methods: &["GET", "PUT"],
            handlers: get(artifacts::signatures).put(artifacts::sign),
        },
        action("/v1/fleet/events", fleet::propose),
        page("/v1/fleet/desired", fleet::desired),
        page("/v1/fleet/status", fleet::status),
        page("/v1/fleet/hosts", fleet::hosts),
        Route {
            path: "/v1/fleet/hosts/{host}",
            documented: Some("/v1/fleet/hosts/{host}"),
            methods: &["DELETE"],
            handlers: delete(fleet::forget),
        },
        page("/v1/fleet/quarantine", fleet::quarantine),
        page("/v1/fleet/outbox", fleet::outbox),
        action("/v1/fleet/outbox/{event}/retry", fleet::retry),
        action("/v1/fleet/outbox/{event}/discard", fleet::discard),
        action("/v1/fleet/freeze", fleet::freeze),
        action("/v1/fleet/preview", fleet::preview),
        action("/v1/fleet/resync", fleet::resync),
        page("/v1/fleet/self", fleet::own),
        page("/healthz", pages::healthz),
        page("/readyz", pages::readyz),
        page("/metrics", pages::metrics),
        page("/openapi.json", pages::openapi_json),
        page("/", pages::index),
        page("/docs", pages::docs),
        part("/docs/docs.js", pages::docs_script),
        part("/page.css", pages::page_style),
        part("/demo", pages::demo_redirect),
        page("/demo/", pages::demo),
        part("/demo/app.js", pages::demo_script),
        part("/demo/rows.js", pages::demo_rows),
        part("/demo/board.css", pages::demo_style),
        part("/demo/answers", pages::answers_redirect),
        page("/demo/answers/", pages::answers),
        part("/demo/answers/answers.js", pages::answers_script),
        part("/demo/answers/answers.css", pages::answers_style),
        part("/client.js", pages::client),
        part("/client.d.ts", pages::client_types),
    ]
}

/// Every documented operation of the router: method and path, as OpenAPI says them.
pub fn operations() -> Vec<(&'static str, &'static str)> {
    table()
        .into_iter()
        .filter_map(|route| route.documented.map(|path| (route.methods, path)))
        .flat_map(|(methods, path)| methods.iter().map(move |method| (*method, path)))
        .collect()
}

pub(super) fn router(edge: &Shared) -> Router {
    let mut router = Router::new();
    for route in table() {
        let allow = allowed(route.methods);
        let refuse = move |method: Method| {
            let allow = allow.clone();
            async move {
                let method: String = method.as_str().chars().take(40).collect();
                Problem::new("method_not_allowed", format!("{method} is not possible here; {allow} are"))
                    .allow(&allow)
            }
        };
        router = router.route(route.path, route.handlers.fallback(refuse));
    }
    router
        .fallback(pages::unknown)
        .layer(from_fn_with_state(Arc::clone(edge), auth::guard))
        .layer(from_fn(harden))
        .layer(from_fn_with_state(Arc::clone(edge), cors::allow))
        .layer(from_fn(observe))
        .layer(from_fn(unread::pass_over))
        .with_state(Arc::clone(edge))
}

fn allowed(methods: &[&str]) -> String {
    let mut allow = methods.join(", ");
    if methods.contains(&"GET") {
        allow.push_str(", HEAD");
    }
    allow
}

/// Headers that keep a browser from doing more with an answer than it should.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
                  form-action 'self'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    let same_origin = HeaderValue::from_static("same-origin");
    headers.insert("cross-origin-resource-policy", same_origin);
    response
}

/// Counts requests by route and problems by code.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    };
    let response = next.run(request).await;
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    metrics::request(route, method, response.status().as_u16(), started.elapsed());
    if let Some(ProblemCode(code)) = response.extensions().get::<ProblemCode>() {
        metrics::problem(code, 1);
    }
    response
}
