//! An event that made an instance fall makes another one fall in the same way, and that one is kept.

use std::collections::BTreeMap;

use millrace::checkpoints::SavedState;
use millrace::plugins::{Autopsy, CoreDump, PluginRuntime, PluginSettings, Scene, WasmRuntime};
use millrace::processors::{LoadError, Outcome, Trap, TrapKind};
use millrace_tests::handwritten::Handwritten;

use crate::plugins::rig::{batch, component, context, load, options};

/// What became of an event in a lane, and what the autopsy says.
fn both(component: &[u8], saved: Option<&SavedState>, event_type: &str) -> (Result<Outcome, Trap>, Autopsy) {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let settings = PluginSettings { call_ms_max: Some(500), ..PluginSettings::default() };
    let events = batch(&[("a", event_type, "1")], 0);
    let factory = load(&runtime, component, &settings).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(saved).expect("it takes its state");
    let scene = Scene { context: context(), saved, events: &events };
    let autopsy = runtime.autopsy(component, &settings, &scene).expect("the component is sound");
    (instance.handle(&events), autopsy)
}

fn trap(autopsy: &Autopsy) -> &Trap {
    let Err(LoadError::Trap(trap)) = &autopsy.outcome else { panic!("{:?}", autopsy.outcome) };
    trap
}

/// The custom sections of a core module, by name. Panics where the bytes are none.
fn custom_sections(module: &[u8]) -> BTreeMap<String, Vec<u8>> {
    fn number(bytes: &mut &[u8]) -> usize {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = bytes.split_first().expect("a number ends");
            *bytes = rest;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a number has five bytes at most")
    }
    let mut rest = module.strip_prefix(b"\0asm\x01\0\0\0").expect("it is a core module");
    let mut found = BTreeMap::new();
    while let Some((id, after)) = rest.split_first() {
        rest = after;
        let bytes = number(&mut rest);
        let (mut section, after) = rest.split_at(bytes);
        rest = after;
        if *id == 0 {
            let name_bytes = number(&mut section);
            let (name, content) = section.split_at(name_bytes);
            found.insert(String::from_utf8(name.to_vec()).expect("a name is text"), content.to_vec());
        }
    }
    found
}

#[test]
fn an_autopsy_ends_like_the_live_instance_and_leaves_a_core_dump() {
    let (live, autopsy) = both(&component("trap_on_type"), None, "poison");
    let live = live.expect_err("it panics");
    let again = trap(&autopsy);
    assert_eq!((again.kind, &again.message), (live.kind, &live.message));
    assert!(live.backtrace.contains("panicking::panic_fmt"), "{}", live.backtrace);
    assert!(again.backtrace.contains("panicking::panic_fmt"), "{}", again.backtrace);
    assert!(!live.message.contains("wasm backtrace"), "it stands beside the message: {}", live.message);
    let Some(CoreDump::Taken(dump)) = &autopsy.core_dump else { panic!("{:?}", autopsy.core_dump) };
    let sections = custom_sections(dump);
    for name in ["core", "corestack", "coremodules", "coreinstances"] {
        assert!(sections.contains_key(name), "{name}: {:?}", sections.keys());
    }
    let core = &sections["core"];
    assert!(core.ends_with(b"trap-on-type"), "it bears the plugin's name: {core:?}");
    let held = |text: &[u8]| dump.windows(text.len()).any(|window| window == text);
    assert!(held(b"poison"), "it holds the event that the guest saw");
}

#[test]
fn an_autopsy_of_a_timeout_shows_where_the_guest_was() {
    let guest = Handwritten::new("spins").with("(func $round (loop $l (br $l)))").on_poison("(call $round)");
    let (live, autopsy) = both(&guest.component(), None, "poison");
    let live = live.expect_err("it never ends");
    assert_eq!((live.kind, trap(&autopsy).kind), (TrapKind::Timeout, TrapKind::Timeout));
    assert_eq!(live.message, trap(&autopsy).message);
    assert!(trap(&autopsy).backtrace.contains("round"), "{}", trap(&autopsy).backtrace);
    assert!(matches!(autopsy.core_dump, Some(CoreDump::Taken(_))));
}

#[test]
fn an_autopsy_of_a_good_event_gives_its_effects_and_state_and_no_dump() {
    let saved = SavedState {
        content_type: "application/vnd.millrace.counter.v1+json".into(),
        state: br#"{"a":7}"#.to_vec(),
    };
    let (live, autopsy) = both(&component("counter"), Some(&saved), "x");
    let (live, again) = (live.expect("it counts"), autopsy.outcome.as_ref().expect("it counts"));
    assert_eq!((again.handled, &again.failure), (1, &None));
    assert_eq!(again.effects.iter().collect::<Vec<_>>(), live.effects.iter().collect::<Vec<_>>());
    assert_eq!(autopsy.state.as_deref(), Some(&br#"{"a":8}"#[..]), "nothing was committed, this is after it");
    assert!(autopsy.core_dump.is_none());
    assert_eq!(autopsy.manifest.name, "counter");
}

#[test]
fn an_autopsy_sees_what_falls_in_load_and_in_snapshot() {
    let falls = "(unreachable)";
    let snapshot = Handwritten::new("falls").in_snapshot(falls);
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let load = Handwritten::new("falls").in_load(falls);
    for guest in [snapshot, load] {
        let events = batch(&[("a", "x", "1")], 0);
        let scene = Scene { context: context(), saved: None, events: &events };
        let autopsy = runtime.autopsy(&guest.component(), &PluginSettings::default(), &scene).expect("sound");
        assert_eq!(trap(&autopsy).kind, TrapKind::Trap);
        assert!(matches!(autopsy.core_dump, Some(CoreDump::Taken(_))));
    }
}
