//! What breaks on a server, or keeps it from being used, on each kind of server.

use super::{chaos, faults, groups, tails};

millrace_tests::on_each_server! {
    chaos::sn5_a_killed_server_that_syncs_keeps_what_was_acknowledged,
    chaos::sn5_connections_that_are_killed_lose_nothing_and_double_nothing,
    faults::c20_an_unreachable_server_is_said_and_waited_for,
    faults::c20_a_wrong_or_missing_password_is_not_worth_another_try,
    faults::c20_a_replica_is_refused,
    faults::c20_a_primary_that_becomes_a_replica_is_noticed,
    faults::c20_a_key_of_another_kind_is_named,
    faults::c20_a_full_server_refuses_whole_appends_until_there_is_room,
    faults::c20_a_server_that_removes_keys_to_make_room_is_refused,
    groups::sn5_connections_that_are_killed_lose_no_entry_and_no_acknowledgement,
    groups::sn5_an_emptied_server_has_no_groups_and_makes_them_again,
    groups::sn5_a_log_that_begins_another_life_takes_a_groups_place_and_it_says_so,
    tails::sn5_a_tail_whose_server_stays_away_for_too_long_ends_with_a_word_and_not_before,
    tails::sn5_sn7_tails_outlive_lost_connections_and_servers_and_end_with_a_word_where_one_was_emptied,
}
