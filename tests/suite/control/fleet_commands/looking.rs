//! Looking at a fleet, waiting for it, and looking after the feed.

use millrace::cli::Exit;
use millrace_tests::control_events::running;

use super::*;
use crate::scripted_host::problem;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn deployed() -> ControlEvent {
    standing(running(spec(PLUGIN, "2.0.0", b"2.0.0")))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_desired_beside_observed_and_what_is_missing() {
    let told = fleet(&deployed(), &[("h-1", "2.0.0", Phase::Active), ("h-2", "1.0.0", Phase::Shadow)]);
    let server = Scripted::new(vec![fine(told.clone())]);
    let (ended, said) = at(&server, &["fleet", "status"]).await;
    ended.unwrap();
    let digest = spec(PLUGIN, "1.0.0", b"1.0.0").component.digest;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "board 2.0.0: running, revision 4");
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(cells(lines[1]), ["HOST", "WAVE", "WANTED", "SERVES", "PHASE", "REVISION", "LAG"]);
    assert_eq!(cells(lines[2]), ["h-1", "-", "2.0.0", "2.0.0", "active", "4", "12"]);
    assert_eq!(
        cells(lines[3]),
        ["h-2", "-", "2.0.0", &digest[..19], "shadow", "4", "12"],
        "no name is known"
    );
    assert_eq!(lines[5], "missing: board: h-2: is at `shadow`");
    assert_eq!(lines[6], "not converged; 2 of 2 hosts talk");
    asks(&server.asked()[0], "GET", "/v1/fleet/status");

    let mut frozen = told.clone();
    frozen["frozen"] = json!({ "by": "ann", "reason": "an incident", "at": 1 });
    let server = Scripted::new(vec![fine(frozen)]);
    let (_, said) = at(&server, &["fleet", "status", PLUGIN]).await;
    assert!(said.contains("the fleet is frozen by ann: an incident\n"), "{said}");

    let server = Scripted::new(vec![fine(told.clone()), fine(told.clone()), fine(json!({ "plugins": [] }))]);
    let (ended, said) = at(&server, &["fleet", "status", PLUGIN, "--json"]).await;
    ended.unwrap();
    let said = json_of(&said);
    assert_eq!((&said["plugins"], &said["hosts"]), (&told["plugins"], &told["hosts"]));
    assert_eq!(said["converged"], false);
    assert_eq!(said["missing"], json!(["board: h-2: is at `shadow`"]));
    let error = at(&server, &["fleet", "status", "watch"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Refused, "{error}");
    assert!(error.sentence().contains("watch is not deployed"), "{error}");
    let (_, said) = at(&server, &["fleet", "status"]).await;
    assert!(said.starts_with("nothing is desired"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_once_every_host_runs_it_whatever_the_origin_goes_through() {
    let behind = fleet(&deployed(), &[("h-1", "1.0.0", Phase::Compiled)]);
    let there = fleet(&deployed(), &[("h-1", "2.0.0", Phase::Active)]);
    let server = Scripted::new(vec![fine(behind), problem(503, "starting"), String::new(), fine(there)]);
    let (ended, said) = at(&server, &["fleet", "status", "--wait", "--timeout", "10m", PLUGIN]).await;
    ended.unwrap();
    assert!(said.ends_with("converged; 1 of 1 hosts talk\n"), "{said}");
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_says_who_is_missing_when_its_time_is_over() {
    let mut told = fleet(&deployed(), &[("h-1", "2.0.0", Phase::Active), ("h-2", "1.0.0", Phase::Fetched)]);
    let server = Scripted::new(vec![fine(told.clone())]);
    let (ended, said) = at(&server, &["fleet", "status", "--wait", "--timeout", "0s", "--json"]).await;
    let error = ended.unwrap_err();
    assert_eq!(error.exit(), Exit::Failure, "{error}");
    assert!(error.sentence().contains("not converged after 0s: board: h-2: is at `fetched`"), "{error}");
    assert_eq!(json_of(&said)["converged"], false);

    // Nobody there is nobody who runs it.
    let nobody = fleet(&deployed(), &[]);
    let wait = ["fleet", "status", "--wait", "--timeout", "0s"];
    let server = Scripted::new(vec![fine(nobody)]);
    let error = at(&server, &wait).await.0.unwrap_err();
    assert!(error.sentence().contains("0 of 1 hosts talk"), "{error}");
    told = fleet(&deployed(), &[("h-1", "2.0.0", Phase::Active)]);
    let server = Scripted::new(vec![fine(told.clone()), fine(told)]);
    let error = at(&server, &[&wait[..], &["--hosts", "2"]].concat()).await.0.unwrap_err();
    assert!(error.sentence().contains("1 of 2 hosts talk"), "{error}");
    at(&server, &wait).await.0.unwrap();
    // A command that is refused does not wait for better.
    let server = Scripted::new(vec![problem(403, "forbidden")]);
    let error = at(&server, &["fleet", "status", "--wait"]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Denied, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_shown_with_its_last_change() {
    let event = standing(rollout(Progress::Running));
    let told = fleet(&event, &[("h-1", "2.0.0", Phase::Active), ("h-2", "1.0.0", Phase::Active)]);
    let answers = || Scripted::new(vec![fine(told.clone()), stands(&[&event])]);
    let server = answers();
    let (ended, said) = at(&server, &["rollout", "status", PLUGIN]).await;
    ended.unwrap();
    let cells: Vec<&str> = said.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[..7], [PLUGIN, "4", "running", "1/2", "2.0.0", "1.0.0", "1/2"]);
    assert!(said.contains("plugin.deployed by ops@example.com: because it is time"), "{said}");
    assert!(said.contains("h-1") && said.contains("h-2"), "{said}");
    let (_, short) = at(&answers(), &["rollout", "status"]).await;
    assert_eq!(short.lines().count(), 2, "{short}");
    let (_, said) = at(&answers(), &["rollout", "status", "--json"]).await;
    let said = json_of(&said);
    assert_eq!(said["plugins"][0]["rollout"], told["plugins"][0]["rollout"]);
    let why = "plugin.deployed by ops@example.com: because it is time";
    assert_eq!(said["plugins"][0]["last_change"], why);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_says_what_changes_and_ends_with_the_rollout() {
    let of = |progress| {
        let event = standing(rollout(progress));
        (fleet(&event, &[("h-1", "2.0.0", Phase::Active)]), event)
    };
    let (running, _) = of(Progress::Running);
    let watch = ["rollout", "status", PLUGIN, "--watch", "--every", "1ms"];
    let (complete, _) = of(Progress::Complete);
    let server = Scripted::new(vec![
        fine(running.clone()),
        fine(running.clone()),
        String::new(),
        problem(503, "starting"),
        fine(complete.clone()),
    ]);
    let (ended, said) = at(&server, &watch).await;
    ended.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[0].starts_with("board 2.0.0: running, wave 1 of 2, on 1 of 1 hosts (revision 4)"),
        "{said}"
    );
    assert!(lines[1].starts_with("board 2.0.0: complete, wave 1 of 2"), "{said}");

    for (progress, words, next_step) in [
        (
            Progress::Halted,
            "the rollout of board is halted (plugin.deployed by",
            "millrace rollout advance board",
        ),
        (
            Progress::RolledBack,
            "the rollout of board is rolled back (plugin.deployed by",
            "fleet status board",
        ),
    ] {
        let (told, event) = of(progress);
        let server = Scripted::new(vec![fine(running.clone()), fine(told.clone()), stands(&[&event])]);
        let (ended, said) = at(&server, &[&watch[..], &["--json"]].concat()).await;
        let error = ended.unwrap_err();
        assert_eq!(error.exit(), Exit::Failure, "{error}");
        assert!(
            error.sentence().contains(words) && error.sentence().contains("because it is time"),
            "{error}"
        );
        assert!(error.next_step().contains(next_step), "{error}");
        let last = json_of(said.lines().last().unwrap());
        assert_eq!(last, told["plugins"][0]);
    }
    // Nobody waits for a host for ever that is not there at all.
    let server = Scripted::new(vec![problem(404, "not_found")]);
    let error = at(&server, &watch).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_listed_and_can_be_forgotten() {
    let told = fleet(&deployed(), &[("h-1", "2.0.0", Phase::Active)]);
    let answer_of = || fine(json!({ "hosts": told["hosts"] }));
    let server = Scripted::new(vec![answer_of(), answer_of(), fine(json!({ "hosts": [] })), no_content()]);
    let (ended, said) = at(&server, &["fleet", "hosts"]).await;
    ended.unwrap();
    let cells: Vec<&str> = said.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["h-1", "talking", "2s", "zone=a", env!("CARGO_PKG_VERSION"), "0", "7"], "{said}");
    let (_, said) = at(&server, &["fleet", "hosts", "--json"]).await;
    assert_eq!(json_of(&said)["hosts"], told["hosts"]);
    let (_, said) = at(&server, &["fleet", "hosts"]).await;
    assert!(said.starts_with("no host has reported"), "{said}");
    at(&server, &["fleet", "forget", "h/1"]).await.0.unwrap();
    asks(&server.asked()[3], "DELETE", "/v1/fleet/hosts/h%2F1");
}

fn no_content() -> String {
    "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_freeze_and_a_resync_are_asked_for() {
    let frozen = fine(json!({ "frozen": { "by": "ann", "reason": "an incident", "at": 1 } }));
    let restored = fine(json!({ "restored": true, "version": 12, "entities": ["plugin:board", "trust"] }));
    let nothing = fine(json!({ "restored": false, "version": null, "entities": [] }));
    let thawed = fine(json!({ "frozen": null }));
    let server = Scripted::new(vec![frozen, thawed, restored, nothing]);
    let (ended, said) = at(&server, &["fleet", "freeze", "--reason", "an incident"]).await;
    ended.unwrap();
    assert!(said.starts_with("the fleet is frozen"), "{said}");
    let (_, said) = at(&server, &["fleet", "unfreeze", "--json"]).await;
    assert_eq!(json_of(&said), json!({ "frozen": false, "reason": "" }));
    let (_, said) = at(&server, &["fleet", "resync"]).await;
    assert_eq!(said, "this host knows the fleet's state at version 12 now; changed: plugin:board, trust\n");
    let (_, said) = at(&server, &["fleet", "resync"]).await;
    assert!(said.starts_with("the fleet has no snapshot yet"), "{said}");
    let asked = server.asked();
    asks(&asked[0], "POST", "/v1/fleet/freeze");
    assert_eq!(asked[0].body, json!({ "frozen": true, "reason": "an incident" }));
    assert_eq!(asked[1].body, json!({ "frozen": false, "reason": "" }));
    asks(&asked[2], "POST", "/v1/fleet/resync");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_and_what_waits_is_shown_with_its_reason() {
    let event = json!({
        "version": 9, "name": ID, "code": "control_event_untrusted", "reason": "not\u{1b} signed",
        "at": "2026-03-01T12:00:00Z",
    });
    let letter = json!({
        "event": ID, "entity": "plugin:board", "revision": 5, "attempts": 40, "error": "the feed is full",
        "at": "2026-03-01T12:00:00Z",
    });
    let outbox = json!({ "waiting": 3, "dead": 1, "oldest_at": "2026-03-01T11:00:00Z", "letters": [letter] });
    let server = Scripted::new(vec![
        fine(json!({ "events": [event] })),
        fine(json!({ "events": [] })),
        fine(outbox.clone()),
        fine(outbox.clone()),
        no_content(),
        no_content(),
        problem(404, "control_letter_unknown"),
    ]);
    let (ended, said) = at(&server, &["fleet", "quarantine"]).await;
    ended.unwrap();
    let line = said.lines().nth(1).unwrap();
    assert!(line.contains(ID) && line.contains("control_event_untrusted"), "{said}");
    assert!(line.ends_with("not\\u{1b} signed"), "a terminal is not steered: {said}");
    let (_, said) = at(&server, &["fleet", "quarantine"]).await;
    assert_eq!(said, "no event was set aside\n");
    let (_, said) = at(&server, &["fleet", "outbox"]).await;
    let head =
        "3 events wait for the feed, the oldest since 2026-03-01T11:00:00Z; 1 of them it does not take";
    assert_eq!(said.lines().next(), Some(head));
    assert!(said.contains("plugin:board") && said.contains("the feed is full"), "{said}");
    let (_, said) = at(&server, &["fleet", "outbox", "--json"]).await;
    assert_eq!(json_of(&said), outbox);
    at(&server, &["fleet", "outbox", "retry", ID]).await.0.unwrap();
    let (_, said) = at(&server, &["fleet", "outbox", "discard", ID, "--json"]).await;
    assert_eq!(json_of(&said), json!({ "event": ID, "outcome": "discard" }));
    let asked = server.asked();
    asks(&asked[4], "POST", &format!("/v1/fleet/outbox/{ID}/retry"));
    asks(&asked[5], "POST", &format!("/v1/fleet/outbox/{ID}/discard"));
    let error = at(&server, &["fleet", "outbox", "retry", ID]).await.0.unwrap_err();
    assert_eq!((error.exit(), error.next_step()), (Exit::Refused, "do so"));
}
