//! Bars for people: drawn over themselves on a terminal, and hidden where nobody looks.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const BYTES: &str = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {msg}  {elapsed_precise}";
/// What is too long for the terminal is cut.
const SHARE: &str = "{bar:30} {wide_msg}";

/// Of bytes on the way. Hidden where nobody looks, or where it is not wanted.
pub(super) fn bytes_bar(total: u64, wanted: bool) -> ProgressBar {
    bar(total, BYTES, wanted)
}

/// Of something whose end may move on meanwhile: it is told with each [`Share`].
pub(super) fn share_bar(wanted: bool) -> ProgressBar {
    bar(0, SHARE, wanted)
}

fn bar(total: u64, template: &str, wanted: bool) -> ProgressBar {
    if !wanted || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// How much of something is done, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) done: u64,
    pub(super) all: u64,
    pub(super) text: String,
}

impl Share {
    /// 100 only once all is done.
    fn percent(&self) -> u64 {
        let done = u128::from(self.done.min(self.all)) * 100;
        done.checked_div(self.all.into()).and_then(|percent| percent.try_into().ok()).unwrap_or(100)
    }

    /// What stands beside the bar, and alone where there is none.
    pub(super) fn line(&self) -> String {
        format!("{:>3} %  {}", self.percent(), self.text)
    }

    pub(super) fn show(&self, bar: &ProgressBar) {
        bar.set_length(self.all);
        bar.set_position(self.done.min(self.all));
        bar.set_message(self.line());
    }
}

/// So many seconds, in the two largest units that they fill.
pub(super) fn lasting(seconds: u64) -> String {
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_told_once_it_is_done_and_not_before() {
        let percent = |done, all| Share { done, all, text: String::new() }.percent();
        assert_eq!([percent(0, 7), percent(3, 7), percent(6, 7), percent(7, 7)], [0, 42, 85, 100]);
        assert_eq!(percent(999_999, 1_000_000), 99);
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
        // Nothing is to be done, or the end is known from before.
        assert_eq!([percent(0, 0), percent(9, 7)], [100, 100]);
    }

    #[test]
    fn what_is_left_is_told_in_two_units() {
        let told = [0, 59, 60, 3_599, 3_600, 90_000].map(lasting);
        assert_eq!(told, ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min"]);
    }

    #[test]
    fn bars_can_be_drawn_as_they_are_written() {
        for template in [BYTES, SHARE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
