//! Never says what it is.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved};

struct EndlessDescribe;

impl Processor for EndlessDescribe {
    fn manifest() -> Manifest {
        loop {
            std::hint::spin_loop();
        }
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, _: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        Ok(())
    }
}

millrace_guest::export!(EndlessDescribe);
