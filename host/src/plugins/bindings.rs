//! The world of `wit/v0.1/`, as Rust types. Generated; nothing is decided here.

wasmtime::component::bindgen!({
    path: "../wit/v0.1",
    world: "processor",
    imports: { default: trappable },
});

pub(super) use self::exports::millrace::processor::handler as exported;
pub(super) use self::millrace::processor as imported;
pub(super) use self::millrace::processor::types as wire;
