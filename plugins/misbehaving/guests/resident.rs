//! Behaves: the least that is a processor with state. Benchmarks put it on a host a thousand times: its
//! name has room for a number, which is written over the placeholder in the component's bytes.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved};

/// The digits are replaced, byte for byte; the name occurs nowhere else in the component.
const NAME: &str = "resident-000000";
const STATE: &str = "application/vnd.millrace.number.v1";

#[derive(Default)]
struct Resident {
    events: u64,
}

impl Processor for Resident {
    fn manifest() -> Manifest {
        Manifest::new(NAME, "1.0.0").state(STATE)
    }

    fn load(_: Context, saved: Option<Saved>) -> Result<Self, String> {
        let Some(saved) = saved else { return Ok(Self::default()) };
        let number = saved.state.as_slice().try_into().map_err(|_| "the saved state is not 8 bytes long")?;
        Ok(Self { events: u64::from_le_bytes(number) })
    }

    fn handle(&mut self, _: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        self.events += 1;
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        self.events.to_le_bytes().to_vec()
    }
}

millrace_guest::export!(Resident);

#[cfg(test)]
mod tests {
    use millrace_guest::testing::{Driver, TestEvent};

    use super::*;

    #[test]
    fn it_goes_on_counting_after_a_restart() {
        let event = |version| TestEvent::new("thing", "a", version, "changed");
        let mut driver = Driver::<Resident>::new();
        driver.send(&[event(1)]).unwrap();
        driver.restart().unwrap();
        driver.send(&[event(2)]).unwrap();
        assert_eq!(driver.saved().expect("it has state").state, 2_u64.to_le_bytes());
    }
}
