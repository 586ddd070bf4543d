//! Giving channels to executors and taking them, each time in a new epoch.

use std::sync::Arc;

use super::error::ChannelError;
use super::names::{ChannelName, Party};
use super::record::ProcessView;
use crate::limits::PROCESS_EPOCHS_MAX;

type Result<T> = std::result::Result<T, ChannelError>;

/// The epoch that begins with this. Without one nobody is given anything any more: what two executors wrote could not be
/// told apart. Rights are taken all the same, since no epoch follows that they could be mistaken for.
fn next_epoch(view: &ProcessView, executor: Option<&Party>) -> Result<u32> {
    let epoch = view.process.epoch;
    if executor.is_some() && epoch == PROCESS_EPOCHS_MAX {
        return Err(ChannelError::Limit {
            limit: "process_epochs_max",
            what: "epochs of the process",
            asked: u64::from(epoch) + 1,
            max: u64::from(PROCESS_EPOCHS_MAX),
        });
    }
    Ok(epoch.saturating_add(1))
}

/// Gives all channels of a process to an executor, or takes them.
pub(super) fn assign(view: &mut ProcessView, executor: Option<&Party>) -> Result<()> {
    let epoch = next_epoch(view, executor)?;
    let process = Arc::make_mut(&mut view.process);
    process.epoch = epoch;
    process.executor = executor.cloned();
    for channel in &mut view.channels {
        let channel = Arc::make_mut(channel);
        (channel.executor, channel.epoch) = (executor.cloned(), epoch);
    }
    Ok(())
}

/// Gives one channel to an executor, or takes it.
pub(super) fn assign_channel(
    view: &mut ProcessView,
    name: &ChannelName,
    executor: Option<Party>,
) -> Result<()> {
    let epoch = next_epoch(view, executor.as_ref())?;
    let process = view.process.name.to_string();
    let found = view.channels.iter_mut().find(|known| known.name == *name);
    let found = found.ok_or_else(|| ChannelError::Unknown { process, channel: name.to_string() })?;
    let found = Arc::make_mut(found);
    (found.executor, found.epoch) = (executor, epoch);
    Arc::make_mut(&mut view.process).epoch = epoch;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::rules::change;
    use crate::channels::{Actor, Change, ChannelLimits};
    use crate::error::Classify as _;
    use crate::event::Micros;

    /// A process that `eve` executes, in an epoch.
    fn view(epoch: u32) -> ProcessView {
        let process = format!(
            r#"{{"name":"job","submitter":"ann","executor":"eve","epoch":{epoch},"observers":[],"created_at":1,
            "closed":null,"version":1}}"#
        );
        let channel = format!(
            r#"{{"name":"talk","executor":"eve","epoch":{epoch},"options":{{}},"created_at":1,"newest":0,"oldest":1,
            "hot":1,"bytes":0,"archive_bytes":0,"senders":[]}}"#
        );
        ProcessView {
            process: Arc::new(serde_json::from_str(&process).unwrap()),
            channels: vec![Arc::new(serde_json::from_str(&channel).unwrap())],
        }
    }

    fn ask(view: &mut ProcessView, asked: Change) -> Result<bool> {
        change(view, &Actor::Host, asked, Micros(1), &ChannelLimits::default())
    }

    fn party(name: &str) -> Party {
        Party::new(name).unwrap()
    }

    fn talk(executor: Option<Party>) -> Change {
        Change::AssignChannel { channel: ChannelName::new("talk").unwrap(), executor }
    }

    #[test]
    fn the_last_epoch_can_be_reached_and_nothing_is_given_after_it() {
        let mut process = view(PROCESS_EPOCHS_MAX - 1);
        assert!(ask(&mut process, Change::Assign(party("eli"))).unwrap());
        assert_eq!(process.process.epoch, PROCESS_EPOCHS_MAX);
        let before = process.clone();
        for asked in [Change::Assign(party("eve")), talk(Some(party("eve")))] {
            let refused = ask(&mut process, asked).unwrap_err();
            assert_eq!(refused.code(), "process_epochs_max");
            let text = refused.to_string();
            assert_eq!(text, "epochs of the process: 4294967296; process_epochs_max is 4294967295");
            assert_eq!(process, before, "what is refused changes nothing");
        }
    }

    #[test]
    fn rights_can_be_taken_in_the_last_epoch() {
        let mut process = view(PROCESS_EPOCHS_MAX);
        assert!(ask(&mut process, talk(None)).unwrap());
        assert_eq!(process.channels[0].executor, None);
        assert!(ask(&mut process, Change::Unassign).unwrap());
        assert_eq!((process.process.executor.clone(), process.process.epoch), (None, PROCESS_EPOCHS_MAX));
        assert!(!ask(&mut process, Change::Unassign).unwrap(), "they are taken");
        assert_eq!(ask(&mut process, Change::Assign(party("eve"))).unwrap_err().code(), "process_epochs_max");
    }
}
