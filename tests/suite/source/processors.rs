//! A plain processor of this host in the loop, with fakes around it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace::checkpoints::{EffectBatch, SavedState};
use millrace::event::{EventBatch, TenantId};
use millrace::processors::source::{CursorPolicy, OfProcessor, Runtime, RuntimeParts, SourceFault};
use millrace::processors::{Failure, FailureKind, FlushReason, LoadError, Outcome, Processor, Trap};
use millrace_tests::until;

use super::fakes::{CONTENT_TYPE, FakeCheckpoints, FakeEvents, Rig, Step, cursor_lost, event, no_event};

const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// A plain processor of this host, which keeps what it saw.
#[derive(Debug, Default)]
struct Seen(Vec<String>);

impl Processor for Seen {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        if let Some(saved) = saved {
            self.0 = serde_json::from_slice(&saved.state).unwrap();
        }
        self.0.push("loaded".into());
        Ok(())
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let stop = batch.iter().position(|event| event.cursor == "3");
        let handled = stop.unwrap_or(batch.len());
        self.0
            .extend(batch.iter().take(handled).map(|event| format!("{} {}", event.event_type, event.agg_id)));
        let failure = stop.map(|_| Failure { kind: FailureKind::Reject, message: "not the third".into() });
        Ok(Outcome { handled, failure, ..Outcome::default() })
    }

    fn flush(&mut self, _: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        Ok(Ok(EffectBatch::default()))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        Ok(serde_json::to_vec(&self.0).unwrap())
    }
}

fn run(checkpoints: FakeCheckpoints, streams: Vec<Vec<Step>>) -> (Runtime, Rig) {
    let rig = Rig::of(FakeEvents::of(streams), checkpoints);
    (start(&rig), rig)
}

fn start(rig: &Rig) -> Runtime {
    let tenant = TenantId::new("default").unwrap();
    let processor = OfProcessor::new(CONTENT_TYPE, Box::new(Seen::default()), "test", tenant);
    Runtime::start(RuntimeParts { processor: Some(Box::new(processor)), ..rig.parts() }).unwrap()
}

/// What the processor had seen when its checkpoint was put.
fn seen(rig: &Rig) -> Vec<String> {
    let kept = rig.checkpoints.kept();
    let state = STANDARD.decode(kept["millrace"]["state"].as_str().unwrap()).unwrap();
    serde_json::from_slice(&state).unwrap()
}

#[tokio::test]
async fn a_processor_of_this_host_runs_in_the_loop() {
    let (runtime, rig) = run(FakeCheckpoints::default(), vec![vec![event("1"), event("2")]]);
    until("both are saved", || rig.checkpoints.kept()["lastEventCursor"] == "2").await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = rig.checkpoints.kept();

    let (runtime, rig) =
        run(FakeCheckpoints::with(CONTENT_TYPE, &kept), vec![vec![event("2"), event("2b"), event("3")]]);
    let ended = runtime.wait().await.unwrap_err();
    assert_eq!((ended.fault, ended.message.as_str()), (SourceFault::Processor, "not the third"));
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2b");
    let expected = ["loaded", "entry.created e1", "entry.created e2", "loaded", "entry.created e2b"];
    assert_eq!(seen(&rig), expected);
}

/// Both came at once with one that is no event: the cursor stands after them, so they are in the state.
#[tokio::test]
async fn what_stands_before_an_event_that_is_none_is_handled() {
    let (runtime, rig) =
        run(FakeCheckpoints::default(), vec![vec![event("1"), event("2"), no_event("bad"), event("4")]]);
    let ended = runtime.wait().await.unwrap_err();
    assert_eq!(ended.fault, SourceFault::Processor);
    assert!(ended.to_string().contains("not JSON"), "{ended}");
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2");
    assert_eq!(seen(&rig), ["loaded", "entry.created e1", "entry.created e2"]);
}

/// What comes again is in its state, and would count twice.
#[tokio::test]
async fn a_processor_of_this_host_refuses_to_begin_anew() {
    let (runtime, rig) = run(FakeCheckpoints::default(), vec![vec![event("1"), event("2")]]);
    until("both are saved", || rig.checkpoints.kept()["lastEventCursor"] == "2").await;
    runtime.shutdown(SHUTDOWN_MAX).await.unwrap();
    let kept = rig.checkpoints.kept();

    // The first may be lost by the way, and the second then.
    let lost = || vec![cursor_lost(), Step::Ends];
    let streams = vec![lost(), lost(), vec![event("1"), event("2")]];
    let mut rig = Rig::of(FakeEvents::of(streams), FakeCheckpoints::with(CONTENT_TYPE, &kept));
    rig.config.on_cursor_lost = CursorPolicy::Rebuild;
    let ended = start(&rig).wait().await.unwrap_err();
    assert_eq!(ended.fault, SourceFault::CursorLost);
    assert!(ended.to_string().contains("rebuild"), "{ended}");
    assert!(!rig.events.after_cursors().contains(&Some("start".to_owned())), "nothing comes again");
    assert_eq!(rig.checkpoints.kept()["lastEventCursor"], "2");
}
