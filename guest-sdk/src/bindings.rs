//! What `wit/v0.1/` says, as Rust: generated. Plugins see it through the SDK only.

#![expect(
    clippy::mem_forget,
    reason = "generated: what is handed over to the host is freed when the host has read it"
)]

wit_bindgen::generate!({
    path: "../wit/v0.1",
    world: "processor",
    pub_export_macro: true,
    export_macro_name: "export_component",
    default_bindings_module: "millrace_guest::bindings",
    runtime_path: "::millrace_guest::__wit_bindgen::rt",
    additional_derives: [PartialEq],
});
