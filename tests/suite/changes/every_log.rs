//! What a hub and what upcasts is asked, on every log: in memory, embedded, Redis, Valkey.

use super::{following, hub, slow, upcasting};

millrace_tests::on_every_log! {
    upcasting::c05_c06_every_way_to_read_shows_upcast_events_and_the_log_keeps_what_was_published,
    following::c16_an_event_that_is_published_after_the_subscribe_arrives_with_position_and_version,
    following::c17_every_follower_sees_every_event,
    following::c32_conflation_keeps_the_latest_version_whatever_the_order,
    following::c33_a_thousand_aggregates_of_one_window_come_in_one_delivery,
    following::c34_events_past_the_log_reach_raw_followers_too_and_nobody_else,
    following::c34_raw_followers_get_each_event_at_once_while_the_window_of_a_conflated_one_lasts,
    following::c35_a_closed_subscription_delivers_nothing_more,
    following::c36_the_end_of_its_owner_closes_a_subscription,
    following::c36_receivers_that_wait_end_with_the_tasks_of_their_hub,
    following::c37_a_denied_request_is_not_resolved,
    following::c40_a_raw_follower_gets_every_event_in_order,
    following::c41_raw_and_conflated_streams_live_beside_each_other,
    following::c42_modes_do_not_mix_either_way_until_the_stream_is_left,
    following::c44_one_reader_serves_two_and_survives_the_first_who_leaves,
    following::c45_a_new_subscriber_starts_the_reader_again,
    following::c46_a_burst_of_updates_converges_to_the_last_version,
    following::c48_a_follower_of_another_tenant_stays_silent,
    following::sn08_what_a_slow_follower_does_not_get_is_told,
    following::sn09_deliveries_are_ordered_by_number_from_nine_to_ten,
    following::sn10_who_joins_while_an_emptied_stream_has_something_pending_is_served,
    following::sn21_thousands_of_streams_have_one_reader,
    following::sn22_a_slow_follower_always_ends_with_the_last_state,
    slow::c43_a_raw_follower_that_overflows_is_ended_and_the_others_go_on,
    slow::c43_a_raw_follower_that_overflowed_goes_on_at_its_mark_without_a_hole,
    hub::sn26_a_live_follower_of_what_is_allowed_gets_nothing_of_what_is_denied,
}

mod capped {
    use crate::changes::caps;

    millrace_tests::on_every_log! {
        millrace_tests::every_log::Bounds {
            change_stream_events_max: Some(crate::changes::caps::CAP),
            ..Default::default()
        };
        caps::c13_change_streams_have_their_newest_entries_and_say_where_they_begin
    }
}

mod hosts {
    use crate::changes::caps;

    millrace_tests::on_each_server! {
        caps::c13_change_streams_of_a_host_on_a_server_have_their_newest_500,
    }
}
