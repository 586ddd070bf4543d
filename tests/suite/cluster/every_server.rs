//! A fleet whose server loses something, on each kind of server.

use crate::cluster;

millrace_tests::on_each_server! {
    cluster::sn5_a_server_that_comes_back_empty_knows_nobody_and_gives_higher_epochs,
    cluster::sn5_nobody_outlives_a_server_that_comes_back_with_older_data,
    cluster::sn5_numbers_that_go_back_are_told_of,
    cluster::sn5_epochs_do_not_repeat_when_the_server_has_lost_the_newest,
}
