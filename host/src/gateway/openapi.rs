//! The OpenAPI description, generated from the handlers and the table of problems.

use std::sync::OnceLock;

use serde_json::{Value, json};
use utoipa::OpenApi;

use super::auth::sessions;
use super::problem::PROBLEMS;
use super::wire::ProblemBody;
use super::{
    admin_checkpoints, artifacts, candidates, changes, channels, fleet, groups, letters, live, pages,
    plugins, presence, publish, rebuilds, sources, state, streams, tables,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millrace",
        description = "Durable event streams, and processors that turn them into tables. \
            Errors are RFC 9457 problems with a stable `code`. Only what is no HTTP request yet has no problem: \
            a head that cannot be read is answered with a bare 400, one over `header_bytes_max` with a bare 431, \
            and the connection is closed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        publish::publish,
        streams::read,
        streams::append,
        changes::read_scope,
        changes::read,
        groups::list,
        groups::ensure,
        groups::show,
        groups::remove,
        groups::seek,
        groups::consume::read,
        groups::consume::ack,
        groups::consume::nack,
        groups::consume::renew,
        groups::consume::consumers,
        groups::letters::list,
        groups::letters::show,
        groups::letters::replay,
        groups::letters::discard,
        presence::read,
        presence::join,
        presence::leave,
        presence::say,
        channels::processes::list,
        channels::processes::ensure,
        channels::processes::show,
        channels::processes::remove,
        channels::processes::observe,
        channels::processes::assign,
        channels::processes::unassign,
        channels::processes::close,
        channels::single::ensure,
        channels::single::show,
        channels::single::assign,
        channels::append::append,
        channels::read::read,
        channels::socket::open,
        sessions::open,
        sessions::close,
        sessions::revoke,
        tables::list,
        tables::query,
        tables::row,
        live::http::get,
        live::http::post,
        live::ws::open,
        plugins::list,
        plugins::deploy,
        plugins::show,
        plugins::remove,
        plugins::pause,
        plugins::resume,
        candidates::confirm,
        candidates::rollback,
        candidates::abandon,
        rebuilds::begin,
        rebuilds::show,
        rebuilds::abandon,
        plugins::history,
        state::show,
        letters::list,
        letters::show,
        letters::replay,
        letters::discard,
        letters::replay_apart,
        sources::list,
        sources::show,
        admin_checkpoints::show,
        admin_checkpoints::replace,
        artifacts::list,
        artifacts::put,
        artifacts::get,
        artifacts::pin,
        artifacts::unpin,
        artifacts::signatures,
        artifacts::sign,
        artifacts::collect,
        fleet::propose,
        fleet::desired,
        fleet::status,
        fleet::hosts,
        fleet::forget,
        fleet::quarantine,
        fleet::outbox,
        fleet::retry,
        fleet::discard,
        fleet::freeze,
        fleet::preview,
        fleet::resync,
        fleet::own,
        pages::healthz,
        pages::readyz,
        pages::metrics,
        pages::openapi_json,
        pages::index,
        pages::docs,
        pages::demo,
        pages::answers,
    ),
    components(schemas(ProblemBody)),
    tags(
        (name = "events", description = "Publishing and reading events"),
        (name = "groups", description = "Handing a stream out to groups of consumers"),
        (name = "presence", description = "Rooms with members, and what is said to them"),
        (name = "channels", description = "Ordered logs between who submits work and who executes it"),
        (name = "tables", description = "Rows that plugins write"),
        (name = "live", description = "Watching rows as they change"),
        (name = "plugins", description = "Deploying and watching plugins"),
        (name = "artifacts", description = "What a fleet runs, by its content"),
        (name = "checkpoints", description = "What clients elsewhere keep here"),
        (name = "sources", description = "What brings foreign events in"),
        (name = "fleet", description = "What a fleet should run, and what it does run"),
        (name = "host", description = "How the host is"),
        (name = "pages", description = "For people"),
    )
)]
struct Description;

/// The description as JSON text. Made once.
pub(super) fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| document().to_string())
}

fn document() -> Value {
    let mut document =
        serde_json::to_value(Description::openapi()).expect("the description has text keys only");
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "A static token or a JSON Web Token. Gives the tenant and the rights publish, read, admin" },
        "session": { "type": "apiKey", "in": "cookie", "name": "millrace_session", "description": "The cookie of POST /v1/session" },
        "ticket": { "type": "apiKey", "in": "query", "name": "ticket", "description": "A ticket of POST /v1/session, for one stream" }
    });
    document["x-problems"] = PROBLEMS
        .iter()
        .map(|kind| {
            json!({
                "code": kind.code,
                "status": kind.status,
                "title": kind.title,
                "fix": kind.fix,
                "blame": kind.blame.as_str(),
            })
        })
        .collect();
    let problem = json!({
        "description": "A problem; `x-problems` lists the codes",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/ProblemBody" } } }
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, operations) in paths {
        for (_, operation) in operations.as_object_mut().into_iter().flatten() {
            operation["responses"]["default"] = problem.clone();
            if path.starts_with("/v1/") || path == "/metrics" {
                operation["security"] = json!([{ "token": [] }, { "session": [] }]);
            }
        }
    }
    document
}
