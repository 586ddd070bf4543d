//! Who may say what, and for how long.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace::control::trust::{KeyRole, TrustLimits, TrustStore};
use millrace::control::{ControlEvent, Kind, Signature, SigningKey, Trusted, UnsignedEvent};
use millrace::event::Micros;
use millrace_tests::control_events::{
    ISSUED, NOW, SECOND, about, build_key, component, deployed, key, release_key, removed, root_key,
    signed_deploy, trust, trust_changed, trusted,
};
use ring::signature::Ed25519KeyPair;
use serde_json::json;

use super::{changed, code_of, golden, parsed};

const DAY: i64 = 24 * 3600 * SECOND;

fn untrusted(store: &TrustStore, event: &ControlEvent) -> String {
    let error = store.check_event(event, NOW).unwrap_err();
    assert!(error.to_string().starts_with("the control event is not trusted: "), "{error}");
    assert_eq!(code_of(store.check_event(event, NOW)), "control_event_untrusted");
    error.to_string()
}

fn signed(by: &SigningKey) -> ControlEvent {
    deployed("board", "1.0.0", 1).sign(by).unwrap()
}

#[test]
fn m11_w3_wrong_signer_is_refused() {
    let error = untrusted(&trust(), &signed(&key(9)));
    assert!(error.contains(key(9).id()) && error.contains("not known"), "{error}");
    // It says that it is another's.
    let text = changed(&signed(&key(9)).to_json(), |json| {
        json["signatures"][0]["key"] = json!(release_key().id());
    });
    assert!(untrusted(&trust(), &parsed(&text)).contains("did not sign this content"));
    // Another's signature for another event.
    let other = signed_deploy("board", "1.0.1", 1).signatures()[0].clone();
    let text = changed(&signed(&key(9)).to_json(), |json| {
        json["signatures"] = json!([serde_json::to_value(&other).unwrap()]);
    });
    assert!(untrusted(&trust(), &parsed(&text)).contains("did not sign this content"));
}

#[test]
fn unsigned_is_refused_unless_the_host_is_insecure() {
    let event = deployed("board", "1.0.0", 1).without_signature().unwrap();
    assert!(untrusted(&trust(), &event).contains("not signed"));
    assert!(untrusted(&TrustStore::default(), &signed(&release_key())).contains("not known"));
    let insecure = TrustStore::default().insecure();
    assert!(insecure.is_insecure() && !trust().is_insecure());
    insecure.check_event(&event, NOW).unwrap();
    let unsigned = component("board", b"x");
    insecure.check_artifact("other", &unsigned, ISSUED).unwrap();
    // Only signatures are not looked at.
    let late = Micros(ISSUED - DAY);
    assert_eq!(code_of(insecure.check_event(&event, late)), "control_event_out_of_time");
}

#[test]
fn m10_a_tampered_event_is_refused() {
    let paths = [
        ("/plugin", json!("other")),
        ("/revision", json!(9)),
        ("/base_revision", json!(4)),
        ("/event_id", json!("evt_01JH0000000000000000000099")),
        ("/issued_at", json!("2026-03-01T12:00:07.000000Z")),
        ("/actor", json!("somebody")),
        ("/reason", json!("")),
        ("/must_understand", json!(true)),
        ("/desired/spec/component/bytes", json!(182_045)),
        ("/desired/spec/component/signatures", json!([])),
    ];
    for (path, value) in paths {
        let text = changed(golden("plugin.paused"), |json| *json.pointer_mut(path).unwrap() = value);
        assert!(untrusted(&trust(), &parsed(&text)).contains("did not sign this content"), "{path}");
    }
    let resumed = changed(golden("plugin.paused"), |json| {
        json["type"] = json!("plugin.resumed");
        json["desired"]["state"] = json!("running");
    });
    untrusted(&trust(), &parsed(&resumed));
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let event = signed(&key(9)).signed_by(&build_key()).unwrap().signed_by(&release_key()).unwrap();
    assert_eq!(event.signatures().len(), 3);
    trust().check_event(&event, NOW).unwrap();
    // Again with the same key is the same signature.
    assert_eq!(event.signed_by(&release_key()).unwrap().signatures().len(), 3);
    let without = signed(&key(9)).signed_by(&build_key()).unwrap();
    let error = untrusted(&trust(), &without);
    assert!(error.contains("is not known here") && error.contains("is a build key"), "{error}");
}

