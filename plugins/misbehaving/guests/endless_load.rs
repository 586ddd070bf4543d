//! Never comes back from `load`.

use millrace_guest::{Context, Effects, Event, Failure, Manifest, Processor, Saved};

struct EndlessLoad;

impl Processor for EndlessLoad {
    fn manifest() -> Manifest {
        Manifest::new("endless-load", "1.0.0")
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        loop {
            std::hint::spin_loop();
        }
    }

    fn handle(&mut self, _: Event<'_>, _: &mut Effects) -> Result<(), Failure> {
        Ok(())
    }
}

millrace_guest::export!(EndlessLoad);
