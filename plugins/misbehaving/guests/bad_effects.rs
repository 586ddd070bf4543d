//! Hands back what it must not: the type of an event says what. It speaks the world itself, since the
//! SDK does not let such things through.

#[cfg(target_arch = "wasm32")]
#[expect(clippy::cast_possible_truncation, reason = "an address has 32 bits here")]
mod component {
    use millrace_guest::bindings::exports::millrace::processor::handler::Guest;
    use millrace_guest::bindings::millrace::processor::types::{
        Context, Effects, Failure, FailureKind, FlushReason, Manifest, Outcome, SavedState,
    };
    use millrace_guest::wire::{EffectKind, EffectRecord};
    use millrace_guest::{Column, EVENT_BYTES, Event, Manifest as Says, Table};

    static TABLE: Table = Table::new(
        "bad_rows",
        &[Column::text("event_type"), Column::float("number").nullable(), Column::json("any").nullable()],
    );

    struct BadEffects;

    fn text_cell(text: &[u8]) -> Vec<u8> {
        let mut cell = vec![5];
        cell.extend_from_slice(&(text.len() as u32).to_le_bytes());
        cell.extend_from_slice(text);
        cell
    }

    /// The effect for one event: a good row, and what the type asks for done to it.
    fn push(effects: &mut Effects, about: Event<'_>, event: u32) {
        let kind = about.event_type().as_bytes();
        let mut key = about.agg_id().as_bytes().to_vec();
        let mut body = text_cell(kind);
        let float = |value: f64| [vec![4], value.to_le_bytes().to_vec(), vec![0]].concat();
        body.extend(match kind {
            b"bad.tag" => vec![9, 0],
            b"bad.type" => vec![1, 0],
            b"bad.float" => float(f64::NAN),
            b"bad.json" => [vec![0, 7, 1, 0, 0, 0], b"{".to_vec()].concat(),
            b"bad.cut" => vec![0, 7, 9, 0, 0, 0],
            b"bad.few" => vec![0],
            b"bad.many" => vec![0, 0, 0],
            _ => vec![0, 0],
        });
        match kind {
            b"bad.utf8" => body[5] = 0xff,
            b"bad.null" => body = vec![0, 0, 0],
            b"bad.key" => key.clear(),
            b"bad.key-utf8" => key = vec![0xc3],
            _ => {}
        }
        let start = effects.arena.len() as u32;
        effects.arena.extend_from_slice(&key);
        effects.arena.extend_from_slice(&body);
        let mut effect = EffectRecord {
            kind: EffectKind::Put,
            table: 0,
            event,
            version: 0,
            at: 0,
            schema_version: 0,
            start,
            key_bytes: key.len() as u32,
            aggregate_bytes: 0,
            type_bytes: 0,
            id_bytes: 0,
            body_bytes: body.len() as u32,
        };
        match kind {
            b"bad.span" => effect.start = u32::MAX - 2,
            b"bad.length" => effect.body_bytes = u32::MAX,
            b"bad.table" => effect.table = 7,
            b"bad.event" => effect.event = 1_000_000,
            b"bad.version" => effect.version = u64::MAX,
            b"bad.emit" => effect.kind = EffectKind::Emit,
            // To a channel without a name, and to one that it was not granted.
            b"bad.append" => (effect.kind, effect.schema_version) = (EffectKind::Append, 1),
            b"bad.grant" => {
                (effect.kind, effect.schema_version) = (EffectKind::Append, 1);
                (effect.key_bytes, effect.aggregate_bytes) = (1, effect.key_bytes - 1);
            }
            b"bad.state-key" => {
                effect.kind = EffectKind::StatePut;
                effect.key_bytes = 0;
            }
            _ => {}
        }
        effect.write(&mut effects.records);
    }

    impl Guest for BadEffects {
        fn describe() -> Manifest {
            Says::new("bad-effects", "1.0.0").tables(&[&TABLE]).to_wire()
        }

        fn load(_: Context, _: Option<SavedState>) -> Result<(), String> {
            Ok(())
        }

        fn handle(arena: Vec<u8>, events: Vec<u8>) -> Outcome {
            let events = events.as_chunks::<EVENT_BYTES>().0;
            let mut outcome = Outcome {
                handled: events.len() as u32,
                effects: Effects { arena: vec![], records: vec![] },
                failure: None,
            };
            for (index, record) in events.iter().enumerate() {
                let event = Event::new(&arena, record);
                let failure = |index| {
                    Some(Failure { index, kind: FailureKind::Reject, message: "about another event".into() })
                };
                match event.event_type().as_bytes() {
                    // More than there were.
                    b"bad.handled" => outcome.handled += 1,
                    // Fewer, and no reason given.
                    b"bad.silent" => outcome.handled = 0,
                    // A text that is none.
                    b"bad.message" => {
                        #[expect(
                            unsafe_code,
                            reason = "what the SDK never hands back is what the host must refuse"
                        )]
                        // SAFETY: the string is not looked at here; it goes to the host as it is.
                        let message = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) };
                        let index = index as u32;
                        outcome = Outcome {
                            handled: index,
                            failure: Some(Failure { index, kind: FailureKind::Reject, message }),
                            ..outcome
                        };
                        break;
                    }
                    // About an event that was handled.
                    b"bad.failure" => outcome.failure = failure(u32::MAX),
                    _ => push(&mut outcome.effects, event, index as u32),
                }
            }
            outcome
        }

        fn flush(_: FlushReason) -> Result<Effects, Failure> {
            Ok(Effects { arena: vec![], records: vec![] })
        }

        fn snapshot() -> Vec<u8> {
            vec![]
        }
    }

    millrace_guest::bindings::export_component!(BadEffects with_types_in millrace_guest::bindings);
}