#[test]
fn a_key_has_the_rights_of_its_role_and_no_others() {
    let list = trust_changed(trusted(), 1);
    for (signer, releases, changes, builds) in [
        (root_key(), false, true, false),
        (release_key(), true, false, false),
        (build_key(), false, false, true),
    ] {
        let id = signer.id().to_owned();
        assert_eq!(trust().check_event(&signed(&signer), NOW).is_ok(), releases, "{id}");
        assert_eq!(trust().check_event(&list.sign(&signer).unwrap(), NOW).is_ok(), changes, "{id}");
        let mut artifact = component("board", b"x");
        artifact.signatures.clear();
        let artifact = artifact.built_by("board", &signer);
        assert_eq!(trust().check_artifact("board", &artifact, ISSUED).is_ok(), builds, "{id}");
    }
}

#[test]
fn an_artifact_is_vouched_for_as_what_it_is() {
    let good = component("board", b"x");
    trust().check_artifact("board", &good, ISSUED).unwrap();
    assert_eq!(code_of(trust().check_artifact("other", &good, ISSUED)), "control_event_untrusted");
    let mut longer = good.clone();
    longer.bytes += 1;
    assert_eq!(code_of(trust().check_artifact("board", &longer, ISSUED)), "control_event_untrusted");
    let mut another = component("board", b"y");
    another.signatures = good.signatures.clone();
    assert_eq!(code_of(trust().check_artifact("board", &another, ISSUED)), "control_event_untrusted");
    another.signatures.clear();
    assert_eq!(code_of(trust().check_artifact("board", &another, ISSUED)), "control_event_untrusted");
}

/// The content is the same each time; only the line before it says what it is.
#[test]
fn a_signature_for_one_thing_is_none_for_another() {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
    let content = deployed("board", "1.0.0", 1).without_signature().unwrap();
    let with = |line: &[u8]| {
        let signature = pair.sign(&[line, &content.signed_bytes()].concat());
        let signature =
            Signature { key: release_key().id().into(), signature: STANDARD.encode(signature.as_ref()) };
        let text = changed(&content.to_json(), |json| {
            json["signatures"] = json!([serde_json::to_value(&signature).unwrap()]);
        });
        parsed(&text)
    };
    trust().check_event(&with(b"millrace.event.v1\n"), NOW).unwrap();
    for line in [&b"millrace.build.v1\n"[..], b"", b"millrace.event.v2\n", b"millrace.event.v1"] {
        untrusted(&trust(), &with(line));
    }
}

#[test]
fn m12_expired_event_is_refused_as_news_and_kept_in_a_snapshot() {
    let event = UnsignedEvent { expires_at: Some(ISSUED + 10 * SECOND), ..deployed("board", "1.0.0", 1) };
    let event = event.sign(&release_key()).unwrap();
    let at = |time: i64| trust().check_event(&event, Micros(time));
    at(ISSUED).unwrap();
    at(ISSUED + 10 * SECOND - 1).unwrap();
    assert_eq!(code_of(at(ISSUED + 10 * SECOND)), "control_event_out_of_time");
    trust().check_kept(&event).unwrap();
    let forged = signed(&key(9));
    assert_eq!(code_of(trust().check_kept(&forged)), "control_event_untrusted");
}

#[test]
fn clocks_may_differ_by_so_much_and_no_more() {
    let event = signed_deploy("board", "1.0.0", 1);
    let skew = 300 * SECOND;
    trust().check_event(&event, Micros(ISSUED - skew)).unwrap();
    let beyond = Micros(ISSUED - skew - 1);
    assert_eq!(code_of(trust().check_event(&event, beyond)), "control_event_out_of_time");
    let limits = TrustLimits { clock_skew_max: Duration::from_secs(301), ..TrustLimits::default() };
    trust().with_limits(limits).check_event(&event, beyond).unwrap();
    // A very old event has not grown worse: its revision says whether it is news.
    trust().check_event(&event, Micros(ISSUED + 3_000 * DAY)).unwrap();
}

