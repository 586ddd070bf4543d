//! Notes what it finds in its environment, which is nothing without the grant `env`.

use millrace_guest::{Column, Context, Effects, Event, Failure, Manifest, Processor, Saved, Table};
use serde::Serialize;

static VARIABLES: Table = Table::new("env_variables", &[Column::text("value")]);

#[derive(Serialize)]
struct Variable<'a> {
    value: &'a str,
}

struct ReadsEnv;

impl Processor for ReadsEnv {
    fn manifest() -> Manifest {
        Manifest::new("reads-env", "1.0.0").grants(&["env"]).tables(&[&VARIABLES])
    }

    fn load(_: Context, _: Option<Saved>) -> Result<Self, String> {
        Ok(Self)
    }

    fn handle(&mut self, _: Event<'_>, out: &mut Effects) -> Result<(), Failure> {
        for (name, value) in std::env::vars() {
            out.put(&VARIABLES, &name, 0, &Variable { value: &value })?;
        }
        Ok(())
    }
}

millrace_guest::export!(ReadsEnv);
