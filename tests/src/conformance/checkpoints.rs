//! What every checkpoint store must do, and what its commits do to log and tables.

use std::sync::Arc;

use millrace::checkpoints::{Commit, CommitError, DeadLetter, Generation, ScanLimit, StatePage, TaskId};
use millrace::event::{EventBatch, Micros, Position, Revision, TenantId};
use millrace::tables::{Cell, Row, TableSchema, Value};

use super::Seams;
use super::deployments::deployment;
pub use super::deployments::{
    a_deployment_keeps_its_settings, a_deployment_that_is_withdrawn_was_never_there,
    deployments_keep_their_history,
};
use super::effects::{Effects, commit, saved, table, task, tenant};
use super::event_log::{batch, ids};

pub(super) async fn claim(seams: &Seams, task: &TaskId) -> Generation {
    seams.checkpoints.claim(task).await.expect("a claim succeeds").0
}

/// A plugin `board` with these tables, and a claimed task of it.
async fn board(seams: &Seams, tables: &[TableSchema]) -> (TaskId, Generation) {
    seams.tables.declare("board", tables).await.expect("the tables can be declared");
    let task = task("board", "acme", 0);
    let generation = claim(seams, &task).await;
    (task, generation)
}

async fn row(seams: &Seams, tenant: &TenantId, key: &str) -> Option<Row> {
    seams.tables.get(tenant, "rows", key).await.expect("a row can be read").1
}

async fn label(seams: &Seams, key: &str) -> Option<Value> {
    row(seams, &tenant("acme"), key).await.map(|row| row.cells[1].clone())
}

fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.into()))
}

fn cells<'a>(n: i64, label: &'a str) -> [Cell<'a>; 2] {
    [Cell::Int(n), Cell::Text(label)]
}

pub async fn first_claim_has_no_checkpoint(seams: Seams) {
    let task = task("board", "acme", 0);
    let (generation, checkpoint) = seams.checkpoints.claim(&task).await.unwrap();
    assert!(generation > Generation(0));
    assert_eq!(checkpoint, None);
    let (later, checkpoint) = seams.checkpoints.claim(&task).await.unwrap();
    assert!(later > generation);
    assert_eq!(checkpoint, None);
    assert!(seams.log.tenants().is_empty(), "a claim is not an append");
}

pub async fn claim_answers_the_last_commit(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut first = commit(&task, generation, 5, &[], &mut Effects::default());
    first.saved = saved(b"one");
    let one = seams.checkpoints.commit(first).await.unwrap();
    // A commit without a snapshot keeps the former one.
    let second = commit(&task, generation, 9, &[], &mut Effects::default());
    let two = seams.checkpoints.commit(second).await.unwrap();
    assert!(two.revision > one.revision);
    let (_, checkpoint) = seams.checkpoints.claim(&task).await.unwrap();
    let checkpoint = checkpoint.expect("there was a commit");
    assert_eq!((checkpoint.position, checkpoint.revision), (Position(9), two.revision));
    assert_eq!(checkpoint.saved.unwrap().state, b"one");
}

pub async fn outdated_generation_is_refused(seams: Seams) {
    let (task, old) = board(&seams, &[]).await;
    let new = claim(&seams, &task).await;
    match seams.checkpoints.commit(commit(&task, old, 1, &[], &mut Effects::default())).await {
        Err(CommitError::Fenced { held, current, .. }) => assert_eq!((held, current), (old.0, new.0)),
        other => panic!("{other:?}"),
    }
    seams.checkpoints.commit(commit(&task, new, 1, &[], &mut Effects::default())).await.unwrap();
}

pub async fn commit_without_a_claim_is_refused(seams: Seams) {
    let task = task("board", "acme", 3);
    let refused =
        seams.checkpoints.commit(commit(&task, Generation(1), 1, &[], &mut Effects::default())).await;
    assert!(matches!(refused, Err(CommitError::Fenced { current: 0, .. })), "{refused:?}");
}

