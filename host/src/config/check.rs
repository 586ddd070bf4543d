//! What no single value can say about itself: bounds, and values that must fit each other.

use super::{Config, JwtConfig, TokenConfig};
use crate::event::TenantId;
use crate::limits;
use crate::streams::upcast::Upcasters;

/// A key, and why its value is not usable.
type Wrong = (String, String);

impl Config {
    /// The first thing that is wrong.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_access()?;
        self.check_relations()?;
        self.check_zeros()?;
        self.check_telemetry()?;
        self.groups.check()?;
        self.presence.check()?;
        self.channels.check()?;
        self.redis.check(self.serve.log.is_some(), &self.store)?;
        self.cache.check()?;
        self.control.check(self.serve.log.is_some())?;
        self.source.check(self.serve.log.is_some())?;
        self.grpc.check(!self.auth.tokens.is_empty() || self.auth.jwt.is_some())?;
        if let Err(error) = Upcasters::default().declare(&self.upcasters) {
            return wrong("upcasters", error.to_string());
        }
        for (name, settings) in &self.plugins {
            if settings.lanes.is_some_and(|lanes| lanes == 0 || lanes > limits::LANES_MAX) {
                let max = limits::LANES_MAX;
                return wrong(
                    &format!("plugins.{name}.lanes"),
                    format!("a plugin has 1 to lanes_max = {max}"),
                );
            }
            if settings.state_bytes_max.is_some_and(|bytes| bytes > limits::GUEST_STATE_BYTES_CEILING) {
                let max = limits::GUEST_STATE_BYTES_CEILING;
                return wrong(&format!("plugins.{name}.state_bytes_max"), format!("it is {max} at most"));
            }
            if let Err((key, why)) = settings.check() {
                return wrong(&format!("plugins.{name}.{key}"), why);
            }
        }
        Ok(())
    }

    /// Nobody gets in from outside without a token.
    fn check_access(&self) -> Result<(), Wrong> {
        if self.auth.tokens.is_empty() && self.auth.jwt.is_none() && !self.serve.bind.ip().is_loopback() {
            return wrong(
                "serve.bind",
                format!(
                    "{} can be reached from outside, and there are neither `auth.tokens` nor `auth.jwt`",
                    self.serve.bind
                ),
            );
        }
        for (index, token) in self.auth.tokens.iter().enumerate() {
            if let Err(why) = check_token(token) {
                return wrong(&format!("auth.tokens[{index}]"), why);
            }
        }
        if let Some(jwt) = &self.auth.jwt {
            check_jwt(jwt)?;
        }
        for origin in &self.gateway.cors_origins {
            if let Err(why) = check_origin(origin) {
                return wrong("gateway.cors_origins", why);
            }
        }
        Ok(())
    }

    fn check_relations(&self) -> Result<(), Wrong> {
        let (store, run) = (&self.store, &self.processors);
        if store.wal_bytes_soft_max >= store.wal_bytes_hard_max {
            let hard = store.wal_bytes_hard_max;
            return wrong(
                "store.wal_bytes_soft_max",
                format!("it must be under wal_bytes_hard_max = {hard}"),
            );
        }
        if run.retry_wait_ms_min > run.retry_wait_ms_max {
            let max = run.retry_wait_ms_max;
            return wrong(
                "processors.retry_wait_ms_min",
                format!("it must not be over retry_wait_ms_max = {max}"),
            );
        }
        if run.breaker_wait_ms_min > run.breaker_wait_ms_max {
            let max = run.breaker_wait_ms_max;
            return wrong(
                "processors.breaker_wait_ms_min",
                format!("it must not be over breaker_wait_ms_max = {max}"),
            );
        }
        if run.parked_bytes_max < limits::EVENT_PAYLOAD_BYTES_MAX {
            return wrong(
                "processors.parked_bytes_max",
                format!("any event must fit; event_payload_bytes_max is {}", limits::EVENT_PAYLOAD_BYTES_MAX),
            );
        }
        if run.shadow_ms > run.shadow_ms_max {
            let max = run.shadow_ms_max;
            return wrong("processors.shadow_ms", format!("it must not be over shadow_ms_max = {max}"));
        }
        if run.commit_events_max < limits::BATCH_EVENTS_MAX {
            let min = limits::BATCH_EVENTS_MAX;
            return wrong(
                "processors.commit_events_max",
                format!("a commit holds a batch, {min} events at least"),
            );
        }
        if run.guest_state_bytes_max > limits::GUEST_STATE_BYTES_CEILING {
            let max = limits::GUEST_STATE_BYTES_CEILING;
            return wrong("processors.guest_state_bytes_max", format!("it is {max} at most"));
        }
        if run.guest_call_max() > limits::GUEST_CALL_CEILING {
            let max = limits::GUEST_CALL_CEILING.as_millis();
            let asked = run.guest_call_ms_max;
            return wrong(
                "processors.guest_call_ms_max",
                format!("{asked} is over guest_call_ms_ceiling = {max}"),
            );
        }
        if run.guest_memory_bytes_max > limits::GUEST_MEMORY_BYTES_CEILING {
            let (asked, max) = (run.guest_memory_bytes_max, limits::GUEST_MEMORY_BYTES_CEILING);
            return wrong(
                "processors.guest_memory_bytes_max",
                format!("{asked} is over guest_memory_bytes_ceiling = {max}"),
            );
        }
        let window = self.gateway.change_window();
        if !(limits::CHANGE_WINDOW_MIN..=limits::CHANGE_WINDOW_CEILING).contains(&window) {
            let max = limits::CHANGE_WINDOW_CEILING.as_millis();
            return wrong("gateway.change_window_ms", format!("it is 1 to {max}"));
        }
        if self.gateway.sse_heartbeat() > limits::SSE_HEARTBEAT_CEILING {
            let max = limits::SSE_HEARTBEAT_CEILING.as_millis();
            return wrong(
                "gateway.sse_heartbeat_ms",
                format!("clients take a longer silence for the end; it is {max} at most"),
            );
        }
        if self.gateway.connections_max > limits::CONNECTIONS_CEILING {
            let max = limits::CONNECTIONS_CEILING;
            return wrong("gateway.connections_max", format!("one host takes {max} at most"));
        }
        Ok(())
    }

    fn check_telemetry(&self) -> Result<(), Wrong> {
        let telemetry = &self.telemetry;
        if !(0.0..=1.0).contains(&telemetry.trace_sample_ratio.0) {
            let ratio = telemetry.trace_sample_ratio.0;
            return wrong("telemetry.trace_sample_ratio", format!("it is a share from 0 to 1, not {ratio}"));
        }
        if let Some(endpoint) = &telemetry.otlp_endpoint {
            let host = endpoint.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or(""));
            if host.is_none_or(str::is_empty) {
                let why = "it is the address of a collector such as http://127.0.0.1:4318; for https, put a collector or a proxy beside the host";
                return wrong("telemetry.otlp_endpoint", why.into());
            }
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        for (name, value) in &telemetry.otlp_headers {
            if name.is_empty()
                || !name.bytes().all(token)
                || value.bytes().any(|b| !(b' '..=b'~').contains(&b))
            {
                return wrong(
                    "telemetry.otlp_headers",
                    format!("`{name}` is not a header with a value of visible ASCII"),
                );
            }
        }
        Ok(())
    }

    fn check_zeros(&self) -> Result<(), Wrong> {
        let (edge, store, run) = (&self.gateway, &self.store, &self.processors);
        for (key, value) in [
            ("serve.drain_ms_max", self.serve.drain_ms_max),
            ("gateway.header_wait_ms_max", edge.header_wait_ms_max),
            ("gateway.body_idle_ms_max", edge.body_idle_ms_max),
            ("gateway.body_bytes_max", edge.body_bytes_max),
            ("gateway.upload_bytes_max", edge.upload_bytes_max),
            ("gateway.connections_max", edge.connections_max as u64),
            ("gateway.sse_heartbeat_ms", edge.sse_heartbeat_ms),
            ("gateway.write_wait_ms_max", edge.write_wait_ms_max),
            ("gateway.live_message_bytes_max", edge.live_message_bytes_max as u64),
            ("gateway.live_subscriptions_max", edge.live_subscriptions_max as u64),
            ("gateway.live_views_max", edge.live_views_max as u64),
            ("gateway.live_first_command_wait_ms_max", edge.live_first_command_wait_ms_max),
            ("gateway.tenant_requests_burst", edge.tenant_requests_burst.into()),
            ("auth.session_lifetime_s", self.auth.session_lifetime_s),
            ("auth.sessions_max", self.auth.sessions_max as u64),
            ("auth.ticket_lifetime_s", self.auth.ticket_lifetime_s),
            ("auth.tickets_max", self.auth.tickets_max as u64),
            ("auth.revocations_max", self.auth.revocations_max as u64),
            ("processors.guest_call_ms_max", run.guest_call_ms_max),
            ("processors.guest_fuel_max", run.guest_fuel_max),
            ("processors.guest_memory_bytes_max", run.guest_memory_bytes_max as u64),
            ("processors.instances_max", run.instances_max as u64),
            ("processors.parked_events_max", run.parked_events_max as u64),
            ("processors.breaker_failures_max", run.breaker_failures_max.into()),
            ("processors.commit_bytes_max", run.commit_bytes_max as u64),
            ("processors.compile_ms_max", run.compile_ms_max),
            ("processors.compile_memory_bytes_max", run.compile_memory_bytes_max),
            ("processors.precompiled_bytes_max", run.precompiled_bytes_max),
            ("processors.shadow_time_ratio_max", run.shadow_time_ratio_max.into()),
            ("store.tail_bytes_max", store.tail_bytes_max as u64),
        ] {
            if value == 0 {
                return wrong(key, "0 would stop everything; it counts from 1".into());
            }
        }
        Ok(())
    }
}

