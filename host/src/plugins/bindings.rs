//! The world of `wit/`, as Rust types. Generated; nothing is decided here.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "processor",
    imports: { default: trappable },
});

pub(super) use self::exports::millrace::processor::handler as exported;
pub(super) use self::millrace::processor as imported;
pub(super) use self::millrace::processor::types as wire;
