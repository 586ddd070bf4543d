//! Reading from a shared group while the log behind it cannot be read: nothing is lost, and nothing counts as tried that
//! nobody has got.

use std::sync::Arc;

use millrace::backends::redis::{RedisGroups, RedisLink, RedisLog, RedisOptions};
use millrace::clock::{Clock as _, ManualClock};
use millrace::error::Classify as _;
use millrace::event::Micros;
use millrace::streams::groups::{
    Delivery, GroupChange, GroupId, GroupLimits, GroupStart, Groups, Settle, Settled,
};
use millrace::streams::{AggregateScopes, EventLog as _, Scope};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{THREE_TRIES, append, group, labels, read_of};
use millrace_tests::impostor::Impostor;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::until;

use super::{as_seam, open, options};

const ODD: &str = "-WHATEVER some words\r\n";
/// One delivery that counts makes a dead letter.
const ONCE: GroupChange = GroupChange { attempts_max: Some(1), ..THREE_TRIES };

/// Streams of acme's, and what the command has in it that reads each of them.
const STREAMS: [(&str, &str); 2] = [
    ("events", "{millrace}:tenant:acme"),
    ("changes:thing:tenant", "{millrace}:stream:acme:changes:thing:tenant"),
];

/// Two hosts of a group: the first has taken its entries in, and the second reads its log through somebody who meddles.
struct Hosts {
    server: RedisServer,
    clock: Arc<ManualClock>,
    first: RedisLog,
    impostor: Impostor,
    id: GroupId,
}

impl Hosts {
    async fn of(stream: &str) -> Self {
        let server = RedisServer::durable(Engine::Redis);
        let first = open(options(&server)).await;
        let scopes = AggregateScopes { aggregate: "thing".to_owned(), scopes: vec![Scope::Tenant] };
        first.declare_scopes("things", &[scopes]).await.unwrap();
        let clock = Arc::new(ManualClock::default());
        clock.set(Micros(1_000_000));
        let impostor = Impostor::before(server.port()).await;
        let id = GroupId { stream: stream.into(), ..group("acme", "billing") };
        Self { server, clock, first, impostor, id }
    }

    async fn publish(&self, labels: &[&str]) {
        append(&as_seam(&self.first), &tenant("acme"), labels).await;
    }

    fn groups(&self, log: &RedisLog) -> RedisGroups {
        let link = RedisLink::new(self.server.url().parse().unwrap(), None, "millrace");
        let limits = GroupLimits::default();
        RedisGroups::with_clock(link, log, as_seam(log), limits, self.clock.clone())
    }

    /// A host that starts now: its tail has nothing of what there is.
    async fn second(&self) -> (RedisLog, RedisGroups) {
        let log = open(RedisOptions::new(self.impostor.url().parse().unwrap())).await;
        let groups = self.groups(&log);
        (log, groups)
    }

    async fn acknowledge(&self, groups: &RedisGroups, taken: &[Delivery]) {
        let said = taken.iter().map(|delivery| Settle::Ack(delivery.receipt)).collect();
        let settled = groups.settle(&self.id, said).await.unwrap();
        assert!(settled.iter().all(|settled| *settled == Settled::Acknowledged), "{settled:?}");
    }
}

fn first_tries(taken: &[Delivery]) -> Vec<String> {
    assert!(taken.iter().all(|delivery| delivery.attempt == 1), "{taken:?}");
    labels(taken)
}

#[tokio::test]
async fn entries_whose_events_cannot_be_read_go_back_and_were_not_tried() {
    for (stream, reading) in STREAMS {
        let hosts = Hosts::of(stream).await;
        let one = hosts.groups(&hosts.first);
        let id = &hosts.id;
        one.ensure(id, GroupStart::Oldest, ONCE).await.unwrap();
        hosts.publish(&["a1", "b1", "c1", "b2"]).await;
        assert_eq!(labels(&one.read(id, read_of("first", 1)).await.unwrap().entries), ["a1"]);

        let (_log, other) = hosts.second().await;
        hosts.impostor.answer(reading, ODD);
        for _ in 0..3 {
            let error = other.read(id, read_of("second", 10)).await.unwrap_err();
            assert_eq!(error.code(), "storage_failed", "{stream}: {error}");
            let status = one.status(id).await.unwrap();
            assert_eq!((status.in_flight, status.waiting, status.lag_events), (1, 3, 4), "{stream}");
        }
        // Its leases would have ended by now, and have been the only try.
        hosts.clock.set(Micros(hosts.clock.now().0 + 11_000_000));
        assert_eq!(one.status(id).await.unwrap().dead_letters, 1, "{stream}: what the first has had");
        hosts.impostor.be_honest();
        let taken = other.read(id, read_of("second", 10)).await.unwrap().entries;
        assert_eq!(first_tries(&taken), ["b1", "c1"], "{stream}");
        hosts.acknowledge(&other, &taken).await;
        let taken = other.read(id, read_of("second", 10)).await.unwrap().entries;
        assert_eq!(first_tries(&taken), ["b2"], "{stream}");
        hosts.acknowledge(&other, &taken).await;
        let status = one.status(id).await.unwrap();
        assert_eq!((status.dead_letters, status.lag_events, status.lost_events), (1, 0, 0), "{stream}");
    }
}

#[tokio::test]
async fn what_is_at_hand_is_answered_and_the_rest_goes_back_to_whoever_can_read_it() {
    for (stream, reading) in STREAMS {
        let hosts = Hosts::of(stream).await;
        let one = hosts.groups(&hosts.first);
        let id = &hosts.id;
        one.ensure(id, GroupStart::Oldest, ONCE).await.unwrap();
        hosts.publish(&["a1", "b1", "c1"]).await;
        assert_eq!(labels(&one.read(id, read_of("first", 1)).await.unwrap().entries), ["a1"]);

        let (log, other) = hosts.second().await;
        // The second host has seen this one come, and needs no read for it.
        hosts.publish(&["d1"]).await;
        until("it is in the tail", || log.bounds().newest == hosts.first.bounds().newest).await;
        hosts.impostor.answer(reading, ODD);
        let taken = other.read(id, read_of("second", 10)).await.unwrap().entries;
        assert_eq!(first_tries(&taken), ["d1"], "{stream}");
        let status = one.status(id).await.unwrap();
        assert_eq!((status.in_flight, status.waiting), (2, 2), "{stream}");
        hosts.acknowledge(&other, &taken).await;
        // The first host can read, and gets them at once.
        let taken = one.read(id, read_of("first", 10)).await.unwrap().entries;
        assert_eq!(first_tries(&taken), ["b1", "c1"], "{stream}");
        hosts.acknowledge(&one, &taken).await;
        assert_eq!(one.status(id).await.unwrap().lag_events, 1, "{stream}: a1 is leased");
    }
}
