//! What benchmarks give to each language to do: departures to fold, and the guest that does it as native code.

#[path = "../../plugins/misbehaving/guests/fold.rs"]
mod fold;

use millrace::event::{Event, EventBatch, Micros, TenantId};

pub use fold::Fold;

/// Of each payload.
pub const PAYLOAD_BYTES: usize = 97;
/// The guest, by its names in Rust, JavaScript and Python.
pub const GUESTS: [&str; 3] = ["fold", "fold-js", "fold-python"];

const CARRIERS: [&str; 14] =
    ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "UA", "US", "VX", "WN"];
const PLACES: [&str; 4] = ["ATL", "BQN", "IAH", "MIA"];

/// So many departures, numbered from `first`.
pub fn departures(first: u64, count: u64) -> EventBatch {
    let mut batch = EventBatch::new(TenantId::new("default").expect("a good name"));
    for number in first..first + count {
        let index = usize::try_from(number % 1_000_000).expect("it is small");
        let (carrier, place) = (CARRIERS[index % CARRIERS.len()], PLACES[index % PLACES.len()]);
        let (flight, tail, minutes) = (1_000 + number % 9_000, 10_000 + number % 90_000, 10 + number % 90);
        let payload = format!(
            "{{\"carrier\":\"{carrier}\",\"flight\":{flight},\"origin\":\"EWR\",\"dest\":\"{place}\",\
             \"tail\":\"N{tail}\",\"dep_delay_minutes\":{minutes}}}"
        );
        assert_eq!(payload.len(), PAYLOAD_BYTES, "{payload}");
        let agg_id = format!("{carrier}{flight}");
        let at = Micros(1_357_000_000_000_000 + i64::try_from(number).expect("there are few") * 1_000);
        let event = Event {
            aggregate: "flight",
            agg_id: &agg_id,
            event_type: "flight.departed",
            version: number + 1,
            at,
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    batch
}
