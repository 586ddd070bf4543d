//! Processes and channels over HTTP: who does what, and what is refused.

mod append;
mod bounds;
mod follow;
mod lives;
mod read;
mod refused;
mod settings;

use millrace::channels::ChannelLimits;
use millrace::gateway::{AuthOptions, Right, TokenOptions};
use serde_json::{Value, json};

use super::issuer::{Signer, claims_with, get, rig_of, set};
use super::rig::{Answer, Rig};

pub(super) const JOB: &str = "/v1/processes/job-1";
pub(super) const ENTRIES: &str = "/v1/processes/job-1/channels/chat/entries";

/// Sam submits, eve executes, oz only reads, kim has nothing to do with it, boss runs the host, pub only publishes, all of
/// tenant alpha; rival has every right in tenant beta.
fn parties() -> AuthOptions {
    let token = |name: &str, tenant: &str, rights: &[Right]| TokenOptions {
        token: format!("token-of-{name}"),
        tenant: tenant.into(),
        rights: rights.into(),
        name: Some(name.into()),
        tables: None,
    };
    let (both, all) = ([Right::Publish, Right::Read], [Right::Publish, Right::Read, Right::Admin]);
    AuthOptions {
        tokens: vec![
            token("sam", "alpha", &both),
            token("eve", "alpha", &both),
            token("kim", "alpha", &both),
            token("oz", "alpha", &[Right::Read]),
            token("pub", "alpha", &[Right::Publish]),
            token("boss", "alpha", &all),
            token("rival", "beta", &all),
        ],
        ..AuthOptions::default()
    }
}

pub(super) async fn rig() -> Rig {
    rig_with(ChannelLimits::default()).await
}

pub(super) async fn rig_with(limits: ChannelLimits) -> Rig {
    Rig::with_channels(limits, |options| options.auth = parties()).await
}

