//! What is wrong with a request about entries, beside their form: a clear answer each, and nothing is lost.

use std::time::Duration;

use millrace::channels::ChannelLimits;
use millrace::limits::CHANNEL_SEQUENCE_MAX;
use serde_json::json;

use super::{ENTRIES, JOB, append, good, job, positions, rig, rig_with, say, send};

#[tokio::test]
async fn a_number_far_ahead_is_a_gap_that_says_what_is_missing() {
    let limits = ChannelLimits { hold: Duration::from_millis(10), ..ChannelLimits::default() };
    for gaps in ["hold", "report"] {
        let rig = rig_with(limits.clone()).await;
        job(&rig, &json!({ "name": "chat", "gaps": gaps })).await;
        say(&rig, "sam", 1, "one").await;
        for sequence in [CHANNEL_SEQUENCE_MAX, 3] {
            let early = append(&rig, "sam", &json!({ "sequence": sequence, "text": "x" })).await;
            let problem = early.is_problem(409, "channel_sequence_gap");
            assert_eq!((&problem["expected"], &problem["sequence"]), (&json!(2), &json!(sequence)), "{gaps}");
        }
        let far = append(&rig, "eve", &json!({ "inreplyto": CHANNEL_SEQUENCE_MAX, "text": "x" })).await;
        far.is_problem(409, "channel_reply_unknown");
        say(&rig, "sam", 2, "two").await;
        let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
        assert_eq!(positions(&page), [1, 2], "{gaps}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_former_executor_neither_reads_follows_nor_appends() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "eve", 1, "mine").await;
    good(&send(&rig, "POST", &format!("{JOB}/assign"), "sam", "{\"executor\":\"kim\"}").await, 200);
    let eve = [("Authorization", "Bearer token-of-eve"), ("Accept", "text/event-stream")];
    for query in ["", "?after=1", "?after=7"] {
        let path = format!("{ENTRIES}{query}");
        rig.send("GET", &path, &eve, b"").await.is_problem(403, "channel_access_revoked");
        send(&rig, "GET", &path, "eve", "").await.is_problem(403, "channel_access_revoked");
    }
    // What it has said before it may say again no more than anything else.
    for sequence in [1, 2] {
        let entry = json!({ "sequence": sequence, "text": "mine" });
        append(&rig, "eve", &entry).await.is_problem(403, "channel_access_revoked");
    }
    let page = good(&send(&rig, "GET", ENTRIES, "sam", "").await, 200);
    assert_eq!(positions(&page), [1]);
    rig.stop().await;
}

#[tokio::test]
async fn who_follows_when_all_is_over_is_given_what_there_is_and_told_why() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "one").await;
    say(&rig, "sam", 2, "two").await;
    good(&send(&rig, "POST", &format!("{JOB}/close"), "sam", "{\"outcome\":\"failed\"}").await, 200);
    for (query, wanted) in [("", 2), ("?after=0", 2), ("?after=1", 1), ("?after=2", 0)] {
        let mut follower = super::follow::follow(&rig, "eve", query, "").await;
        follower.end().await;
        assert_eq!(follower.positions().len(), wanted, "{query}: {}", follower.text());
        assert_eq!(follower.last().data, json!({ "reason": "failed", "last": 2 }), "{query}");
    }
    let eve = [("Authorization", "Bearer token-of-eve"), ("Accept", "text/event-stream")];
    let ahead = rig.send("GET", &format!("{ENTRIES}?after=3"), &eve, b"").await;
    ahead.is_problem(400, "channel_option_invalid");
    assert_eq!(send(&rig, "DELETE", JOB, "sam", "").await.status, 204);
    rig.send("GET", ENTRIES, &eve, b"").await.is_problem(404, "channel_unknown");
    rig.stop().await;
}