fn wrong(key: &str, why: String) -> Result<(), Wrong> {
    Err((key.to_owned(), why))
}

fn check_token(entry: &TokenConfig) -> Result<(), String> {
    if entry.digest().is_none() {
        return Err("it needs either `token` or `token_sha256` (64 hexadecimal digits)".into());
    }
    TenantId::new(&entry.tenant).map_err(|e| e.to_string())?;
    if entry.rights.is_empty() {
        return Err("`rights` is empty; there are publish, read, admin".into());
    }
    Ok(())
}

fn check_jwt(jwt: &JwtConfig) -> Result<(), Wrong> {
    let sources = [jwt.hs256_secret_file.is_some(), jwt.jwks_file.is_some(), jwt.jwks_url.is_some()];
    if sources.iter().filter(|given| **given).count() != 1 {
        let why = "the keys come from one of `hs256_secret_file`, `jwks_file` and `jwks_url`";
        return wrong("auth.jwt", why.into());
    }
    if jwt.algorithms.is_empty() {
        return wrong("auth.jwt.algorithms", "it is empty; there are HS256, RS256, ES256, EdDSA".into());
    }
    if jwt.leeway_s > limits::JWT_LEEWAY_CEILING.as_secs() {
        let max = limits::JWT_LEEWAY_CEILING.as_secs();
        return wrong("auth.jwt.leeway_s", format!("it is {max} at most"));
    }
    for (key, empty) in [
        ("auth.jwt.tenant_claim", jwt.tenant_claim.is_empty()),
        ("auth.jwt.rights_claim", jwt.rights_claim.is_empty()),
        ("auth.jwt.jwks_refresh_s", jwt.jwks_refresh_s == 0),
        ("auth.jwt.jwks_refresh_s_min", jwt.jwks_refresh_s_min == 0),
        ("auth.jwt.jwks_wait_ms_max", jwt.jwks_wait_ms_max == 0),
    ] {
        if empty {
            return wrong(key, "it cannot be empty or 0".into());
        }
    }
    Ok(())
}

/// An origin is compared as it is written, so it must be written as browsers do.
fn check_origin(origin: &str) -> Result<(), String> {
    if origin == "*" {
        return Err("pages send credentials, and so origins are named one by one; `*` is none".into());
    }
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
    if authority.is_none_or(|authority| authority.is_empty() || !authority.bytes().all(plain)) {
        return Err(format!(
            "`{origin}` is not an origin such as https://app.example.com, in lower case, without a path"
        ));
    }
    Ok(())
}
