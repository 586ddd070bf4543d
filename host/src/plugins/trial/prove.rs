//! Whether a processor makes the same of the same events however they come: in batches of any size, over restarts, and
//! at another time.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cut, Difference, Fold, FoldError, Folded};
use crate::limits::{TRIAL_CLOCK_MOVES, TRIAL_TICK_EVENTS};

/// A host's batches are that large.
const LARGE: usize = 1_000;
const BATCHES: [usize; 3] = [1, 7, LARGE];
/// A batch ends where a restart is due.
const RESTARTS: [Option<usize>; 2] = [None, Some(11)];

/// How it is tried.
#[derive(Clone, Copy, Debug)]
pub struct Prove {
    /// How far the clock moves between two runs that are to be equal.
    pub clock_moves: Duration,
}

impl Default for Prove {
    fn default() -> Self {
        Self { clock_moves: TRIAL_CLOCK_MOVES }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Runs over the events.
    pub runs: usize,
    pub findings: Vec<Finding>,
    /// What came out, events one by one.
    pub folded: Folded,
}

/// Something that an author should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub code: &'static str,
    /// It must not be so. What is not grave is only worth knowing.
    pub grave: bool,
    pub message: String,
    pub difference: Option<Difference>,
    /// The first so many events show it; without the last of them it does not show.
    pub events: Option<usize>,
}

impl Finding {
    pub fn grave(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, grave: true, message: message.into(), difference: None, events: None }
    }

    pub fn note(code: &'static str, message: impl Into<String>) -> Self {
        Self { grave: false, ..Self::grave(code, message) }
    }
}

impl Proof {
    /// Whether nothing was found that must not be.
    pub fn holds(&self) -> bool {
        self.findings.iter().all(|finding| !finding.grave)
    }
}

impl Prove {
    /// Runs a processor over its events again and again, each time cut in another way.
    pub fn run(&self, fold: &Fold<'_>) -> Result<Proof, FoldError> {
        let tick_every = fold.factory.manifest().flush_interval_ms.map(|_| TRIAL_TICK_EVENTS);
        let singly = Cut { batch_events: 1, restart_every: None, tick_every };
        let begun = Instant::now();
        let first = fold.run(singly)?;
        let mut proof = Proof { runs: 1, findings: about(&first), folded: first };
        thread::sleep(self.clock_moves.saturating_sub(begun.elapsed()));
        if proof.differs(fold, singly)?.is_some() {
            proof.unrepeatable(fold, singly)?;
            // Every other run would differ, too, and say nothing about its cut.
            return Ok(proof);
        }
        let mut cuts: Vec<(usize, Option<usize>)> =
            BATCHES.into_iter().flat_map(|size| RESTARTS.map(|restart| (size, restart))).collect();
        if fold.first.min(fold.events.len()) > LARGE {
            // Restarts that leave large batches whole.
            cuts.push((LARGE, Some(LARGE)));
        }
        for (batch_events, restart_every) in cuts {
            let cut = Cut { batch_events, restart_every, tick_every };
            for _ in 0..2 {
                if cut != singly {
                    proof.compare(fold, singly, cut)?;
                }
            }
        }
        if tick_every.is_some() {
            proof.ticks(fold, singly)?;
        }
        Ok(proof)
    }
}

impl Proof {
    /// Where another run parts from the first one.
    fn differs(&mut self, fold: &Fold<'_>, cut: Cut) -> Result<Option<Difference>, FoldError> {
        let other = self.another(fold, cut)?;
        Ok(self.folded.first_difference(&other))
    }

    /// Another run, and what is wrong in itself.
    fn another(&mut self, fold: &Fold<'_>, cut: Cut) -> Result<Folded, FoldError> {
        let other = fold.run(cut)?;
        self.runs += 1;
        for fault in about(&other).into_iter().filter(|finding| finding.grave) {
            self.add(fault);
        }
        Ok(other)
    }

