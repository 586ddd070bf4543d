//! What the tail evicts, over every log: in memory, embedded, Redis, Valkey; and hosts whose log it is.

use super::tail;

millrace_tests::on_every_log! { tail::sn14_a_scope_reaches_every_reader_of_a_log_and_evicts_its_own_copies_alone }

mod short_tail {
    use super::tail;

    millrace_tests::on_every_log! {
        millrace_tests::every_log::Bounds { tail_bytes_max: 1, ..Default::default() };
        tail::sn17_who_is_left_behind_by_the_tail_forgets_everything_and_follows_on
    }
}

mod sqlite_host {
    use super::tail;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sn14_a_scope_reaches_every_reader_and_evicts_its_own_copies_alone() {
        Box::pin(tail::a_scope_over_http()).await.unwrap();
    }
}

/// What there is about connections, and about hosts that share a log.
mod servers {
    use super::{hosts, tail};

    millrace_tests::on_each_server! {
        hosts::sn14_a_scope_survives_the_outbox_and_reaches_a_projection_and_the_copies_of_another_host,
        tail::sn17_eviction_by_the_tail_survives_lost_connections_and_an_emptied_server,
    }
}

mod hosts {
    use millrace_tests::redis_server::Engine;

    use super::tail::a_scope_through_the_outbox;

    pub(super) async fn sn14_a_scope_survives_the_outbox_and_reaches_a_projection_and_the_copies_of_another_host(
        engine: Engine,
    ) {
        Box::pin(a_scope_through_the_outbox(engine)).await.unwrap();
    }
}
