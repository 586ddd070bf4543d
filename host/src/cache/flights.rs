//! Who is loading what: of those who miss the same under the same stamp, one loads and the others wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Loaded, Stamp};

/// What is loaded: an entry, as it was missed, and how recent it must be. Whoever misses after an invalidation has
/// another stamp, and so waits for no load that began before it.
pub(super) type Wanted = (String, Stamp, u64);

/// How a load ended. One that was given up ends without a word.
#[derive(Clone, Debug)]
pub(super) enum Landed {
    Loaded(Loaded),
    Failed,
}

type Waiting = watch::Receiver<Option<Landed>>;

#[derive(Debug, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<Wanted, Waiting>>>);

/// Whoever holds it loads. Dropped without [`Flight::land`], be it by a panic, it lets the next one load.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Arc<Mutex<HashMap<Wanted, Waiting>>>,
    wanted: Wanted,
    tell: watch::Sender<Option<Landed>>,
}

pub(super) enum Boarded {
    Leads(Flight),
    Follows(Waiting),
}

impl Flights {
    pub(super) fn board(&self, wanted: &Wanted) -> Boarded {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = flights.get(wanted) {
            return Boarded::Follows(waiting.clone());
        }
        let (tell, waiting) = watch::channel(None);
        flights.insert(wanted.clone(), waiting);
        Boarded::Leads(Flight { flights: Arc::clone(&self.0), wanted: wanted.clone(), tell })
    }
}

impl Flight {
    pub(super) fn land(self, landed: Landed) {
        self.tell.send_replace(Some(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.wanted);
    }
}

/// Waits for somebody else's load. None when it was given up.
pub(super) async fn follow(mut waiting: Waiting) -> Option<Landed> {
    let landed = waiting.wait_for(Option::is_some).await;
    landed.ok().and_then(|landed| landed.clone())
}
