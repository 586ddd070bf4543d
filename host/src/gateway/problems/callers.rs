//! Who asks, and whether they may.

use super::{ProblemKind, caller, host};

pub(super) const CALLERS: &[ProblemKind] = &[
    caller(401, "token_missing", "this host wants a bearer token", "send `Authorization: Bearer <token>`"),
    caller(
        401,
        "token_invalid",
        "the bearer token is not known",
        "check the token with the operator of this host",
    ),
    caller(401, "token_expired", "the token has expired", "get a new token and send the request again"),
    caller(
        401,
        "token_not_yet_valid",
        "the token is not valid yet",
        "wait, set the clocks right, or raise auth.jwt.leeway_s",
    ),
    caller(
        401,
        "token_key_unknown",
        "the token is signed with an unknown key",
        "get a token of the issuer whose key set this host reads",
    ),
    caller(
        403,
        "token_differs",
        "the token is not a newer one of the same reader",
        "open another connection with it",
    ),
    caller(401, "token_revoked", "the token was revoked", "get a new token"),
    host(
        503,
        "jwks_unavailable",
        "the key set of the issuer is not there",
        "send it again in a moment; the operator finds the cause in the host's log",
    ),
    caller(
        400,
        "token_in_url",
        "a token in an address ends up in logs",
        "send it as a header, or turn it into a cookie or a ticket with POST /v1/session",
    ),
    caller(401, "session_unknown", "the session is over", "make another one with POST /v1/session"),
    caller(
        401,
        "ticket_invalid",
        "the ticket is not good",
        "make another one with POST /v1/session; each opens one stream, soon",
    ),
    caller(
        403,
        "ticket_refused",
        "a ticket opens streams only",
        "send the token as a header, or use a session",
    ),
    caller(
        429,
        "sessions_max",
        "as many sessions are open as there may be",
        "end some with DELETE /v1/session, or raise auth.sessions_max",
    ),
    caller(
        429,
        "tickets_max",
        "as many tickets wait as there may be",
        "use them or wait until they are over, or raise auth.tickets_max",
    ),
    caller(
        409,
        "revocations_max",
        "as many credentials are revoked as are remembered",
        "remove static tokens from the config file and keys from the key set, or raise auth.revocations_max",
    ),
    caller(
        404,
        "credential_unknown",
        "there is no such credential",
        "static tokens have the names of the config file, or token-1, token-2 and so on",
    ),
    caller(
        429,
        "rate_limited",
        "the tenant makes too many requests",
        "wait as Retry-After says, send more events in one request, or raise gateway.tenant_requests_per_s",
    ),
    caller(
        403,
        "right_missing",
        "the token lacks a right",
        "use a token that has the right, or have it added in the config file",
    ),
    caller(
        403,
        "table_forbidden",
        "the token does not read this table",
        "use a token that has the table in `tables`, with a condition that fits it",
    ),
    caller(
        403,
        "tables_only",
        "the token reads tables only",
        "use a token without `tables`: events and states show what its tables hide",
    ),
    caller(
        403,
        "origin_refused",
        "the request comes from a page of another origin",
        "open the page from this host, or add its origin to gateway.cors_origins",
    ),
    caller(
        403,
        "foreign_host",
        "without tokens this host answers to loopback names only",
        "use http://127.0.0.1 or http://localhost, or configure tokens",
    ),
    caller(
        403,
        "foreign_origin",
        "this host serves no foreign web pages here",
        "open the page from this host; without tokens, from a loopback address",
    ),
    caller(
        400,
        "tenant_in_body",
        "the tenant comes from the token, never from the request",
        "leave `tenant` out; use a token of that tenant",
    ),
];