pub(super) async fn send(rig: &Rig, method: &str, path: &str, who: &str, body: &str) -> Answer {
    let bearer = format!("Bearer token-of-{who}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    rig.send(method, path, &headers, body.as_bytes()).await
}

/// What was asked for came.
#[track_caller]
pub(super) fn good(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    answer.json()
}

/// Makes job-1 of sam, executed by eve and observed by oz, with a channel.
pub(super) async fn job(rig: &Rig, channel: &Value) {
    let body = json!({ "executor": "eve", "observers": ["oz"], "channels": [channel] });
    good(&send(rig, "PUT", JOB, "sam", &body.to_string()).await, 201);
}

pub(super) async fn append(rig: &Rig, who: &str, entry: &Value) -> Answer {
    send(rig, "POST", ENTRIES, who, &entry.to_string()).await
}

/// One entry of data.
pub(super) async fn say(rig: &Rig, who: &str, sequence: u64, text: &str) -> Value {
    good(&append(rig, who, &json!({ "sequence": sequence, "text": text })).await, 201)
}

/// Where a page says to go on: the position behind the incarnation.
pub(super) fn next(page: &Value) -> Option<u64> {
    page["next"].as_str()?.split_once('.')?.1.parse().ok()
}

pub(super) fn positions(page: &Value) -> Vec<u64> {
    let entries = page["entries"].as_array().expect("entries");
    entries.iter().map(|entry| entry["position"].as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn a_process_is_made_once_and_described_to_those_whom_it_concerns() {
    let rig = rig().await;
    let body = json!({
        "executor": "eve", "observers": ["oz"],
        "channels": ["chat", { "name": "progress", "gaps": "report", "full": "drop_oldest", "entries_max": 7 }],
    });
    let made = good(&send(&rig, "PUT", JOB, "sam", &body.to_string()).await, 201);
    assert_eq!(
        (&made["submitter"], &made["executor"], &made["epoch"]),
        (&json!("sam"), &json!("eve"), &json!(1))
    );
    assert_eq!((&made["role"], &made["closed"]), (&json!("submitter"), &Value::Null));
    let channels = made["channels"].as_array().expect("channels");
    assert_eq!(channels.len(), 2, "{made}");
    assert_eq!((&channels[0]["id"], &channels[0]["gaps"]), (&json!("job-1_chat"), &json!("hold")));
    assert_eq!((&channels[1]["full"], &channels[1]["entries_max"]), (&json!("drop_oldest"), &json!(7)));
    assert_eq!(channels[1]["bytes_max"], ChannelLimits::default().bytes_max);
    let again = good(&send(&rig, "PUT", JOB, "sam", &body.to_string()).await, 200);
    assert_eq!(again, made, "the same request again");
    for (who, other) in [("kim", body.clone()), ("sam", json!({ "executor": "kim", "observers": ["oz"] }))] {
        send(&rig, "PUT", JOB, who, &other.to_string()).await.is_problem(409, "process_exists");
    }
    for (who, role) in [("sam", "submitter"), ("eve", "executor"), ("oz", "observer"), ("boss", "admin")] {
        let seen = good(&send(&rig, "GET", JOB, who, "").await, 200);
        assert_eq!(seen["role"], role, "{seen}");
        assert_eq!(seen["channels"][0]["role"], role, "{seen}");
    }
    let as_eve = good(&send(&rig, "GET", &format!("{JOB}?as=eve"), "boss", "").await, 200);
    assert_eq!(as_eve["role"], "executor");
    send(&rig, "GET", JOB, "kim", "").await.is_problem(403, "channel_forbidden");
    send(&rig, "GET", JOB, "pub", "").await.is_problem(403, "right_missing");
    send(&rig, "GET", &format!("{JOB}?as=eve"), "sam", "").await.is_problem(403, "right_missing");
    send(&rig, "GET", "/v1/processes/job-2", "sam", "").await.is_problem(404, "process_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_list_has_what_the_caller_may_see_page_by_page() {
    let rig = rig().await;
    for (name, who, body) in [
        ("a", "sam", json!({})),
        ("b", "kim", json!({ "executor": "eve" })),
        ("c", "kim", json!({ "observers": ["sam"] })),
        ("d", "kim", json!({ "channels": ["chat"] })),
        ("e", "sam", json!({ "executor": "eve" })),
    ] {
        let path = format!("/v1/processes/{name}");
        good(&send(&rig, "PUT", &path, who, &body.to_string()).await, 201);
    }
    let one = json!({ "executor": "sam" }).to_string();
    good(&send(&rig, "POST", "/v1/processes/d/channels/chat/assign", "kim", &one).await, 200);
    let names = |list: &Value| -> Vec<String> {
        let all = list["processes"].as_array().expect("a list").iter();
        all.map(|one| one["process"].as_str().expect("a name").to_owned()).collect()
    };
    for (who, seen) in
        [("boss", "abcde"), ("sam", "acde"), ("kim", "bcd"), ("eve", "be"), ("oz", ""), ("rival", "")]
    {
        let list = good(&send(&rig, "GET", "/v1/processes", who, "").await, 200);
        assert_eq!((names(&list).concat(), &list["next"]), (seen.to_owned(), &Value::Null), "{who}");
    }
    let list = good(&send(&rig, "GET", "/v1/processes?as=eve", "boss", "").await, 200);
    assert_eq!(names(&list), ["b", "e"]);
    let (mut path, mut seen) = ("/v1/processes?limit=2".to_owned(), Vec::new());
    loop {
        let list = good(&send(&rig, "GET", &path, "sam", "").await, 200);
        assert!(names(&list).len() <= 2, "{list}");
        seen.extend(names(&list));
        let Some(next) = list["next"].as_str() else { break };
        path = format!("/v1/processes?limit=2&after={next}");
    }
    assert_eq!(seen, ["a", "c", "d", "e"]);
    for path in ["?limit=0", "?limit=1001"] {
        let answer = send(&rig, "GET", &format!("/v1/processes{path}"), "sam", "").await;
        answer.is_problem(400, "channel_option_invalid");
    }
    send(&rig, "GET", "/v1/processes?after=a_b", "sam", "").await.is_problem(400, "channel_name_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn another_tenant_learns_nothing_and_does_nothing() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "a secret").await;
    for (method, rest, body) in [
        ("GET", "", ""),
        ("DELETE", "", ""),
        ("POST", "/observers", "{\"observers\":[\"rival\"]}"),
        ("POST", "/assign", "{\"executor\":\"rival\"}"),
        ("POST", "/unassign", ""),
        ("POST", "/close", "{\"outcome\":\"failed\"}"),
        ("GET", "/channels/chat", ""),
        ("PUT", "/channels/chat", ""),
        ("POST", "/channels/chat/assign", "{\"executor\":\"rival\"}"),
        ("GET", "/channels/chat/entries", ""),
        ("GET", "/channels/chat/entries?as=sam", ""),
        ("POST", "/channels/chat/entries", "{\"text\":\"x\"}"),
        ("POST", "/channels/chat/entries?as=sam", "{\"text\":\"x\"}"),
    ] {
        let answer = send(&rig, method, &format!("{JOB}{rest}"), "rival", body).await;
        assert_eq!(answer.status, 404, "{method} {rest}: {}", answer.text());
        let none = send(&rig, method, &format!("/v1/processes/job-2{rest}"), "rival", body).await;
        assert_eq!(answer.text(), none.text().replace("job-2", "job-1"), "as if there were none");
    }
    good(&send(&rig, "PUT", JOB, "rival", "{\"channels\":[\"chat\"]}").await, 201);
    assert_eq!(positions(&good(&send(&rig, "GET", ENTRIES, "rival", "").await, 200)), [0_u64; 0]);
    assert_eq!(positions(&good(&send(&rig, "GET", ENTRIES, "eve", "").await, 200)), [1]);
    rig.stop().await;
}

#[tokio::test]
async fn each_role_may_do_its_part_only() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let (assign, close) = ("{\"executor\":\"eve\"}", "{\"outcome\":\"failed\"}");
    for (who, method, rest, body) in [
        ("oz", "POST", "/channels/chat/entries", "{\"text\":\"x\"}"),
        ("oz", "POST", "/close", close),
        ("oz", "POST", "/unassign", ""),
        ("oz", "DELETE", "", ""),
        ("oz", "PUT", "/channels/other", ""),
        ("pub", "GET", "/channels/chat/entries", ""),
        ("pub", "GET", "/channels/chat", ""),
    ] {
        send(&rig, method, &format!("{JOB}{rest}"), who, body).await.is_problem(403, "right_missing");
    }
    for (who, method, rest, body) in [
        ("eve", "DELETE", "", ""),
        ("eve", "POST", "/assign", assign),
        ("eve", "POST", "/observers", "{\"observers\":[]}"),
        ("eve", "PUT", "/channels/other", ""),
        ("eve", "POST", "/channels/chat/assign", "{\"executor\":null}"),
        ("kim", "DELETE", "", ""),
        ("kim", "POST", "/assign", assign),
        ("kim", "POST", "/unassign", ""),
        ("kim", "POST", "/close", close),
        ("kim", "PUT", "/channels/other", ""),
        ("kim", "GET", "/channels/chat", ""),
        ("kim", "GET", "/channels/chat/entries", ""),
        ("kim", "POST", "/channels/chat/entries", "{\"text\":\"x\"}"),
        ("pub", "POST", "/channels/chat/entries", "{\"text\":\"x\"}"),
        // Whoever runs the host is no party for it.
        ("boss", "POST", "/channels/chat/entries", "{\"text\":\"x\"}"),
    ] {
        send(&rig, method, &format!("{JOB}{rest}"), who, body).await.is_problem(403, "channel_forbidden");
    }
    let observers = json!({ "observers": ["kim"] }).to_string();
    let seen = good(&send(&rig, "POST", &format!("{JOB}/observers"), "sam", &observers).await, 200);
    assert_eq!(seen["observers"], json!(["kim"]));
    good(&send(&rig, "GET", ENTRIES, "kim", "").await, 200);
    append(&rig, "kim", &json!({ "text": "x" })).await.is_problem(403, "channel_forbidden");
    send(&rig, "GET", ENTRIES, "oz", "").await.is_problem(403, "channel_forbidden");
    rig.stop().await;
}

#[tokio::test]
async fn a_new_epoch_ends_the_rights_of_the_former_one() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "eve", 1, "mine").await;
    let assigned = send(&rig, "POST", &format!("{JOB}/assign"), "sam", "{\"executor\":\"kim\"}").await;
    let assigned = good(&assigned, 200);
    assert_eq!((&assigned["executor"], &assigned["epoch"]), (&json!("kim"), &json!(2)));
    let refused = append(&rig, "eve", &json!({ "sequence": 2, "text": "late" })).await;
    let refused = refused.is_problem(403, "channel_access_revoked");
    assert_eq!((&refused["epoch"], &refused["now"]), (&json!(1), &json!(2)));
    send(&rig, "GET", ENTRIES, "eve", "").await.is_problem(403, "channel_access_revoked");
    let answer = say(&rig, "kim", 1, "the same number in another epoch").await;
    assert_eq!((&answer["position"], &answer["epoch"]), (&json!(2), &json!(2)));
    // The same party again is another executor: what is under way of the former one is refused by its epoch.
    good(&send(&rig, "POST", &format!("{JOB}/assign"), "sam", "{\"executor\":\"kim\"}").await, 200);
    let path = format!("{ENTRIES}?epoch=2");
    let late = send(&rig, "POST", &path, "kim", "{\"sequence\":2,\"text\":\"late\"}").await;
    late.is_problem(403, "channel_access_revoked");
    let path = format!("{ENTRIES}?epoch=3");
    good(&send(&rig, "POST", &path, "kim", "{\"sequence\":1,\"text\":\"x\"}").await, 201);
    let left = good(&send(&rig, "POST", &format!("{JOB}/unassign"), "kim", "").await, 200);
    assert_eq!((&left["executor"], &left["epoch"]), (&Value::Null, &json!(4)));
    append(&rig, "kim", &json!({ "text": "x" })).await.is_problem(403, "channel_access_revoked");
    let path = format!("{JOB}/channels/chat/assign");
    let one = good(&send(&rig, "POST", &path, "sam", "{\"executor\":\"eve\"}").await, 200);
    assert_eq!((&one["executor"], &one["epoch"]), (&json!("eve"), &json!(5)));
    assert_eq!(say(&rig, "eve", 1, "back").await["epoch"], 5);
    let one = good(&send(&rig, "POST", &path, "sam", "{\"executor\":null}").await, 200);
    assert_eq!(one["executor"], Value::Null);
    append(&rig, "eve", &json!({ "text": "x" })).await.is_problem(403, "channel_access_revoked");
    let senders = good(&send(&rig, "GET", &format!("{JOB}/channels/chat"), "sam", "").await, 200);
    let epochs: Vec<_> =
        senders["senders"].as_array().expect("senders").iter().map(|s| &s["epoch"]).collect();
    assert_eq!(epochs, [1, 2, 3, 5]);
    rig.stop().await;
}

#[tokio::test]
async fn a_closed_process_takes_nothing_more_and_can_be_read_until_it_is_removed() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    say(&rig, "sam", 1, "hello").await;
    let close = format!("{JOB}/close");
    let body = json!({ "outcome": "failed", "reason": "no more paper" }).to_string();
    let closed = good(&send(&rig, "POST", &close, "eve", &body).await, 200);
    assert_eq!(
        (&closed["closed"]["outcome"], &closed["closed"]["reason"]),
        (&json!("failed"), &json!("no more paper"))
    );
    let again = good(&send(&rig, "POST", &close, "sam", "{\"outcome\":\"success\"}").await, 200);
    assert_eq!(again["closed"], closed["closed"], "how it ended first");
    append(&rig, "sam", &json!({ "sequence": 2, "text": "x" })).await.is_problem(409, "process_closed");
    let repeat = good(&append(&rig, "sam", &json!({ "sequence": 1, "text": "hello" })).await, 200);
    assert_eq!((&repeat["position"], &repeat["repeated"]), (&json!(1), &json!(true)));
    let page = good(&send(&rig, "GET", ENTRIES, "oz", "").await, 200);
    assert_eq!((positions(&page), &page["closed"]), (vec![1], &json!("failed")));
    let observers = format!("{JOB}/observers");
    good(&send(&rig, "POST", &observers, "sam", "{\"observers\":[]}").await, 200);
    assert_eq!(send(&rig, "GET", ENTRIES, "oz", "").await.status, 403, "it reads no more");
    for rest in ["/assign", "/channels/other"] {
        let (method, body) = match rest {
            "/assign" => ("POST", "{\"executor\":\"eve\"}"),
            _ => ("PUT", ""),
        };
        send(&rig, method, &format!("{JOB}{rest}"), "sam", body).await.is_problem(409, "process_closed");
    }
    good(&send(&rig, "PUT", &format!("{JOB}/channels/chat"), "sam", "").await, 200);
    assert_eq!(send(&rig, "DELETE", JOB, "sam", "").await.status, 204);
    send(&rig, "DELETE", JOB, "sam", "").await.is_problem(404, "process_unknown");
    send(&rig, "GET", ENTRIES, "sam", "").await.is_problem(404, "channel_unknown");
    good(&send(&rig, "PUT", JOB, "kim", "").await, 201);
    assert_eq!(send(&rig, "DELETE", JOB, "boss", "").await.status, 204, "whoever runs the host may");
    rig.stop().await;
}

#[tokio::test]
async fn a_channel_is_made_once_and_says_where_its_senders_stand() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let path = format!("{JOB}/channels/log");
    let body =
        json!({ "gaps": "arrival", "full": "archive", "entries_max": 5, "bytes_max": 1_000 }).to_string();
    let made = good(&send(&rig, "PUT", &path, "sam", &body).await, 201);
    assert_eq!((&made["role"], &made["subscribers"]), (&json!("submitter"), &json!(0)));
    for same in ["", "{}", "{\"gaps\":\"arrival\"}", body.as_str()] {
        good(&send(&rig, "PUT", &path, "sam", same).await, 200);
    }
    for other in ["{\"gaps\":\"hold\"}", "{\"entries_max\":6}"] {
        send(&rig, "PUT", &path, "sam", other).await.is_problem(409, "channel_exists");
    }
    let twice = json!({ "channels": ["a", "a"] }).to_string();
    send(&rig, "PUT", "/v1/processes/twice", "sam", &twice).await.is_problem(409, "channel_exists");
    send(&rig, "GET", "/v1/processes/twice", "sam", "").await.is_problem(404, "process_unknown");
    let entries = format!("{path}/entries");
    for (sequence, entry_type) in [(1, "data"), (2, "data"), (5, "data"), (4, "data")] {
        let entry = json!({ "sequence": sequence, "type": entry_type, "text": "four" }).to_string();
        good(&send(&rig, "POST", &entries, "eve", &entry).await, 201);
    }
    good(&send(&rig, "POST", &entries, "sam", "{\"sequence\":1,\"type\":\"end\"}").await, 201);
    let seen = good(&send(&rig, "GET", &path, "oz", "").await, 200);
    assert_eq!(
        seen["senders"],
        json!([
            { "senderid": "eve", "epoch": 1, "sequence": 2, "highest": 5, "ended": null },
            { "senderid": "sam", "epoch": 0, "sequence": 1, "highest": 1, "ended": "end" },
        ])
    );
    assert_eq!((&seen["newest"], &seen["oldest"], &seen["entries"]), (&json!(5), &json!(1), &json!(5)));
    assert_eq!(
        (&seen["bytes"], &seen["archive_bytes"], &seen["dropped"]),
        (&json!(16), &json!(0), &json!(0))
    );
    assert_eq!((&seen["role"], &seen["closed"]), (&json!("observer"), &Value::Null));
    rig.stop().await;
}

