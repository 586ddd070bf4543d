//! What both levels and rows through them are asked, over every second level: in memory, on Redis, on Valkey.

use super::{levels, rows};

macro_rules! on_level {
    ($backend:ident, $setup:ident; $($from:ident::$case:ident),+ $(,)?) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let (level, _keep) = crate::cache::$setup().await;
                    Box::pin(super::$from::$case(level)).await;
                }
            )+
        }
    };
}

macro_rules! on_every_level {
    ($($from:ident::$case:ident),+ $(,)?) => {
        on_level!(memory, in_memory; $($from::$case),+);
        on_level!(redis, on_redis; $($from::$case),+);
        on_level!(valkey, on_valkey; $($from::$case),+);
    };
}

on_every_level! {
    levels::c76_a_warm_read_does_not_ask_the_second_level,
    levels::c76_a_change_of_an_entity_takes_its_results_from_both_levels,
    levels::c76_a_change_of_one_row_leaves_its_siblings,
    levels::c76_evicting_here_does_not_touch_the_second_level,
    levels::sn24_a_second_level_that_fails_is_left_alone_and_changes_no_answer,
    levels::sn24_an_invalidation_during_an_outage_is_made_up_for,
    rows::c77_a_read_after_a_commit_is_never_older_than_it,
    rows::c77_after_a_commit_only_the_changed_row_is_loaded,
    rows::c77_a_list_after_a_commit_has_what_it_wrote_and_lacks_what_it_deleted,
    rows::c77_whoever_sees_a_commit_in_the_store_sees_it_in_the_cache,
    rows::c77_every_type_comes_back_from_the_cache_as_it_was_stored,
    rows::c77_tables_of_a_store_that_does_not_tell_are_passed_through,
}

/// What takes a server of its own, and does something to it.
mod servers {
    use super::{levels, over_http};

    millrace_tests::on_each_server! {
        levels::sn24_an_emptied_killed_or_paused_server_changes_no_answer,
        over_http::c77_a_row_over_http_follows_every_publish_and_answers_304_while_nothing_changes,
    }
}

mod over_http {
    use std::time::{Duration, Instant};

    use millrace_tests::ports::Port;
    use millrace_tests::redis_server::{Engine, Keeps, RedisServer};

    use super::rows::a_row_over_http;

    pub(super) async fn c77_a_row_over_http_follows_every_publish_and_answers_304_while_nothing_changes(
        engine: Engine,
    ) {
        let server = RedisServer::start(engine, Keeps::Nothing, &[]);
        let host = Box::pin(a_row_over_http(server.url())).await.unwrap();
        let begin = Instant::now();
        while server.number(&["DBSIZE"]) == 0 {
            assert!(begin.elapsed().as_secs() < 60, "the level is never asked");
            // What is not there is in no first level.
            host.client.get("/v1/tables/counters/absent").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c77_a_row_over_http_is_the_same_where_the_second_level_is_not_there() {
        let port = Port::hold();
        let nowhere = format!("redis://127.0.0.1:{}", port.number());
        Box::pin(a_row_over_http(nowhere)).await.unwrap();
    }
}
