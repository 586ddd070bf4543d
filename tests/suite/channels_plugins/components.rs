//! The same over the border of a component: grants, the sample as it ships, and what an entry is known by.

use millrace::channels::{ChannelId, EntryType};
use millrace::checkpoints::{AppendCause, ChannelGrant, EffectBatch, EffectKind, EffectRecord};
use millrace::error::Classify;
use millrace::event::{Event, EventBatch, Position};
use millrace::plugins::{PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::streams::EventLog;
use millrace_tests::guests::guest;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde_json::{Value, json};

use super::{channel, make, send, texts};
use crate::plugins::rig::{Rig, component, load, options, tenant};

fn settings(grants: &[&str], channels: &[&str]) -> PluginSettings {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    PluginSettings { grants: owned(grants), channels: owned(channels), ..PluginSettings::default() }
}

/// A request that the plugin is to answer, in the rig's tenant.
async fn asked(rig: &Rig, text: &str) -> ChannelId {
    make_for(rig, "plugin:answers").await;
    send(&rig.store, &of("requests"), EntryType::Data, text).await.unwrap();
    of("answers")
}

fn of(name: &str) -> ChannelId {
    let mut id = channel("p", name);
    id.process.tenant = tenant();
    id
}

async fn make_for(rig: &Rig, executor: &str) {
    make(&rig.store, &tenant(), "p", executor, &[("requests", true), ("answers", false)]).await;
}

#[test]
fn a_plugin_is_told_which_grant_it_lacks_to_append() {
    let runtime = WasmRuntime::new(options()).unwrap();
    let refused = load(&runtime, &component("answers"), &PluginSettings::default()).unwrap_err();
    assert_eq!(refused.code(), "grant_missing");
    assert!(
        refused
            .to_string()
            .ends_with("add it to plugins.answers.grants, and the channels to plugins.answers.channels"),
        "{refused}"
    );
}

#[test]
fn a_plugin_with_channels_is_refused_where_these_lie_elsewhere() {
    let runtime = WasmRuntime::new(RuntimeOptions { channels_elsewhere: true, ..options() }).unwrap();
    let given = settings(&["channels"], &["answers"]);
    let refused = load(&runtime, &component("answers"), &given).unwrap_err();
    assert_eq!(refused.code(), "channels_elsewhere");
    assert!(refused.to_string().contains("remove `channels` from plugins.answers.grants"), "{refused}");
    // Others are none the worse for it.
    load(&runtime, &component("crossing"), &PluginSettings::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sample_answers_as_a_component() {
    let rig = Rig::new();
    let answers = asked(&rig, "Hello mill").await;
    let runner = rig.run("answers", settings(&["channels"], &["other-*", "ans*"])).await;
    rig.done(&runner, rig.store.bounds().newest).await;
    let text = texts(&rig.store, &answers).await;
    assert_eq!(text.concat(), "I read 2 words with 9 letters. The longest is “hello”.\n");
    assert_eq!(text.len(), 11, "a word is a piece");
    assert!(rig.dead("answers").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_was_not_granted_costs_its_event() {
    let rig = Rig::new();
    let answers = asked(&rig, "Hello").await;
    let runner = rig.run("answers", settings(&["channels"], &["other"])).await;
    rig.done(&runner, rig.store.bounds().newest).await;
    let dead = rig.dead("answers").await;
    assert_eq!((dead.len(), dead[0].0.as_str(), dead[0].1.as_str()), (1, "p_requests", "output"));
    assert!(
        dead[0].2.contains(
            "channel `answers` is none of those that were granted: add it to plugins.<name>.channels"
        ),
        "{}",
        dead[0].2
    );
    assert!(texts(&rig.store, &answers).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_no_part_in_a_process() {
    let rig = Rig::new();
    let answers = asked(&rig, "Hello").await;
    let unassigned = millrace::channels::Change::Unassign;
    let host = millrace::channels::Actor::Host;
    millrace::channels::ChannelStore::change(&rig.store, &answers.process, host, unassigned).await.unwrap();
    let runner = rig.run("answers", settings(&["channels"], &["*"])).await;
    rig.done(&runner, rig.store.bounds().newest).await;
    let dead = rig.dead("answers").await;
    assert_eq!((dead.len(), dead[0].1.as_str()), (1, "refused"));
    assert!(dead[0].2.contains("channel_forbidden"), "{}", dead[0].2);
}

#[tokio::test]
async fn entries_of_processors_are_counted_with_those_of_clients() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(workspace_binary("millrace"))
        .set("plugins.answers.grants=[\"channels\"]")
        .set("plugins.answers.channels=[\"answers\"]");
    let host = HostProcess::start_as(setup, &dir.path().join("data")).await.unwrap();
    host.deploy(std::fs::read(guest("answers")).unwrap().into()).await.unwrap();
    let client = reqwest::Client::new();
    let send = async |request: reqwest::RequestBuilder, body: &Value| {
        let request = request.header("content-type", "application/json").body(body.to_string());
        request.send().await.unwrap().error_for_status().unwrap();
    };
    // One that has room for the answer, and one that does not.
    let requests = json!({ "name": "requests", "events": true });
    for (process, channels) in [("p", json!([requests, { "name": "answers" }])), ("q", json!([requests]))] {
        let of = format!("{}/v1/processes/{process}", host.url);
        let new = json!({ "executor": "plugin:answers", "channels": channels });
        send(client.put(format!("{of}?as=ada")), &new).await;
        let asked = json!({ "sequence": 1, "text": "Hello mill" });
        send(client.post(format!("{of}/channels/requests/entries?as=ada")), &asked).await;
    }
    host.settle().await.unwrap();
    let shown = client.get(format!("{}/metrics", host.url)).send().await.unwrap().text().await.unwrap();
    let said = "I read 2 words with 9 letters. The longest is “hello”.\n";
    let bytes = 2 * "Hello mill".len() + said.len();
    let plugin = host.get("/v1/plugins/answers").await.unwrap();
    let version = plugin["deployment"]["version"].as_str().unwrap();
    for line in [
        "millrace_channel_entries_total 13\n".to_owned(),
        format!("millrace_channel_bytes_total {bytes}\n"),
        "millrace_channel_refused_total{code=\"channel_unknown\"} 11\n".to_owned(),
        format!(
            "millrace_processor_appends_dropped_total{{plugin=\"answers\",version=\"{version}\",code=\"channel_unknown\"}} 11\n"
        ),
    ] {
        assert!(shown.contains(&line), "{line}: {shown}");
    }
    assert_eq!(plugin["counters"]["dropped_appends"], 11);
    let tasks = plugin["tasks"].as_array().unwrap();
    let refused = tasks.iter().find_map(|task| task["last_refused"].as_str()).unwrap();
    assert!(
        refused.starts_with("append to channel `answers` of process `q`: channel_unknown: "),
        "{refused}"
    );
}

/// Effects of one call: of each the event of the batch that caused it. Every other one emits.
fn effects_of(events: &[u32], first: u64, count: u64) -> EffectBatch {
    let mut batch = EventBatch::new(tenant());
    for position in first..first + count {
        let at = Position(position);
        let event = Event { position: at, aggregate: "a", agg_id: "x", event_type: "t", ..Event::default() };
        batch.push(&Event { version: position, ..event }).unwrap();
    }
    let (mut arena, mut records) = (Vec::new(), Vec::new());
    for event in events {
        for (kind, parts) in
            [(EffectKind::Append, ["p", "c", "data", "x"]), (EffectKind::Emit, ["e", "leg", "leg.made", "1"])]
        {
            let bytes = |part: &str| u32::try_from(part.len()).unwrap();
            records.push(EffectRecord {
                kind,
                table: 0,
                event: *event,
                version: 1,
                at: 0,
                schema_version: 1,
                start: u32::try_from(arena.len()).unwrap(),
                key_bytes: bytes(parts[0]),
                aggregate_bytes: bytes(parts[1]),
                type_bytes: bytes(parts[2]),
                id_bytes: 0,
                body_bytes: bytes(parts[3]),
                depth: 0,
            });
            arena.extend_from_slice(parts.concat().as_bytes());
        }
    }
    let depths = vec![0; usize::try_from(count).unwrap()];
    let checked = EffectBatch::check_granted(arena, records, &[], &depths, &ChannelGrant::all());
    let mut effects = checked.unwrap();
    effects.carry_on(&batch);
    effects
}

#[test]
fn an_appended_entry_is_known_by_its_event_however_events_are_cut_into_batches() {
    let causes = |effects: &EffectBatch| -> Vec<AppendCause> {
        let found = (0..effects.len()).map(|index| effects.cause_of(index));
        assert!(found.clone().skip(1).step_by(2).all(|cause| cause.is_none()), "events have ids");
        found.step_by(2).map(|cause| cause.unwrap()).collect()
    };
    let together = effects_of(&[0, 0, 1, 2, 2, 2], 7, 3);
    let mut apart = effects_of(&[0, 0], 7, 1);
    apart.append(&effects_of(&[0, 1, 1, 1], 8, 2));
    let of = |position, index| AppendCause { position: Position(position), index };
    let expected = [of(7, 0), of(7, 1), of(8, 0), of(9, 0), of(9, 1), of(9, 2)];
    assert_eq!((causes(&together), causes(&apart)), (expected.to_vec(), expected.to_vec()));
}