#[tokio::test]
async fn wrong_requests_about_processes_are_refused_by_name() {
    let rig = rig().await;
    job(&rig, &json!("chat")).await;
    let new = "/v1/processes/new".to_owned();
    let at = |rest: &str| format!("{JOB}{rest}");
    let long = "x".repeat(129);
    let many = json!({ "observers": (0..33).map(|n| format!("o{n}")).collect::<Vec<_>>() }).to_string();
    let reason = json!({ "outcome": "success", "reason": "x".repeat(1_025) }).to_string();
    let large = json!({ "executor": "x".repeat(300_000) }).to_string();
    for (method, path, body, status, code) in [
        ("PUT", new.clone(), "[]", 400, "json_malformed"),
        ("PUT", new.clone(), "{", 400, "json_malformed"),
        ("PUT", new.clone(), "{\"submitter\":\"eve\"}", 400, "json_malformed"),
        ("PUT", new.clone(), "{\"channels\":[7]}", 400, "json_malformed"),
        ("PUT", new.clone(), "{\"channels\":[{\"gaps\":\"hold\"}]}", 400, "json_malformed"),
        ("PUT", new.clone(), "{\"channels\":[{\"name\":\"a\",\"entries_max\":1.5}]}", 400, "json_malformed"),
        (
            "PUT",
            new.clone(),
            "{\"channels\":[{\"name\":\"a\",\"gaps\":\"maybe\"}]}",
            400,
            "channel_option_invalid",
        ),
        (
            "PUT",
            new.clone(),
            "{\"channels\":[{\"name\":\"a\",\"full\":\"maybe\"}]}",
            400,
            "channel_option_invalid",
        ),
        (
            "PUT",
            new.clone(),
            "{\"channels\":[{\"name\":\"a\",\"entries_max\":0}]}",
            400,
            "channel_option_invalid",
        ),
        (
            "PUT",
            new.clone(),
            "{\"channels\":[{\"name\":\"a\",\"bytes_max\":999999999999}]}",
            400,
            "channel_option_invalid",
        ),
        ("PUT", new.clone(), "{\"channels\":[\"a b\"]}", 400, "channel_name_invalid"),
        ("PUT", new.clone(), "{\"executor\":\"\"}", 400, "channel_name_invalid"),
        ("PUT", new.clone(), "{\"observers\":[\"a\\u0000\"]}", 400, "channel_name_invalid"),
        ("PUT", new.clone(), many.as_str(), 400, "process_observers_max"),
        ("PUT", new.clone(), large.as_str(), 413, "channel_request_bytes_max"),
        ("PUT", format!("{new}?epoch=1"), "", 400, "parameter_unknown"),
        ("PUT", format!("{new}?as=eve"), "", 403, "right_missing"),
        ("PUT", "/v1/processes/a_b".to_owned(), "", 400, "channel_name_invalid"),
        ("PUT", format!("/v1/processes/{long}"), "", 400, "channel_name_invalid"),
        ("GET", "/v1/processes/a%00b".to_owned(), "", 400, "channel_name_invalid"),
        ("PUT", at("/channels/-a"), "", 400, "channel_name_invalid"),
        ("GET", at("/channels/other"), "", 404, "channel_unknown"),
        ("POST", at("/channels/other/assign"), "{\"executor\":null}", 404, "channel_unknown"),
        ("POST", at("/channels/chat/assign"), "{}", 400, "json_malformed"),
        ("POST", at("/assign"), "", 400, "json_malformed"),
        ("POST", at("/assign"), "{\"executor\":null}", 400, "json_malformed"),
        ("POST", at("/observers"), "{}", 400, "json_malformed"),
        ("POST", at("/close"), "", 400, "json_malformed"),
        ("POST", at("/close"), "{\"outcome\":\"perhaps\"}", 400, "channel_option_invalid"),
        ("POST", at("/close"), reason.as_str(), 413, "channel_reason_bytes_max"),
        ("POST", at(""), "", 405, "method_not_allowed"),
        ("DELETE", at("/channels/chat"), "", 405, "method_not_allowed"),
    ] {
        send(&rig, method, &path, "sam", body).await.is_problem(status, code);
    }
    send(&rig, "GET", &new, "sam", "").await.is_problem(404, "process_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_token_that_names_nobody_takes_no_part_and_a_long_name_is_not_cut_to_anothers() {
    let signer = Signer::secret();
    let rig = rig_of(&set(&[signer.jwk("k")]), |_| {}).await;
    let of = |subject: Value| {
        let changed = json!({ "sub": subject, "rights": ["publish", "read"] });
        signer.token("k", &claims_with(&changed))
    };
    let make = async |token: &str, process: &str| {
        let bearer = format!("Bearer {token}");
        let path = format!("/v1/processes/{process}");
        rig.send("PUT", &path, &[("Authorization", &bearer)], b"").await
    };
    for nobody in [Value::Null, json!(""), json!("x".repeat(257)), json!("a\nb")] {
        make(&of(nobody), "none").await.is_problem(403, "channel_party_missing");
    }
    let (one, other) =
        (of(json!(format!("{}1", "x".repeat(220)))), of(json!(format!("{}2", "x".repeat(220)))));
    assert_eq!(make(&one, "mine").await.status, 201);
    make(&other, "mine").await.is_problem(409, "process_exists");
    get(&rig, "/v1/processes/mine", &other).await.is_problem(403, "channel_forbidden");
    assert_eq!(get(&rig, "/v1/processes/mine", &one).await.json()["role"], "submitter");
    rig.stop().await;
}
