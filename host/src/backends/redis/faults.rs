//! What Redis answers, in our words.

use std::fmt::Display;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::{BackendError, RemoteFault};

/// An error of a server, and what was being done.
pub(super) fn backend(doing: impl Display, error: &RedisError) -> BackendError {
    let detail = format!("redis, {doing}: {error}");
    match fault(error) {
        Some(fault) => BackendError::Remote { fault, detail },
        None => BackendError::Failed { detail },
    }
}

pub(super) fn remote(fault: RemoteFault, detail: impl Display) -> BackendError {
    BackendError::Remote { fault, detail: format!("redis, {detail}") }
}

/// None for what has no name of its own.
fn fault(error: &RedisError) -> Option<RemoteFault> {
    use RemoteFault::{
        Denied, Full, Loading, NotReplicated, ReadOnly, Timeout, Unreachable, Unsupported, WrongType,
    };
    match error.kind() {
        ErrorKind::AuthenticationFailed => Some(Denied),
        ErrorKind::Io | ErrorKind::MasterNameNotFoundBySentinel => {
            Some(if error.is_timeout() { Timeout } else { Unreachable })
        }
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::NoPerm => Some(Denied),
            ServerErrorKind::ReadOnly => Some(ReadOnly),
            ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::TryAgain => {
                Some(Loading)
            }
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::ClusterDown => Some(Unsupported),
            _ => None,
        },
        // An answer that is not what was asked for.
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Some(Unsupported),
        ErrorKind::Extension => match code(error).as_deref() {
            Some("NOAUTH" | "WRONGPASS") => Some(Denied),
            Some("OOM") => Some(Full),
            Some("WRONGTYPE" | "FOREIGN") => Some(WrongType),
            Some("OTHERLOG") => Some(RemoteFault::OtherLog),
            Some("NOREPLICAS") => Some(NotReplicated),
            Some("UNBLOCKED") => Some(Unreachable),
            Some("MISCONF" | "EVICTS") => Some(RemoteFault::NotDurable),
            _ => None,
        },
        _ => None,
    }
}

/// What the server calls it; of commands that were sent together, the first that failed.
fn code(error: &RedisError) -> Option<String> {
    let failed = error.clone().into_server_errors()?;
    failed.first().map(|(_, error)| error.code().to_owned())
}

/// Whether the connection is of no more use, or the server behind it not the one that is wanted.
pub(super) fn ends_session(error: &BackendError) -> bool {
    use RemoteFault::{Denied, Loading, ReadOnly, Timeout, Unreachable};
    matches!(error, BackendError::Remote { fault: Unreachable | Timeout | ReadOnly | Loading | Denied, .. })
}