    fn compare(&mut self, fold: &Fold<'_>, singly: Cut, cut: Cut) -> Result<(), FoldError> {
        if self.differs(fold, cut)?.is_none() {
            return Ok(());
        }
        // A restart is to blame only where the same batches without one are the same.
        let batches = Cut { restart_every: None, ..cut };
        let (code, cut) = match cut.restart_every {
            Some(_) if cut.batch_events == 1 || self.differs(fold, batches)?.is_none() => ("restarts", cut),
            _ => ("batch_size", batches),
        };
        if self.knows(code) {
            return Ok(());
        }
        let (events, difference) = self.smallest(fold, singly, cut)?;
        let size = cut.batch_events;
        self.add(if code == "batch_size" {
            batch_size(size, events, difference)
        } else {
            let message = format!(
                "a restart changes what comes out (batches of {size}): something that counts is not in the state"
            );
            Finding { difference, events: Some(events), ..Finding::grave(code, message) }
        });
        Ok(())
    }

    fn unrepeatable(&mut self, fold: &Fold<'_>, cut: Cut) -> Result<(), FoldError> {
        let (events, difference) = self.smallest(fold, cut, cut)?;
        let message = "the same events, handed in the same way a moment later, give something else: it depends on the \
                       time, on chance, or on the order of something that has none";
        let found = Finding { difference, events: Some(events), ..Finding::grave("unrepeatable", message) };
        self.add(found);
        Ok(())
    }

    /// Ticks come by the clock of the host; that they matter may be meant. Without them batches are as large as they can
    /// be, and such are as good as events one by one.
    fn ticks(&mut self, fold: &Fold<'_>, singly: Cut) -> Result<(), FoldError> {
        let singly = Cut { tick_every: None, ..singly };
        let large = Cut { batch_events: LARGE, ..singly };
        let (one, other) = (self.another(fold, singly)?, self.another(fold, large)?);
        if one.first_difference(&other).is_some() && !self.knows("batch_size") {
            let (events, difference) = self.smallest(fold, singly, large)?;
            self.add(batch_size(LARGE, events, difference));
        }
        let difference = self.folded.first_difference(&one);
        if difference.is_some() {
            let message = "what comes out depends on when ticks come, and these come by the host's clock: a replay \
                           may give other rows";
            self.add(Finding { difference, ..Finding::note("ticks", message) });
        }
        Ok(())
    }

    /// How many of the first events are enough for two cuts to part, and where they do.
    fn smallest(
        &mut self,
        fold: &Fold<'_>,
        one: Cut,
        other: Cut,
    ) -> Result<(usize, Option<Difference>), FoldError> {
        let mut difference = None;
        // All of them are enough, and none are not.
        let (mut few, mut enough) = (0, fold.first.min(fold.events.len()));
        while enough - few > 1 || difference.is_none() {
            let middle =
                if difference.is_none() && enough - few <= 1 { enough } else { few + (enough - few) / 2 };
            let part = Fold { first: middle, ..*fold };
            let found = part.run(one)?.first_difference(&part.run(other)?);
            self.runs += 2;
            match found {
                Some(found) => (enough, difference) = (middle, Some(found)),
                // What comes and goes is no longer to be seen.
                None if middle == enough => break,
                None => few = middle,
            }
        }
        Ok((enough, difference))
    }

    fn knows(&self, code: &str) -> bool {
        self.findings.iter().any(|finding| finding.code == code)
    }

    fn add(&mut self, finding: Finding) {
        if !self.knows(finding.code) {
            self.findings.push(finding);
        }
    }
}

fn batch_size(size: usize, events: usize, difference: Option<Difference>) -> Finding {
    let message = format!("batches of {size} give something else than events one by one");
    Finding { difference, events: Some(events), ..Finding::grave("batch_size", message) }
}

/// What one run shows by itself.
fn about(folded: &Folded) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for fault in &folded.faults {
        if findings.iter().all(|known| known.code != fault.code()) {
            findings.push(Finding::grave(fault.code(), fault.to_string()));
        }
    }
    if let Some(why) = &folded.stopped {
        findings.push(Finding::grave("stopped", format!("the plugin stopped: {why}")));
    }
    if let Some(letter) = folded.letters.first() {
        let (letters, waiting) = (folded.letters.len(), folded.waiting.len());
        let message = format!(
            "{letters} events cannot be handled, and {waiting} wait behind them; the first is event {} ({}): {}",
            letter.position, letter.reason, letter.message
        );
        findings.push(Finding::note("dead_letters", message));
    }
    if folded.events == 0 {
        findings.push(Finding::note("no_events", "its subscription lets none of the events pass"));
    }
    findings
}