pub async fn position_does_not_go_back(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let at = |position| commit(&task, generation, position, &[], &mut Effects::default());
    seams.checkpoints.commit(at(7)).await.unwrap();
    seams.checkpoints.commit(at(7)).await.unwrap();
    match seams.checkpoints.commit(at(6)).await {
        Err(CommitError::PositionBack { committed, asked, .. }) => {
            assert_eq!((committed, asked), (Position(7), Position(6)));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn effects_state_and_position_commit_together(seams: Seams) {
    let tables = [table("rows", false)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    effects.put("k", 0, &cells(1, "one")).state_put(b"s", b"1").emit("LX8", 1, "{}");
    let mut whole = commit(&task, generation, 4, &tables, &mut effects);
    whole.saved = saved(b"state");
    let done = seams.checkpoints.commit(whole).await.unwrap();
    let row = row(&seams, &task.tenant, "k").await.unwrap();
    assert_eq!((row.revision, row.cells), (done.revision, vec![Value::Int(1), Value::Text("one".into())]));
    assert_eq!(seams.checkpoints.state_get(&task, b"s").unwrap().unwrap().value, b"1");
    assert_eq!(ids(&seams.log, &task.tenant, Position::START).await.len(), 1);
    let tasks = seams.checkpoints.tasks(Some("board")).await.unwrap();
    assert_eq!((tasks.len(), tasks[0].position, tasks[0].state_bytes), (1, Position(4), 5));
    assert_eq!((tasks[0].generation, tasks[0].revision), (generation, done.revision));
}

pub async fn refused_commit_leaves_nothing(seams: Seams) {
    let tables = [table("rows", true)];
    let (owner, held) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    seams
        .checkpoints
        .commit(commit(&owner, held, 1, &tables, effects.put("mine", 1, &cells(1, "a"))))
        .await
        .unwrap();
    let other = task("board", "acme", 1);
    let generation = claim(&seams, &other).await;
    effects.put("free", 1, &cells(1, "b")).state_put(b"s", b"1").emit("LX8", 1, "{}").put(
        "mine",
        2,
        &cells(2, "c"),
    );
    let mut bad = commit(&other, generation, 5, &tables, &mut effects);
    bad.saved = saved(b"bad");
    bad.dead = vec![dead_letter(&other.tenant, "d", 3)];
    let refused = seams.checkpoints.commit(bad).await.unwrap_err();
    assert!(matches!(refused, CommitError::Refused { .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("rows") && said.contains("mine"), "{said}");
    assert_eq!(row(&seams, &other.tenant, "free").await, None);
    assert_eq!(label(&seams, "mine").await, text("a"));
    assert_eq!(seams.checkpoints.state_get(&other, b"s").unwrap(), None);
    assert_eq!(seams.log.bounds().newest, Position::START);
    assert!(seams.log.tenants().is_empty());
    assert!(seams.checkpoints.dead_letters("board", None, 10).await.unwrap().is_empty());
    assert_eq!(seams.checkpoints.claim(&other).await.unwrap().1, None);
    // What was refused used nothing up.
    let appended = seams.log.append(batch(&other.tenant, &[("x", "{}")])).await.unwrap();
    assert_eq!(appended[0].position, Position(1));
}

pub async fn emitted_events_are_followed_like_published_ones(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    seams.log.append(batch(&task.tenant, &[("first", "{}")])).await.unwrap();
    let mut effects = Effects::default();
    effects.emit("LX8", 1, "{\"n\":1}").emit("LX8", 2, "{\"n\":2}");
    seams.checkpoints.commit(commit(&task, generation, 1, &[], &mut effects)).await.unwrap();
    let chunks = seams.log.tail().read(&task.tenant, Position(1), 10).expect("the tail has them");
    let emitted: Vec<(u64, u32)> = chunks
        .iter()
        .flat_map(|c| c.iter())
        .filter(|e| e.position.0 > 1)
        .map(|e| (e.version, e.depth))
        .collect();
    assert_eq!(emitted, [(1, 1), (2, 1)]);
}

pub async fn repeated_emit_is_skipped_and_a_conflicting_one_refused(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut effects = Effects::default();
    let first = commit(&task, generation, 1, &[], effects.emit("LX8", 1, "{}"));
    seams.checkpoints.commit(first).await.unwrap();
    let again = commit(&task, generation, 2, &[], effects.emit("LX8", 1, "{}").emit("LX8", 2, "{}"));
    seams.checkpoints.commit(again).await.unwrap();
    assert_eq!(seams.log.bounds().newest, Position(2));
    let other = commit(&task, generation, 3, &[], effects.emit("LX8", 3, "{}").emit("LX8", 1, "[]"));
    assert!(matches!(seams.checkpoints.commit(other).await, Err(CommitError::Refused { .. })));
    assert_eq!(seams.log.bounds().newest, Position(2));
}

pub async fn row_belongs_to_its_first_writer(seams: Seams) {
    let tables = [table("rows", false)];
    let (first, held) = board(&seams, &tables).await;
    let second = task("board", "acme", 1);
    let generation = claim(&seams, &second).await;
    let mut effects = Effects::default();
    seams
        .checkpoints
        .commit(commit(&first, held, 1, &tables, effects.put("k", 0, &cells(1, "a"))))
        .await
        .unwrap();
    for effects in [effects.put("k", 0, &cells(2, "b")).check(&tables), effects.delete("k", 0).check(&tables)]
    {
        let mut theirs = commit(&second, generation, 1, &tables, &mut Effects::default());
        theirs.effects = vec![effects];
        assert!(matches!(seams.checkpoints.commit(theirs).await, Err(CommitError::Refused { .. })));
    }
    assert_eq!(label(&seams, "k").await, text("a"));
    // Another tenant's row of the same key is another row.
    let elsewhere = task("board", "beta", 0);
    let generation = claim(&seams, &elsewhere).await;
    let theirs = commit(&elsewhere, generation, 1, &tables, effects.put("k", 0, &cells(3, "c")));
    seams.checkpoints.commit(theirs).await.unwrap();
    assert_eq!(label(&seams, "k").await, text("a"));
    assert_eq!(row(&seams, &tenant("beta"), "k").await.unwrap().cells[0], Value::Int(3));
}

pub async fn table_of_another_plugin_is_refused(seams: Seams) {
    let tables = [table("rows", false)];
    seams.tables.declare("owner", &tables).await.unwrap();
    let task = task("board", "acme", 0);
    let generation = claim(&seams, &task).await;
    let mut effects = Effects::default();
    let theirs = commit(&task, generation, 1, &tables, effects.put("k", 0, &cells(1, "a")));
    assert!(matches!(seams.checkpoints.commit(theirs).await, Err(CommitError::Refused { .. })));
}

pub async fn stale_versions_are_left_out(seams: Seams) {
    let tables = [table("rows", true)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    let mut position = 0;
    for (version, text_now, stale, expected) in
        [(5, "five", 0, "five"), (4, "four", 1, "five"), (5, "again", 1, "five"), (6, "six", 0, "six")]
    {
        position += 1;
        let one =
            commit(&task, generation, position, &tables, effects.put("k", version, &cells(1, text_now)));
        assert_eq!(seams.checkpoints.commit(one).await.unwrap().stale, stale, "version {version}");
        assert_eq!(label(&seams, "k").await, text(expected));
    }
    assert_eq!(row(&seams, &task.tenant, "k").await.unwrap().version, 6);
}

pub async fn sn20_late_write_does_not_bring_a_row_back(seams: Seams) {
    let tables = [table("rows", true)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    let at = |position, effects: &mut Effects| commit(&task, generation, position, &tables, effects);
    seams.checkpoints.commit(at(1, effects.put("k", 1, &cells(1, "a")))).await.unwrap();
    // A delete that is older than the row is stale; a newer one counts.
    assert_eq!(seams.checkpoints.commit(at(2, effects.delete("k", 1))).await.unwrap().stale, 1);
    assert_eq!(seams.checkpoints.commit(at(3, effects.delete("k", 3))).await.unwrap().stale, 0);
    assert_eq!(label(&seams, "k").await, None);
    assert_eq!(
        seams.checkpoints.commit(at(4, effects.put("k", 2, &cells(1, "late")))).await.unwrap().stale,
        1
    );
    assert_eq!(label(&seams, "k").await, None);
    // A delete that overtook the first put leaves its mark, too.
    seams.checkpoints.commit(at(5, effects.delete("never", 9))).await.unwrap();
    assert_eq!(
        seams.checkpoints.commit(at(6, effects.put("never", 8, &cells(1, "x")))).await.unwrap().stale,
        1
    );
    seams.checkpoints.commit(at(7, effects.put("k", 4, &cells(1, "new")))).await.unwrap();
    assert_eq!(label(&seams, "k").await, text("new"));
}

pub async fn unversioned_rows_take_every_write(seams: Seams) {
    let tables = [table("rows", false)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    let at = |position, effects: &mut Effects| commit(&task, generation, position, &tables, effects);
    seams.checkpoints.commit(at(1, effects.put("k", 9, &cells(1, "a")))).await.unwrap();
    seams.checkpoints.commit(at(2, effects.put("k", 1, &cells(1, "b")))).await.unwrap();
    assert_eq!(
        (label(&seams, "k").await, row(&seams, &task.tenant, "k").await.unwrap().version),
        (text("b"), 0)
    );
    let done = seams.checkpoints.commit(at(3, effects.delete("k", 0).delete("absent", 0))).await.unwrap();
    assert_eq!((done.stale, label(&seams, "k").await), (0, None));
    seams.checkpoints.commit(at(4, effects.put("k", 0, &cells(1, "c")))).await.unwrap();
    assert_eq!(label(&seams, "k").await, text("c"));
}

pub async fn last_write_of_a_commit_wins(seams: Seams) {
    let tables = [table("rows", false)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    effects
        .put("a", 0, &cells(1, "1"))
        .put("b", 0, &cells(1, "1"))
        .put("a", 0, &cells(2, "2"))
        .delete("b", 0);
    effects.delete("c", 0).put("c", 0, &cells(3, "3"));
    effects.state_put(b"x", b"1").state_put(b"y", b"1").state_delete(b"x").state_put(b"y", b"2");
    seams.checkpoints.commit(commit(&task, generation, 1, &tables, &mut effects)).await.unwrap();
    assert_eq!(label(&seams, "a").await, text("2"));
    assert_eq!(label(&seams, "b").await, None);
    assert_eq!(label(&seams, "c").await, text("3"));
    assert_eq!(seams.checkpoints.state_get(&task, b"x").unwrap(), None);
    assert_eq!(seams.checkpoints.state_get(&task, b"y").unwrap().unwrap().value, b"2");
}

pub async fn highest_version_of_a_commit_wins(seams: Seams) {
    let tables = [table("rows", true)];
    let (task, generation) = board(&seams, &tables).await;
    let mut effects = Effects::default();
    effects.put("a", 3, &cells(1, "3")).put("a", 2, &cells(1, "2")).put("a", 3, &cells(1, "3 again"));
    effects.put("b", 1, &cells(1, "1")).delete("b", 2).put("b", 1, &cells(1, "late"));
    let done = seams.checkpoints.commit(commit(&task, generation, 1, &tables, &mut effects)).await.unwrap();
    assert_eq!((label(&seams, "a").await, label(&seams, "b").await, done.stale), (text("3"), None, 3));
}

pub async fn keyed_state_is_scanned_in_order(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut effects = Effects::default();
    for key in [&b"a"[..], b"b/2", b"b/1", b"b/10", b"b0", b"\xff", b"\xff\xff", b"b/\xff"] {
        effects.state_put(key, key);
    }
    seams.checkpoints.commit(commit(&task, generation, 1, &[], &mut effects)).await.unwrap();
    let scan = |prefix: &[u8], after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
        let page = seams.checkpoints.state_scan(&task, prefix, after, ScanLimit::new(limit)).unwrap();
        assert!(!page.more || page.entries.len() == limit as usize);
        page.entries
            .into_iter()
            .map(|entry| {
                assert_eq!(entry.key, entry.value);
                entry.key
            })
            .collect()
    };
    assert_eq!(scan(b"b/", None, 100), [&b"b/1"[..], b"b/10", b"b/2", b"b/\xff"]);
    assert_eq!(scan(b"b/", Some(b"b/10"), 100), [&b"b/2"[..], b"b/\xff"]);
    assert_eq!(scan(b"b/", Some(b"b/10"), 1), [&b"b/2"[..]]);
    assert_eq!(scan(b"b/", Some(b"a"), 2), [&b"b/1"[..], b"b/10"]);
    assert_eq!(scan(b"\xff", None, 100), [&b"\xff"[..], b"\xff\xff"]);
    assert_eq!(scan(b"", None, 100).len(), 8);
    assert!(scan(b"b/", Some(b"c"), 100).is_empty());
    assert!(scan(b"", None, 0).is_empty());
    let stranger = super::effects::task("board", "acme", 1);
    let none = seams.checkpoints.state_scan(&stranger, b"", None, ScanLimit::new(10)).unwrap();
    assert_eq!(none, StatePage::default());
}

pub async fn a_scan_ends_at_its_bytes_and_goes_on_from_its_last_key(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut effects = Effects::default();
    for (key, bytes) in [(b"a", 40), (b"b", 40), (b"c", 500), (b"d", 10), (b"e", 10)] {
        effects.state_put(key, &vec![7; bytes]);
    }
    seams.checkpoints.commit(commit(&task, generation, 1, &[], &mut effects)).await.unwrap();
    let limit = ScanLimit { entries: 3, bytes: 100 };
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = seams.checkpoints.state_scan(&task, b"", after.as_deref(), limit).unwrap();
        pages.push(page.entries.iter().map(|entry| entry.key[0] as char).collect::<String>());
        assert!(!page.entries.is_empty());
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more {
            break;
        }
    }
    // What is larger than a page stands alone.
    assert_eq!(pages, ["ab", "c", "de"]);
    let exact = seams.checkpoints.state_scan(&task, b"", None, ScanLimit { entries: 5, bytes: 1_000 });
    assert!(!exact.unwrap().more);
}

pub async fn keyed_state_keeps_its_expiry_and_answers_what_has_expired(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut effects = Effects::default();
    effects.state_put_until(b"a", b"1", 5).state_put(b"b", b"2").state_put_until(b"c", b"3", i64::MAX);
    seams.checkpoints.commit(commit(&task, generation, 1, &[], &mut effects)).await.unwrap();
    let expiry = |key: &[u8]| seams.checkpoints.state_get(&task, key).unwrap().unwrap().expires_at;
    assert_eq!([expiry(b"a"), expiry(b"b"), expiry(b"c")], [Some(Micros(5)), None, Some(Micros(i64::MAX))]);
    let page = seams.checkpoints.state_scan(&task, b"", None, ScanLimit::new(10)).unwrap();
    let expiries: Vec<_> = page.entries.iter().map(|entry| entry.expires_at).collect();
    assert_eq!(expiries, [Some(Micros(5)), None, Some(Micros(i64::MAX))]);
    // A later write brings its own expiry, or none.
    effects.state_put(b"a", b"1").state_put_until(b"b", b"2", 7);
    seams.checkpoints.commit(commit(&task, generation, 2, &[], &mut effects)).await.unwrap();
    assert_eq!([expiry(b"a"), expiry(b"b")], [None, Some(Micros(7))]);
}

pub async fn sizes_of_keyed_state_follow_its_entries(seams: Seams) {
    let (task, generation) = board(&seams, &[]).await;
    let mut effects = Effects::default();
    let mut position = 0;
    let mut step = async |effects: &mut Effects| {
        position += 1;
        seams.checkpoints.commit(commit(&task, generation, position, &[], effects)).await.unwrap();
        let row = seams.checkpoints.tasks(Some("board")).await.unwrap().remove(0);
        (row.keyed_entries, row.keyed_bytes)
    };
    assert_eq!(step(effects.state_put(b"one", b"1234").state_put(b"two", b"")).await, (2, 10));
    assert_eq!(step(effects.state_put(b"one", b"12").state_put(b"one", b"123456")).await, (2, 12));
    assert_eq!(step(effects.state_delete(b"two").state_delete(b"never")).await, (1, 9));
    assert_eq!(step(effects.state_delete(b"one").state_put(b"one", b"1")).await, (1, 4));
    assert_eq!(step(effects.state_delete(b"one")).await, (0, 0));
}

pub fn dead_letter(tenant: &TenantId, id: &str, position: u64) -> DeadLetter {
    let mut event: EventBatch = batch(tenant, &[(id, "{\"bad\":true}")]);
    event.set_position(0, Position(position));
    DeadLetter {
        event: Arc::new(event),
        reason: "reject",
        message: format!("cannot read {id}"),
        backtrace: "0: handle".into(),
        attempts: 2,
        key: id.as_bytes().into(),
        state_hash: "ab".into(),
        plugin_version: "1.2.3".into(),
        at: Micros(77),
    }
}

pub async fn dead_letters_are_listed_newest_first(seams: Seams) {
    let mut expected = Vec::new();
    for (number, tenant_name) in [(1, "acme"), (2, "acme"), (3, "beta")] {
        let task = task("board", tenant_name, 0);
        let generation = claim(&seams, &task).await;
        let mut with_dead: Commit = commit(&task, generation, number, &[], &mut Effects::default());
        with_dead.dead = vec![dead_letter(&task.tenant, &format!("e{number}"), number)];
        expected.insert(0, with_dead.dead[0].clone());
        seams.checkpoints.commit(with_dead).await.unwrap();
    }
    let all = seams.checkpoints.dead_letters("board", None, 10).await.unwrap();
    assert_eq!(all.len(), 3);
    for (row, letter) in all.iter().zip(&expected) {
        assert_eq!(
            (&row.event, row.reason.as_str(), &row.message),
            (&letter.event, "reject", &letter.message)
        );
        assert_eq!((row.attempts, row.at, &row.task.tenant), (2, Micros(77), &letter.event.tenant));
        assert_eq!((&row.key, &row.backtrace), (&letter.key, &letter.backtrace));
        assert_eq!((&row.state_hash, &row.plugin_version), (&letter.state_hash, &letter.plugin_version));
        assert!(!row.held && row.parked_behind == 0, "nobody said that it holds its key");
    }
    let acme = seams.checkpoints.dead_letters("board", Some(&tenant("acme")), 1).await.unwrap();
    assert_eq!((acme.len(), acme[0].event.get(0).id), (1, "e2"));
    assert!(seams.checkpoints.dead_letters("other", None, 10).await.unwrap().is_empty());
}

pub async fn tasks_are_listed_by_processor(seams: Seams) {
    for (processor, lane) in [("board", 0), ("board", 1), ("other", 0)] {
        claim(&seams, &task(processor, "acme", lane)).await;
    }
    let board = seams.checkpoints.tasks(Some("board")).await.unwrap();
    assert_eq!(board.iter().map(|row| row.task.lane).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(seams.checkpoints.tasks(None).await.unwrap().len(), 3);
}

/// One bad commit among many that share a transaction rolls back alone.
pub async fn commits_of_a_group_fail_alone(seams: Seams) {
    let tables = [table("rows", false)];
    let (task, generation) = board(&seams, &tables).await;
    let mut running = Vec::new();
    for n in 1..=50_u64 {
        let mut effects = Effects::default();
        effects.put(&format!("k{n}"), 0, &cells(1, "x")).emit("LX8", n, "{}");
        let held = if n % 7 == 0 { Generation(0) } else { generation };
        running.push((n, seams.checkpoints.commit(commit(&task, held, n, &tables, &mut effects))));
    }
    let mut revision = Revision(0);
    for (n, commit) in running {
        match commit.await {
            Ok(done) => {
                assert!(n % 7 != 0 && done.revision > revision);
                revision = done.revision;
            }
            Err(error) => assert!(n % 7 == 0 && matches!(error, CommitError::Fenced { .. }), "{error}"),
        }
    }
    let emitted = seams.log.read(&task.tenant, Position::START, super::event_log::ALL).await.unwrap();
    let versions: Vec<u64> = emitted.events.iter().map(|e| e.version).collect();
    assert_eq!(versions, (1..=50).filter(|n| n % 7 != 0).collect::<Vec<u64>>());
    assert_eq!(emitted.events.last_position(), Position(43));
}

pub async fn removed_plugin_starts_afresh_and_its_rows_stay(seams: Seams) {
    let tables = [table("rows", false)];
    let (task_0, generation) = board(&seams, &tables).await;
    seams.deployments.put(deployment("1.0.0")).await.unwrap();
    let mut effects = Effects::default();
    effects.put("k", 0, &cells(1, "a")).state_put(b"s", b"1");
    let mut whole = commit(&task_0, generation, 3, &tables, &mut effects);
    whole.saved = saved(b"state");
    seams.checkpoints.commit(whole).await.unwrap();
    seams.deployments.remove("board").await.unwrap();
    assert!(seams.deployments.list().await.unwrap().is_empty());
    assert!(seams.checkpoints.tasks(Some("board")).await.unwrap().is_empty());
    assert_eq!(seams.checkpoints.state_get(&task_0, b"s").unwrap(), None);
    assert_eq!(label(&seams, "k").await, text("a"));
    // The former owner is fenced out, also by a new life of its task.
    let late = || commit(&task_0, generation, 4, &[], &mut Effects::default());
    assert!(matches!(seams.checkpoints.commit(late()).await, Err(CommitError::Fenced { .. })));
    let (_, checkpoint) = seams.checkpoints.claim(&task_0).await.unwrap();
    assert_eq!(checkpoint, None);
    assert!(matches!(seams.checkpoints.commit(late()).await, Err(CommitError::Fenced { .. })));
    // Another plugin may have the table now, and its tasks the rows.
    seams.tables.declare("heir", &tables).await.unwrap();
    let heir = task("heir", "acme", 1);
    let generation = claim(&seams, &heir).await;
    seams
        .checkpoints
        .commit(commit(&heir, generation, 1, &tables, effects.put("k", 0, &cells(2, "b"))))
        .await
        .unwrap();
    assert_eq!(label(&seams, "k").await, text("b"));
}

/// Runs this whole suite for a backend.
#[macro_export]
macro_rules! checkpoints_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, checkpoints, $setup;
            first_claim_has_no_checkpoint, claim_answers_the_last_commit, outdated_generation_is_refused,
            commit_without_a_claim_is_refused, position_does_not_go_back,
            effects_state_and_position_commit_together, refused_commit_leaves_nothing,
            emitted_events_are_followed_like_published_ones,
            repeated_emit_is_skipped_and_a_conflicting_one_refused, row_belongs_to_its_first_writer,
            table_of_another_plugin_is_refused, stale_versions_are_left_out,
            sn20_late_write_does_not_bring_a_row_back, unversioned_rows_take_every_write,
            last_write_of_a_commit_wins, highest_version_of_a_commit_wins, keyed_state_is_scanned_in_order,
            a_scan_ends_at_its_bytes_and_goes_on_from_its_last_key,
            keyed_state_keeps_its_expiry_and_answers_what_has_expired, sizes_of_keyed_state_follow_its_entries,
            dead_letters_are_listed_newest_first, tasks_are_listed_by_processor, commits_of_a_group_fail_alone,
            deployments_keep_their_history, a_deployment_that_is_withdrawn_was_never_there,
            a_deployment_keeps_its_settings, removed_plugin_starts_afresh_and_its_rows_stay);
    };
}
