//! Where things lie in the folder of a feed, and what is written in them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::{EventId, check_digest};
use crate::limits::CONTROL_DROP_NAME_BYTES_MAX;

/// Paths below the folder.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) events: PathBuf,
    pub(super) ids: PathBuf,
    /// Files that nobody sees yet. What a crash has left in it goes.
    pub(super) staging: PathBuf,
    /// Drops that were taken in and are not settled yet.
    pub(super) settling: PathBuf,
    pub(super) quarantine: PathBuf,
    pub(super) hosts: PathBuf,
    pub(super) mark: PathBuf,
    pub(super) head: PathBuf,
    pub(super) format: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) shard_events: u64,
}

/// Up to where the feed goes, and where it begins. It is written without a sync: the events are what counts, and it can
/// be made again from their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) newest: u64,
    /// One above `newest` when nothing is retained.
    pub(super) oldest: u64,
    /// The feed began again at `oldest` with all that it had, so who has all up to here misses nothing of what is between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole_from: Option<u64>,
}

/// How the folder is laid out. It is written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) format: u32,
    pub(super) shard_events: u64,
}

/// Where an event's id leads to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Known {
    pub(super) control_version: u64,
    pub(super) digest: String,
}

/// The place of a drop that is no event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) control_version: u64,
    pub(super) broken: Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Broken {
    /// Its name in `settling`.
    pub(super) name: String,
    pub(super) reason: String,
}

impl Layout {
    pub(super) fn new(root: &Path, shard_events: u64) -> Self {
        let at = |name: &str| root.join(name);
        Self {
            events: at("events"),
            ids: at("ids"),
            staging: at("staging"),
            settling: at("settling"),
            quarantine: at("quarantine"),
            hosts: at("board/hosts"),
            mark: at("board/mark.json"),
            head: at("head"),
            format: at("format"),
            lock: at("LOCK"),
            root: root.to_path_buf(),
            shard_events: shard_events.max(1),
        }
    }

    pub(super) fn shard(&self, version: u64) -> PathBuf {
        self.events.join(format!("{:012}", version / self.shard_events))
    }

    pub(super) fn event(&self, version: u64) -> PathBuf {
        self.shard(version).join(format!("{version:020}.json"))
    }

    /// By the time in it, twelve days to a folder: what is written together lies together.
    pub(super) fn id(&self, id: &EventId) -> PathBuf {
        let bucket: String = id.as_str().trim_start_matches("evt_").chars().take(4).collect();
        self.ids.join(bucket).join(id.as_str())
    }

    pub(super) fn quarantined(&self, version: u64, name: &str) -> PathBuf {
        self.quarantine.join(format!("{version:020}-{name}"))
    }

    pub(super) fn reason(&self, version: u64, name: &str) -> PathBuf {
        self.quarantine.join(format!("{version:020}-{name}.reason"))
    }
}

impl Known {
    /// `<control version>.<digest>`
    pub(super) fn text(&self) -> String {
        format!("{}.{}", self.control_version, self.digest)
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let known = match text.split_once('.') {
            Some((version, digest)) => {
                Self { control_version: version.parse().ok()?, digest: digest.to_owned() }
            }
            // It was noted as JSON before.
            None => serde_json::from_str(text).ok()?,
        };
        check_digest(&known.digest).ok()?;
        Some(known)
    }
}

impl Head {
    pub(super) const EMPTY: Self = Self { newest: 0, oldest: 1, whole_from: None };

    /// Who has all up to here has missed nothing.
    pub(super) fn missed_below(&self) -> u64 {
        self.whole_from.map_or(self.oldest - 1, |whole| whole.min(self.oldest - 1))
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let head: Self = serde_json::from_slice(bytes).ok()?;
        (head.oldest >= 1 && head.oldest - 1 <= head.newest).then_some(head)
    }
}

/// What a drop is called here: names of drops may be anything, and stand in paths, logs and reports afterwards.
pub(super) fn plain(name: &str) -> String {
    let plain = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => letter,
        _ => '_',
    };
    let name: String = name.chars().map(plain).collect();
    let kept = name.strip_suffix(".json").unwrap_or(&name);
    format!("{}.json", &kept[..kept.len().min(CONTROL_DROP_NAME_BYTES_MAX)])
}
