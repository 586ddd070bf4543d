//! Behaves, and measures catching up: keeps a little state and asks for nothing.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved};

const STATE: &str = "application/vnd.millrace.tally.v1";

#[derive(Default)]
struct Tally {
    events: u64,
    payload_bytes: u64,
    newest: i64,
}

impl Processor for Tally {
    fn manifest() -> Manifest {
        Manifest::new("tally", "1.0.0").summary("Counts events and the bytes of their payloads").state(STATE)
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let Some(saved) = saved else { return Ok(Self::default()) };
        let number = |index: usize| saved.state.get(index * 8..index * 8 + 8)?.try_into().ok();
        let numbers: Option<[[u8; 8]; 3]> = (|| Some([number(0)?, number(1)?, number(2)?]))();
        let [events, bytes, newest] = numbers.ok_or("the saved state has fewer than 24 bytes")?;
        Ok(Self {
            events: u64::from_le_bytes(events),
            payload_bytes: u64::from_le_bytes(bytes),
            newest: i64::from_le_bytes(newest),
        })
    }

    fn handle(&mut self, event: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        self.events += 1;
        self.payload_bytes += event.payload().len() as u64;
        self.newest = self.newest.max(event.at().0);
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        [self.events.to_le_bytes(), self.payload_bytes.to_le_bytes(), self.newest.to_le_bytes()].concat()
    }
}

millrace_guest::export!(Tally);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn it_counts_and_goes_on_counting_after_a_restart() {
        let mut driver = Driver::<Tally>::new();
        driver.send(&[TestEvent::new("thing", "a", 1, "changed")]).unwrap();
        driver.restart().unwrap();
        driver.send(&[TestEvent::new("thing", "a", 2, "changed")]).unwrap();
        assert_eq!(driver.saved().expect("it has state").state[..8], 2_u64.to_le_bytes());
    }
}