#[test]
fn an_expired_key_counts_for_what_was_issued_in_its_time() {
    let mut list = trusted();
    list.keys[1].expires_at = Some(ISSUED + DAY);
    list.keys[2].expires_at = Some(ISSUED + DAY);
    let store = TrustStore::new(0, &list).unwrap();
    let issued = |at: i64| {
        let event = UnsignedEvent { issued_at: at, ..deployed("board", "1.0.0", 1) };
        event.sign(&release_key()).unwrap()
    };
    let before = issued(ISSUED + DAY);
    let after = issued(ISSUED + DAY + 1);
    store.check_event(&before, Micros(ISSUED + DAY)).unwrap();
    assert_eq!(code_of(store.check_event(&after, Micros(ISSUED + 2 * DAY))), "control_event_untrusted");
    assert_eq!(code_of(store.check_kept(&after)), "control_event_untrusted");
    // Whoever finds the key later can write an old date: it is news no more.
    store.check_event(&before, Micros(ISSUED + 8 * DAY)).unwrap();
    let late = Micros(ISSUED + 8 * DAY + 1);
    assert_eq!(code_of(store.check_event(&before, late)), "control_event_untrusted");
    store.check_kept(&before).unwrap();
    // A build counts if it was released in time.
    let built = component("board", b"x");
    store.check_artifact("board", &built, ISSUED + DAY).unwrap();
    let late = store.check_artifact("board", &built, ISSUED + DAY + 1);
    assert_eq!(code_of(late), "control_event_untrusted");
}

#[test]
fn a_revoked_key_never_counts() {
    let list = trust().revoking(release_key().id()).unwrap();
    let store = trust().after(&trust_changed(list, 1).sign(&root_key()).unwrap()).unwrap();
    assert!(untrusted(&store, &signed(&release_key())).contains("is revoked"));
    assert_eq!(code_of(store.check_kept(&signed(&release_key()))), "control_event_untrusted");
    let list = store.revoking(build_key().id()).unwrap();
    let store = TrustStore::new(2, &list).unwrap();
    let built = component("board", b"x");
    assert_eq!(code_of(store.check_artifact("board", &built, ISSUED)), "control_event_untrusted");
    assert_eq!(store.keys().filter(|(_, key)| key.revoked).count(), 2, "they stay in the list");
    assert_eq!(code_of(store.revoking("ed25519:0000000000000000")), "control_settings_invalid");
}

#[test]
fn a_list_is_replaced_by_a_root_key_of_the_present_one() {
    let new_root = || key(5);
    let with = |root: &SigningKey| {
        let mut keys = vec![root.trusted_as(KeyRole::Root, "the new safe")];
        keys.extend(trusted().keys.into_iter().skip(1));
        Trusted { keys }
    };
    let rotation = trust_changed(with(&new_root()), 1);
    // The new key cannot let itself in.
    untrusted(&trust(), &rotation.sign(&new_root()).unwrap());
    let rotation = rotation.sign(&root_key()).unwrap();
    trust().check_event(&rotation, NOW).unwrap();
    let store = trust().after(&rotation).unwrap();
    assert_eq!(store.revision(), 1);
    // From then on only the new one counts.
    let next = trust_changed(with(&key(6)), 2);
    untrusted(&store, &next.sign(&root_key()).unwrap());
    store.check_event(&next.sign(&new_root()).unwrap(), NOW).unwrap();
}

#[test]
fn m13_replayed_older_list_is_refused() {
    let first = trust_changed(trusted(), 1).sign(&root_key()).unwrap();
    let revoked = trust().revoking(release_key().id()).unwrap();
    let second = trust_changed(revoked, 2).sign(&root_key()).unwrap();
    let store = trust().after(&first).unwrap().after(&second).unwrap();
    assert_eq!(store.revision(), 2);
    for past in [&first, &second] {
        assert!(store.is_past(past));
        untrusted(&store, past);
        assert_eq!(code_of(store.check_kept(past)), "control_event_untrusted");
        assert_eq!(store.after(past).unwrap(), store);
    }
    assert!(untrusted(&store, &signed(&release_key())).contains("is revoked"));
    assert!(!store.is_past(&signed(&release_key())), "revisions of plugins are counted apart");
}

#[test]
fn the_higher_revision_of_file_and_feed_holds() {
    let event = trust_changed(trust().revoking(release_key().id()).unwrap(), 3);
    let event = event.sign(&root_key()).unwrap();
    let limits = TrustLimits { key_grace: Duration::ZERO, ..TrustLimits::default() };
    let file = |revision| TrustStore::new(revision, &trusted()).unwrap().with_limits(limits);
    let after = file(2).after(&event).unwrap();
    assert_eq!(after, TrustStore::parse(&after.to_json()).unwrap().with_limits(limits));
    assert!(after.keys().any(|(_, key)| key.revoked));
    assert_eq!(file(3).after(&event).unwrap(), file(3));
    let other = about("board", Kind::Removed, removed(), 9).sign(&release_key()).unwrap();
    assert_eq!(file(3).after(&other).unwrap(), file(3));
    assert!(file(2).insecure().after(&event).unwrap().is_insecure(), "that is the host's, not the list's");
}
