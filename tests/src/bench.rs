//! What every benchmark shares: rounds, medians, a Markdown table, a JSON file.
//!
//! A benchmark that misses its floor says so and does not fail: machines
//! differ, and the table is for people. What reads the JSON decides.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// How often a figure is measured where nothing else is said; the median counts.
pub const ROUNDS: usize = 3;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    pub name: String,
    /// The median of the rounds.
    pub value: f64,
    pub rounds: usize,
    pub unit: String,
    /// What it must reach, where something was promised.
    pub floor: Option<f64>,
    pub higher_is_better: bool,
}

/// What a figure is, without its value.
#[derive(Clone, Copy, Debug)]
pub struct Figure<'a> {
    pub name: &'a str,
    pub unit: &'a str,
    pub floor: Option<f64>,
    pub better: Better,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// The figures of one suite.
#[derive(Debug)]
pub struct Suite {
    name: String,
    measurements: Vec<Measurement>,
}

impl Suite {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), measurements: Vec::new() }
    }

    /// Measures a figure in [`ROUNDS`] rounds. The round's number comes in, its value goes out.
    pub fn measure(
        &mut self,
        figure: Figure<'_>,
        mut round: impl FnMut(usize) -> Result<f64>,
    ) -> Result<f64> {
        let mut values = Vec::with_capacity(ROUNDS);
        for number in 0..ROUNDS {
            let value = round(number).with_context(|| format!("{}, round {}", figure.name, number + 1))?;
            eprintln!("  {} round {}: {} {}", figure.name, number + 1, readable(value), figure.unit);
            values.push(value);
        }
        self.record(figure, &values)
    }

    /// Takes the values of rounds that were measured elsewhere, and answers their median.
    pub fn record(&mut self, figure: Figure<'_>, values: &[f64]) -> Result<f64> {
        let value = median(values).with_context(|| format!("{} has no values", figure.name))?;
        ensure!(value.is_finite(), "{} is {value}", figure.name);
        self.measurements.push(Measurement {
            name: figure.name.into(),
            value,
            rounds: values.len(),
            unit: figure.unit.into(),
            floor: figure.floor,
            higher_is_better: figure.better == Better::Higher,
        });
        Ok(value)
    }

    pub fn measurements(&self) -> &[Measurement] {
        &self.measurements
    }

    /// The figures as a Markdown table.
    pub fn table(&self) -> String {
        let mut text = format!(
            "### {}\n\n| figure | median | rounds | unit | floor | |\n|---|--:|--:|---|--:|---|\n",
            self.name
        );
        for m in &self.measurements {
            let floor = m.floor.map_or_else(String::new, readable);
            let verdict = match m.holds() {
                None => "",
                Some(true) => "holds",
                Some(false) => "**missed**",
            };
            text.push_str(&format!(
                "| {} | {} | {} | {} | {floor} | {verdict} |\n",
                m.name,
                readable(m.value),
                m.rounds,
                m.unit
            ));
        }
        text
    }

    /// Prints the table and writes `SUITE.json` into a folder.
    pub fn finish(&self, dir: &Path) -> Result<PathBuf> {
        writeln!(std::io::stdout(), "{}", self.table()).context("standard output cannot be written")?;
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let path = dir.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(&self.measurements)?;
        fs::write(&path, text + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }
}

impl Measurement {
    /// Whether it reaches its floor, where it has one.
    pub fn holds(&self) -> Option<bool> {
        self.floor.map(|floor| if self.higher_is_better { self.value >= floor } else { self.value <= floor })
    }
}

/// The middle value; of an even number, the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The value that `percent` of all values do not exceed.
pub fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

/// Four figures, thousands apart.
fn readable(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let (whole, part) = text.split_once('.').map_or((text.as_str(), ""), |(whole, part)| (whole, part));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if part.is_empty() { format!("{sign}{grouped}") } else { format!("{sign}{grouped}.{part}") }
}
