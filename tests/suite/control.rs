//! Claims about the control feed. Items in the names of tests are those of its own checklist, restated for plugins: see
//! `checklist`.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod applier;
mod artifact_commands;
mod artifact_cuts;
mod artifact_folder;
mod artifact_http;
mod artifact_server;
mod artifacts;
mod bursts;
mod canonical;
mod events;
mod feeds;
mod file_crashes;
mod file_feed;
mod fleet_commands;
mod fleet_http;
mod hosted;
mod hosted_clocks;
mod hosted_disks;
mod hosted_fleet;
mod hosted_kills;
mod hosted_life;
mod hosted_trouble;
mod key_commands;
mod keys;
mod kills;
mod local_artifacts;
mod local_feeds;
mod nats;
mod pinner;
mod problems;
mod publisher;
mod reconciler;
mod redis;
mod registry;
mod rollouts;
mod snapshot;
mod store;
mod trust;
mod unreadable;

use millrace::control::ControlEvent;

/// One example of each kind, by its name. They were written and signed by another program than the host, with keys whose
/// seeds are the bytes 1 (root), 2 (release) and 3 (build), again and again.
const GOLDEN: [(&str, &str); 9] = [
    ("plugin.deployed", include_str!("control/golden/plugin.deployed.json")),
    ("plugin.rolled_back", include_str!("control/golden/plugin.rolled_back.json")),
    ("plugin.removed", include_str!("control/golden/plugin.removed.json")),
    ("plugin.config_changed", include_str!("control/golden/plugin.config_changed.json")),
    ("plugin.paused", include_str!("control/golden/plugin.paused.json")),
    ("plugin.resumed", include_str!("control/golden/plugin.resumed.json")),
    ("rollout.advanced", include_str!("control/golden/rollout.advanced.json")),
    ("rollout.halted", include_str!("control/golden/rollout.halted.json")),
    ("trust.changed", include_str!("control/golden/trust.changed.json")),
];

fn golden(kind: &str) -> &'static str {
    GOLDEN.iter().find(|(name, _)| *name == kind).unwrap().1
}

/// The JSON of an event after a change, without its signatures' being right.
fn changed(text: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut json: serde_json::Value = serde_json::from_str(text).unwrap();
    change(&mut json);
    json.to_string()
}

fn code_of<T: std::fmt::Debug>(result: millrace::control::Result<T>) -> &'static str {
    use millrace::error::Classify as _;
    result.unwrap_err().code()
}

fn parsed(text: &str) -> ControlEvent {
    ControlEvent::parse(text).unwrap()
}
