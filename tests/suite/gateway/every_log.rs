//! What the edge shows of a log, on every log: in memory, embedded, Redis, Valkey.

use super::{changes, publishing, reading};

millrace_tests::on_every_log! {
    changes::c38_changes_arrive_by_their_type_and_a_resume_has_exactly_what_follows,
    changes::c38_a_follower_without_changes_gets_signs_of_life_and_its_place,
    publishing::c02_sn23_what_is_published_is_read_back_with_every_field_and_every_byte,
    reading::c39_sn23_a_tail_shows_what_was_and_what_comes_and_resumes_exactly,
}
