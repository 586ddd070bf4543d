//! Changes of what stands: signed here, made on the revision that the origin told.

use millrace::cli::Exit;
use millrace::control::changes::{Change, Present};
use millrace::control::{EventBody, Result};
use millrace_tests::control_events::{root_key, running, trust_changed, trusted};

use super::*;
use crate::scripted_host::problem;

type Make = fn(Present<'_>) -> Result<Change>;

#[tokio::test(flavor = "multi_thread")]
async fn c56_c57_each_change_is_a_signed_event_on_what_stands() {
    let desk = Desk::new().await;
    let paused = Desired { state: RunState::Paused, ..running(spec(PLUGIN, "1.0.0", b"1.0.0")) };
    let cases: [(&[&str], Desired, Make); 6] = [
        (&["rollout", "advance"], rollout(Progress::Running), |now| now.advance()),
        (&["rollout", "halt"], rollout(Progress::Running), |now| now.halt()),
        (&["rollout", "rollback"], rollout(Progress::Complete), |now| now.roll_back()),
        (&["fleet", "pause"], rollout(Progress::Running), |now| now.pause()),
        (&["fleet", "resume"], paused, |now| now.resume()),
        (&["fleet", "remove"], rollout(Progress::Halted), |now| now.remove()),
    ];
    for (command, desired, make) in cases {
        let other = about("watch", Kind::Removed, millrace_tests::control_events::removed(), 90);
        let other = other.sign(&release_key()).unwrap();
        let present = standing(desired.clone());
        let server = Scripted::new(vec![stands(&[&present, &other]), taken("plugin:board", 5)]);
        let (ended, said) = desk.ran(&server, &[command, &[PLUGIN, "--reason", "it is time"]].concat()).await;
        ended.unwrap();
        let asked = server.asked();
        asks(&asked[0], "GET", "/v1/fleet/desired");
        assert!(asked[1].head.contains("content-type: application/json"), "{}", asked[1].head);
        let event = desk.event(&asked[1]);
        let unsigned = event.unsigned();
        assert_eq!((unsigned.base_revision, unsigned.revision), (4, 5), "{command:?}");
        assert_eq!((unsigned.actor.as_str(), unsigned.reason.as_str()), ("release.pem", "it is time"));
        let Change { kind, desired: next } =
            make(Present { plugin: PLUGIN, desired: Some(&desired) }).unwrap();
        assert_eq!((event.entity().as_str(), &unsigned.kind), ("plugin:board", &kind));
        assert_eq!(desired_of(&event), &next, "{command:?}");
        assert_eq!(said, format!("plugin:board has revision 5 now: {kind} ({})\n", event.id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_one_shape_and_the_actor_can_be_named() {
    let desk = Desk::new().await;
    let present = standing(rollout(Progress::Running));
    let server = Scripted::new(vec![stands(&[&present]), taken("plugin:board", 5)]);
    let (ended, said) = desk.ran(&server, &["rollout", "halt", PLUGIN, "--actor", "ann", "--json"]).await;
    ended.unwrap();
    let event = desk.event(&server.asked()[1]);
    assert_eq!(event.unsigned().actor, "ann");
    let said: Value = serde_json::from_str(&said).unwrap();
    let expected = json!({
        "entity": "plugin:board", "revision": 5, "repeated": false, "event_id": event.id(),
        "type": "rollout.halted",
    });
    assert_eq!(said, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_before_anything_is_sent() {
    let desk = Desk::new().await;
    for (command, desired, words) in [
        (&["rollout", "advance"], Some(rollout(Progress::Complete)), "its rollout is over"),
        (&["rollout", "halt"], Some(rollout(Progress::Halted)), "halted already"),
        (&["rollout", "rollback"], Some(rollout(Progress::RolledBack)), "rolled back already"),
        (&["fleet", "resume"], Some(rollout(Progress::Complete)), "it is not paused"),
        (&["fleet", "pause"], None, "it is not deployed"),
    ] {
        let present: Vec<ControlEvent> = desired.into_iter().map(standing).collect();
        let server = Scripted::new(vec![stands(&present.iter().collect::<Vec<_>>())]);
        let error = desk.ran(&server, &[&command[..], &[PLUGIN]].concat()).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        assert!(error.sentence().contains(words), "{error}");
        assert!(error.next_step().contains("millrace rollout status board"), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_quicker_is_named_and_not_overwritten() {
    let desk = Desk::new().await;
    let (before, after) = (
        standing(rollout(Progress::Running)),
        standing_at(5, Kind::RolloutHalted, rollout(Progress::Halted)),
    );
    let server =
        Scripted::new(vec![stands(&[&before]), problem(409, "revision_conflict"), stands(&[&after])]);
    let (ended, said) = desk.ran(&server, &["rollout", "advance", PLUGIN]).await;
    let error = ended.unwrap_err();
    assert_eq!((error.exit(), said.as_str()), (Exit::Refused, ""), "{error}");
    for words in [
        "somebody was quicker",
        "revision 5",
        "rollout.halted by ops@example.com: because it is time",
        "made on 4",
    ] {
        assert!(error.sentence().contains(words), "{words}: {error}");
    }
    assert!(error.next_step().contains("`millrace rollout status board`"), "{error}");
    assert!(error.next_step().contains("repeat the command"), "{error}");
    assert_eq!(server.asked().len(), 3, "it is not tried again by itself");
    // Where nobody can say what stands, the refusal is what there is.
    let server = Scripted::new(vec![stands(&[&before]), problem(409, "revision_conflict"), String::new()]);
    let error = desk.ran(&server, &["rollout", "advance", PLUGIN]).await.0.unwrap_err();
    assert!(error.sentence().contains("revision_conflict"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_answer_is_lost_is_sent_again_as_it_is() {
    let desk = Desk::new().await;
    let present = standing(rollout(Progress::Running));
    let repeated = json!({ "entity": "plugin:board", "revision": 5, "repeated": true });
    let server = Scripted::new(vec![
        stands(&[&present]),
        String::new(),
        problem(503, "starting"),
        answer("202 Accepted", "", &repeated),
    ]);
    desk.ran(&server, &["rollout", "halt", PLUGIN]).await.0.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 4);
    desk.event(&asked[1]);
    assert!(asked[1].bytes == asked[2].bytes && asked[2].bytes == asked[3].bytes, "it is one event");

    let lost = vec![stands(&[&present]), String::new(), String::new(), String::new(), String::new()];
    let server = Scripted::new(lost);
    let error = desk.ran(&server, &["rollout", "halt", PLUGIN]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable, "{error}");
    assert!(error.next_step().contains("whether it was taken"), "{error}");
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_role_signs_nothing() {
    let desk = Desk::new().await;
    let list = desk.write("trust.json", &desk.trust().to_json());
    for (arguments, key, words) in [
        (&["rollout", "halt", PLUGIN][..], "build.pem", "is a build key, and a release key"),
        (&["fleet", "remove", PLUGIN], "root.pem", "is a root key, and a release key"),
        (&["fleet", "trust", &list], "release.pem", "is a release key, and a root key"),
    ] {
        let server = Scripted::new(Vec::new());
        let error = at(&server, &[arguments, &["--key", &desk.at(key)]].concat()).await.0.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{error}");
        assert!(error.sentence().contains(words), "{error}");
        assert!(server.asked().is_empty());
    }
    // Without its public part beside it, only the origin can tell.
    fs::remove_file(desk.at("build.pem.pub")).unwrap();
    let present = standing(rollout(Progress::Running));
    let server = Scripted::new(vec![stands(&[&present]), problem(403, "control_event_untrusted")]);
    let key = desk.at("build.pem");
    let error = at(&server, &["rollout", "halt", PLUGIN, "--key", &key]).await.0.unwrap_err();
    assert_eq!((error.exit(), error.next_step()), (Exit::Denied, "do so"), "{error}");
    let event = ControlEvent::parse(&server.asked()[1].body.to_string()).unwrap();
    assert_eq!(event.unsigned().actor, desk.key("build").id(), "an actor has a name in any case");
    let error = at(&server, &["rollout", "halt", PLUGIN, "--key", &desk.at("absent")]).await.0.unwrap_err();
    assert!(error.sentence().contains("cannot be read"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_the_event_to_nobody_who_would_take_it() {
    let desk = Desk::new().await;
    let present = standing(rollout(Progress::Complete));
    let (one, other) =
        (json!({ "version": "2.0.0", "digest": "d2" }), json!({ "version": "1.0.0", "digest": "d1" }));
    let preview = json!({ "hosts": [
        { "host": "h-1", "wave": 1, "now": one, "next": other, "finally": other, "at_once": true },
        { "host": "h-2", "wave": null, "now": null, "next": null, "finally": other, "at_once": false },
        { "host": "h-3", "wave": null, "now": null, "next": null, "finally": null, "at_once": false, "left_alone": true },
    ]});
    let server = Scripted::new(vec![stands(&[&present]), fine(preview.clone())]);
    let (ended, said) = desk.ran(&server, &["rollout", "rollback", PLUGIN, "--dry-run"]).await;
    ended.unwrap();
    let expected = [
        "HOST  WAVE  NOW    NEXT   FINALLY  AT ONCE",
        "h-1      1  2.0.0  1.0.0  1.0.0    yes",
        "h-2      -  -      -      1.0.0    no",
        "h-3      -  -      -      -        left alone",
        "nothing was changed",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    let asked = server.asked();
    asks(&asked[1], "POST", "/v1/fleet/preview");
    let event = ControlEvent::parse(&asked[1].body.to_string()).unwrap();
    assert_eq!((asked.len(), &event.unsigned().kind), (2, &Kind::RolledBack));
    let server = Scripted::new(vec![stands(&[&present]), fine(preview.clone())]);
    let (_, said) = desk.ran(&server, &["rollout", "rollback", PLUGIN, "--dry-run", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), preview);
    let server = Scripted::new(vec![stands(&[&present]), fine(json!({ "hosts": [] }))]);
    let (_, said) = desk.ran(&server, &["fleet", "remove", PLUGIN, "--dry-run"]).await;
    assert_eq!(said, "no host would notice\nnothing was changed\n");
    let server = Scripted::new(vec![stands(&[&present]), fine(json!({ "hosts": [preview["hosts"][2]] }))]);
    let (_, said) = desk.ran(&server, &["fleet", "remove", PLUGIN, "--dry-run"]).await;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "no host would notice"), "{said}");
    assert!(lines[2].starts_with("h-3") && lines[2].ends_with("left alone"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_keys_goes_out_above_all_that_hosts_know() {
    let desk = Desk::new().await;
    let list = TrustStore::new(7, &desk.trust().trusted()).unwrap();
    let file = desk.write("trust.json", &list.to_json());
    let present = trust_changed(trusted(), 3).sign(&root_key()).unwrap();
    let key = desk.at("root.pem");
    for (before, more, base, revision) in
        [(vec![], &[][..], 0, 8), (vec![&present], &[], 3, 8), (vec![&present], &["--revision", "40"], 3, 40)]
    {
        let server = Scripted::new(vec![stands(&before), taken("trust", revision)]);
        let arguments = [&["fleet", "trust", &file, "--key", &key], more].concat();
        let (ended, said) = at(&server, &arguments).await;
        ended.unwrap();
        let event = desk.event(&server.asked()[1]);
        let unsigned = event.unsigned();
        assert_eq!((unsigned.base_revision, unsigned.revision), (base, revision));
        assert_eq!(unsigned.body, EventBody::Trust(list.trusted()));
        assert!(said.contains(&format!("trust has revision {revision} now: trust.changed")), "{said}");
    }
    // A list that nobody could change again is refused here.
    let build = Trusted { keys: vec![desk.key("build").trusted_as(KeyRole::Build, "x")] };
    let file = desk.write("rootless.json", &TrustStore::new(1, &build).unwrap().to_json());
    let server = Scripted::new(vec![stands(&[])]);
    let error = at(&server, &["fleet", "trust", &file, "--key", &key]).await.0.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{error}");
    assert!(error.sentence().contains("no root key"), "{error}");
}
