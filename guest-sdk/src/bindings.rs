//! What `wit/` says, as Rust: generated. Plugins see it through the SDK only.

wit_bindgen::generate!({
    path: "../wit",
    world: "processor",
    pub_export_macro: true,
    export_macro_name: "export_component",
    default_bindings_module: "millrace_guest::bindings",
    runtime_path: "::millrace_guest::__wit_bindgen::rt",
    additional_derives: [PartialEq],
});
