//! What groups refuse, by its code.

use std::time::Duration;

use millrace::event::Position;
use millrace::streams::groups::{
    GroupChange, GroupError, GroupId, GroupRead, GroupStart, LetterVerdict, Settle,
};

use super::{Stage, THREE_TRIES, code, group, read_of};
use crate::conformance::effects::tenant;

pub async fn what_is_not_there_is_said_so(stage: Stage) {
    let id = group("acme", "nobody");
    let nowhere = GroupId { stream: "No Where".into(), ..id.clone() };
    for (id, expected) in [(&id, "group_unknown"), (&nowhere, "stream_unknown")] {
        let groups = &stage.groups;
        assert_eq!(code(&groups.status(id).await.unwrap_err()), expected);
        assert_eq!(code(&groups.read(id, read_of("one", 1)).await.unwrap_err()), expected);
        assert_eq!(code(&groups.settle(id, Vec::new()).await.unwrap_err()), expected);
        assert_eq!(code(&groups.consumers(id).await.unwrap_err()), expected);
        assert_eq!(code(&groups.letters(id, Position::START, 1).await.unwrap_err()), expected);
        assert_eq!(code(&groups.seek(id, GroupStart::Oldest).await.unwrap_err()), expected);
        assert_eq!(code(&groups.remove(id).await.unwrap_err()), expected);
        let decided = groups.decide(id, Position(1), LetterVerdict::Discard).await;
        assert_eq!(code(&decided.unwrap_err()), expected);
    }
    let undeclared = GroupId { stream: "changes:secret:tenant".into(), ..id };
    for nowhere in [nowhere, undeclared] {
        let made = stage.groups.ensure(&nowhere, GroupStart::Oldest, THREE_TRIES).await;
        assert_eq!(code(&made.unwrap_err()), "stream_unknown");
    }
    assert_eq!(code(&stage.groups.list(&tenant("acme"), "No Where").await.unwrap_err()), "stream_unknown");
}

pub async fn options_and_numbers_have_bounds(stage: Stage) {
    let id = stage.made(THREE_TRIES).await;
    for (change, option) in [
        (GroupChange { lease_ms: Some(49), ..THREE_TRIES }, "lease_ms"),
        (GroupChange { attempts_max: Some(0), ..THREE_TRIES }, "attempts_max"),
        (GroupChange { backoff_ms_max: Some(0), ..THREE_TRIES }, "backoff_ms_max"),
        (GroupChange { backoff_ms_min: Some(2_000), ..THREE_TRIES }, "backoff_ms_min"),
    ] {
        let error = stage.groups.ensure(&id, GroupStart::Oldest, change).await.unwrap_err();
        assert!(matches!(error, GroupError::Option { option: o, .. } if o == option), "{error:?}");
    }
    for events in [0, 1_001] {
        let error = stage.groups.read(&id, read_of("one", events)).await.unwrap_err();
        assert_eq!(code(&error), "group_read_events_max");
    }
    let read = GroupRead { bytes: 0, ..read_of("one", 1) };
    assert_eq!(code(&stage.groups.read(&id, read).await.unwrap_err()), "group_read_bytes_max");
    let read = GroupRead { wait: Duration::from_secs(31), ..read_of("one", 1) };
    assert_eq!(code(&stage.groups.read(&id, read).await.unwrap_err()), "group_option_invalid");
    stage.append(&["a1"]).await;
    let receipt = stage.take(&id, "one", 1).await[0].receipt;
    let too_long = Some(12 * 3_600_000 + 1);
    for said in [
        Settle::Nack { receipt, delay_ms: too_long, reason: String::new() },
        Settle::Renew { receipt, lease_ms: too_long },
        Settle::Renew { receipt, lease_ms: Some(0) },
    ] {
        let error = stage.groups.settle(&id, vec![said]).await.unwrap_err();
        assert_eq!(code(&error), "group_option_invalid");
    }
    let many = vec![Settle::Ack(receipt); 1_001];
    assert_eq!(code(&stage.groups.settle(&id, many).await.unwrap_err()), "group_receipts_max");
    assert_eq!(stage.status(&id).await.in_flight, 1, "nothing of it was done");
}
