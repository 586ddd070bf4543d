//! The sample plugins give the same effects, byte for byte, as components and as native code, however the
//! events are cut into batches.

use carrier_stats::CarrierStats;
use delay_watch::DelayWatch;
use flight_board::FlightBoard;
use millrace::checkpoints::EffectBatch;
use millrace::event::{Event, EventBatch, Micros, Position};
use millrace::plugins::{PluginSettings, WasmRuntime};
use millrace::processors::{Processor, ProcessorFactory};
use millrace_tests::flights;
use millrace_tests::native::Native;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::rig::{component, context, load, options, tenant};

/// Enough for hours with alerts, and not so much that a test takes long.
const EVENTS: usize = 6_000;

#[derive(Deserialize)]
struct Line {
    aggregate: String,
    agg_id: String,
    version: u64,
    #[serde(rename = "type")]
    event_type: String,
    at: String,
    payload: Box<RawValue>,
}

fn events() -> Vec<Line> {
    let lines = flights::lines().expect("the flights can be read");
    let parse = |line: &String| serde_json::from_str(line).expect("a line is an event");
    lines.iter().take(EVENTS).map(parse).collect()
}

/// What passes the subscription, in batches of this size.
fn batches(lines: &[Line], factory: &dyn ProcessorFactory, size: usize) -> Vec<EventBatch> {
    let subscription = &factory.manifest().subscription;
    let mut batches = Vec::new();
    let mut batch = EventBatch::new(tenant());
    for (index, line) in lines.iter().enumerate() {
        if !subscription.matches(&line.aggregate, &line.event_type) {
            continue;
        }
        let event = Event {
            position: Position(index as u64 + 1),
            aggregate: &line.aggregate,
            agg_id: &line.agg_id,
            event_type: &line.event_type,
            version: line.version,
            at: Micros::parse(&line.at).expect("a time"),
            payload: line.payload.get().as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
        if batch.len() == size {
            batches.push(std::mem::replace(&mut batch, EventBatch::new(tenant())));
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn start(factory: &dyn ProcessorFactory) -> Box<dyn Processor> {
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    instance
}

fn effects(instance: &mut dyn Processor, batch: &EventBatch) -> EffectBatch {
    let outcome = instance.handle(batch).expect("real flights can be handled");
    assert_eq!((outcome.handled, outcome.failure), (batch.len(), None));
    outcome.effects
}

fn said(effects: &EffectBatch) -> Vec<String> {
    effects.iter().map(|effect| format!("{effect:?}")).collect()
}

/// Runs both side by side; `size` by `size` must also mean the same as one by one.
fn same(component: &dyn ProcessorFactory, native: &dyn ProcessorFactory) {
    assert_eq!(component.manifest(), native.manifest());
    let lines = events();
    let mut whole = Vec::new();
    for size in [1, 7, 1_000] {
        let (mut guest, mut plain) = (start(component), start(native));
        let mut all = Vec::new();
        for batch in batches(&lines, component, size) {
            let found = said(&effects(&mut *guest, &batch));
            assert_eq!(found, said(&effects(&mut *plain, &batch)), "in batches of {size}");
            all.extend(found);
        }
        assert!(!all.is_empty());
        if component.manifest().state_content_type.is_some() {
            assert_eq!(guest.snapshot().expect("a snapshot"), plain.snapshot().expect("a snapshot"));
        }
        if whole.is_empty() {
            whole = all;
        } else {
            assert!(whole == all, "batches of {size} mean something else than single events");
        }
    }
}

fn loaded(name: &str) -> std::sync::Arc<dyn ProcessorFactory> {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    load(&runtime, &component(name), &PluginSettings::default()).expect("a sample plugin loads")
}

#[test]
fn flight_board_is_the_same_as_a_component() {
    same(&*loaded("flight_board"), &Native::<FlightBoard>::new());
}

#[test]
fn carrier_stats_is_the_same_as_a_component() {
    same(&*loaded("carrier_stats"), &Native::<CarrierStats>::new());
}

#[test]
fn delay_watch_is_the_same_as_a_component() {
    same(&*loaded("delay_watch"), &Native::<DelayWatch>::new());
}

#[test]
fn a_component_goes_on_from_its_own_snapshot() {
    let factory = loaded("delay_watch");
    let lines = events();
    let batches = batches(&lines, &*factory, 500);
    let (mut whole, mut parts) = (start(&*factory), start(&*factory));
    for batch in &batches {
        let state = parts.snapshot().expect("a snapshot");
        assert_eq!(state, parts.snapshot().expect("a snapshot changes nothing"));
        let content_type = factory.manifest().state_content_type.clone().expect("it has state");
        let saved = millrace::checkpoints::SavedState { content_type, state };
        parts = factory.instantiate(context()).expect("it can be instantiated");
        parts.load(Some(&saved)).expect("it loads what it saved");
        assert_eq!(said(&effects(&mut *parts, batch)), said(&effects(&mut *whole, batch)));
    }
}
