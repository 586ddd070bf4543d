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
