//! Rooms when their server breaks, on each kind of server.

use super::redis as breaking;

millrace_tests::on_each_server! {
    breaking::sn5_after_lost_connections_followers_get_the_roster_with_what_they_missed,
    breaking::sn5_a_server_that_comes_back_empty_leaves_nobody_in_the_rooms,
    breaking::sn5_a_server_that_is_emptied_is_noticed_without_anybody_saying_anything,
}
