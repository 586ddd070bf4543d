//! What a component may be made of.
//!
//! The engine counts core instances, memories, tables and their sizes when it takes code in, or when it makes an
//! instance, and says in a sentence what was too much; the suite holds each of these sentences to its limit.

use super::PluginError;
use super::runtime::engine_failed;
use crate::limits::{
    GUEST_CORE_INSTANCES_MAX, GUEST_INSTANCE_BYTES_MAX, GUEST_MEMORIES_MAX, GUEST_TABLE_ELEMENTS_MAX,
    GUEST_TABLES_MAX,
};

/// A limit, and the words of the engine around the number that is over it.
struct Part {
    what: &'static str,
    limit: &'static str,
    max: u64,
    said: &'static [(&'static str, &'static str)],
}

const PARTS: [Part; 5] = [
    Part {
        what: "core instances",
        limit: "guest_core_instances_max",
        max: GUEST_CORE_INSTANCES_MAX as u64,
        said: &[("contains ", " core module instances"), ("instance count too high at ", "")],
    },
    Part {
        what: "linear memories",
        limit: "guest_memories_max",
        max: GUEST_MEMORIES_MAX as u64,
        said: &[
            ("contains ", " Wasm linear memories"),
            ("defined memories count of ", " exceeds"),
            ("memory count too high at ", ""),
        ],
    },
    Part {
        what: "tables",
        limit: "guest_tables_max",
        max: GUEST_TABLES_MAX as u64,
        said: &[
            ("contains ", " tables"),
            ("defined tables count of ", " exceeds"),
            ("table count too high at ", ""),
        ],
    },
    Part {
        what: "elements in one table",
        limit: "guest_table_elements_max",
        max: GUEST_TABLE_ELEMENTS_MAX as u64,
        said: &[("minimum element size of ", " which exceeds")],
    },
    Part {
        what: "bytes of an instance beside its memories",
        limit: "guest_instance_bytes_max",
        max: GUEST_INSTANCE_BYTES_MAX as u64,
        said: &[
            ("instance allocation for this module requires ", " bytes"),
            ("instance allocation for this component requires ", " bytes"),
        ],
    },
];

/// What the component has too much of, if that is what the engine says.
pub(super) fn too_many(error: &wasmtime::Error) -> Option<PluginError> {
    let text = error.root_cause().to_string();
    PARTS.iter().find_map(|part| {
        let found = part.said.iter().find_map(|(before, after)| number(&text, before, after))?;
        let Part { what, limit, max, .. } = *part;
        Some(PluginError::TooManyParts { what, found, limit, max })
    })
}

/// Why the engine did not take code in.
pub(super) fn refusal(error: &wasmtime::Error) -> PluginError {
    too_many(error).unwrap_or_else(|| engine_failed(error))
}

/// The number between these words.
fn number(text: &str, before: &str, after: &str) -> Option<u64> {
    let rest = &text[text.find(before)? + before.len()..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(digits);
    digits.parse().ok().filter(|_| rest.starts_with(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_sentences_are_told_by_the_limits_name() {
        let says = |text: &'static str| too_many(&wasmtime::Error::msg(text)).map(|error| error.to_string());
        let told = says(
            "The component transitively contains 65 core module instances, which exceeds the configured maximum of 64",
        );
        let expected = "the component has 65 core instances; guest_core_instances_max is 64";
        assert_eq!(told.as_deref(), Some(expected));
        assert_eq!(says("resource limit exceeded: instance count too high at 65").as_deref(), Some(expected));
        let told = says("resource limit exceeded: memory count too high at 3");
        assert_eq!(told.as_deref(), Some("the component has 3 linear memories; guest_memories_max is 2"));
        assert_eq!(says("expected to find an ELF image"), None);
    }
}
