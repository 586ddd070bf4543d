#![doc = include_str!("../../docs/seed-map.md")]
