//! Problems with servers across the network (`error::RemoteFault` has their codes), and with what lies there.

use super::{ProblemKind, caller, host};

const UNREACHABLE: ProblemKind = host(
    503,
    "backend_unreachable",
    "a server that the host needs cannot be reached",
    "try again in a moment",
);

const TIMEOUT: ProblemKind = host(
    503,
    "backend_timeout",
    "a server that the host needs did not answer in time",
    "try again in a moment",
);

const DENIED: ProblemKind = host(
    503,
    "backend_denied",
    "a server that the host needs refuses it",
    "correct user and password in the server's address, and the user's rights there",
);

const READ_ONLY: ProblemKind = host(
    503,
    "backend_read_only",
    "a server that the host writes to is a replica",
    "try again in a moment; if it stays, give the host the address of the primary or of its sentinels",
);

const LOADING: ProblemKind = host(
    503,
    "backend_loading",
    "a server that the host needs still loads its data",
    "try again in a moment",
);

const FULL: ProblemKind = host(
    507,
    "backend_full",
    "a server that the host writes to has no memory left",
    "raise the server's maxmemory, or keep fewer events; nothing acknowledged is lost",
);

const WRONG_TYPE: ProblemKind = host(
    500,
    "backend_wrong_type",
    "a key that the host writes to holds something else",
    "give the log another name, or remove the key that the host's log names",
);

const UNSUPPORTED: ProblemKind =
    host(500, "backend_unsupported", "a server cannot serve this host", "see the host's log");

const NOT_DURABLE: ProblemKind = host(
    503,
    "backend_not_durable",
    "a server would not keep what it acknowledges",
    "set appendonly and appendfsync always there, add a replica, or ask for less with `ack`",
);

const OTHER_LOG: ProblemKind = host(
    503,
    "backend_other_log",
    "the log is another one than the host has worked with",
    "give the host the former address of its log, or another data folder",
);

const NOT_REPLICATED: ProblemKind = host(
    503,
    "backend_not_replicated",
    "too few replicas have taken what was written",
    "try again with the same ids; if it stays, see to the replicas",
);

const CHANNELS_ELSEWHERE: ProblemKind = caller(
    422,
    "channels_elsewhere",
    "plugins cannot append to channels here, since channels are in memory",
    "remove the grant `channels`, or run the plugin on a host with channels.store = \"durable\"",
);

pub(super) const BACKENDS: &[ProblemKind] = &[
    UNREACHABLE,
    TIMEOUT,
    DENIED,
    READ_ONLY,
    LOADING,
    FULL,
    WRONG_TYPE,
    UNSUPPORTED,
    NOT_DURABLE,
    OTHER_LOG,
    NOT_REPLICATED,
    CHANNELS_ELSEWHERE,
];
