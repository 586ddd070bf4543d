//! The guests that are measured against each other do the same work.

use std::collections::BTreeMap;

use millrace::checkpoints::{EffectRef, SavedState};
use millrace::plugins::PluginSettings;
use millrace::processors::ProcessorFactory;
use millrace::tables::{Cells, Value};
use millrace_tests::folds::{Fold, GUESTS, departures};
use millrace_tests::native::Native;

use crate::plugins::rig::{context, load_once};

const BATCHES: u64 = 4;
const BATCH_EVENTS: u64 = 75;

/// Keys and cells of the rows that it asks for.
type Rows = Vec<(String, Vec<Value>)>;

/// What comes of the departures, with a restart between any two batches: rows, and the state in the end.
fn folded(factory: &dyn ProcessorFactory) -> (Rows, serde_json::Value) {
    let content_type = factory.manifest().state_content_type.clone().expect("it has a state");
    let (mut rows, mut saved) = (Rows::new(), None);
    for number in 0..BATCHES {
        let mut instance = factory.instantiate(context()).expect("it can be instantiated");
        instance.load(saved.as_ref()).expect("it loads what it saved");
        let outcome =
            instance.handle(&departures(number * BATCH_EVENTS, BATCH_EVENTS)).expect("it does not fall");
        assert_eq!((outcome.handled as u64, &outcome.failure), (BATCH_EVENTS, &None));
        for effect in outcome.effects.iter() {
            let EffectRef::Put { key, cells, .. } = effect else { panic!("{effect:?}") };
            let cells = Cells::new(cells).map(|cell| Value::from(cell.expect("cells were checked")));
            rows.push((key.to_owned(), cells.collect()));
        }
        let state = instance.snapshot().expect("a snapshot");
        saved = Some(SavedState { content_type: content_type.clone(), state });
    }
    let state = saved.expect("there were batches").state;
    (rows, serde_json::from_slice(&state).expect("the state is JSON"))
}

#[test]
fn the_guests_of_the_benchmarks_do_the_same_in_each_language() {
    for (rows, expected_rows) in [("false", 0), ("true", BATCHES * BATCH_EVENTS)] {
        let config = BTreeMap::from([("rows".to_owned(), rows.to_owned())]);
        let native = folded(&Native::<Fold>::new().with_settings(config.clone()));
        assert_eq!(native.0.len() as u64, expected_rows);
        assert_eq!(native.1.as_object().map(serde_json::Map::len), Some(14), "{}", native.1);
        let settings = PluginSettings { config, ..PluginSettings::default() };
        for guest in GUESTS {
            assert_eq!(folded(&*load_once(guest, &settings)), native, "{guest}");
        }
    }
}
