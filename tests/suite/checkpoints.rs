//! Claims about checkpoints.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace_tests::conformance::Seams;

/// The seams of a fresh store, and its directory.
async fn sqlite_seams() -> (Seams, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(SqliteOptions::new(dir.path())).unwrap());
    let seams =
        Seams { log: store.clone(), checkpoints: store.clone(), tables: store.clone(), deployments: store };
    (seams, dir)
}

millrace_tests::checkpoints_conformance!(sqlite, sqlite_seams);

mod appending {
    use std::sync::Arc;

    use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
    use millrace_tests::conformance::Seams;
    use millrace_tests::conformance::appends::ChannelSeams;

    async fn sqlite_seams() -> (ChannelSeams, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(SqliteOptions::new(dir.path())).unwrap());
        let seams = Seams {
            log: store.clone(),
            checkpoints: store.clone(),
            tables: store.clone(),
            deployments: store.clone(),
        };
        (ChannelSeams { seams, channels: store }, dir)
    }

    millrace_tests::conformance!(
        sqlite, appends, sqlite_seams;
        appends_commit_with_the_position_and_in_order,
        a_refused_append_leaves_nothing_of_its_commit,
        neighbours_of_a_refused_append_go_on,
        an_entry_that_nobody_takes_is_left_out_of_its_commit,
        an_entry_that_is_refused_says_whether_it_may_be_taken_later,
        another_tenants_process_is_out_of_reach,
        an_assignment_begins_an_epoch_and_its_numbers,
        a_fenced_commit_appends_nothing,
        an_entry_of_a_channel_with_events_is_an_event,
        a_chain_of_answers_comes_to_an_end,
        an_entry_that_is_an_event_is_bounded,
        a_process_that_is_made_again_has_events_of_its_own,
        an_id_that_is_taken_keeps_no_entry_out,
    );
}

mod parking {
    use super::sqlite_seams;

    millrace_tests::conformance!(
        sqlite, parked, sqlite_seams;
        what_is_parked_comes_back_to_the_next_owner_in_order,
        tasks_tell_how_much_waits_for_each,
        a_fenced_commit_parks_nothing,
        a_letter_says_whether_it_holds_its_key_and_goes_when_it_is_decided,
    );
}
