//! A bar of bytes on the way, for people.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Hidden where nobody looks, or where it is not wanted.
pub(super) fn bytes_bar(total: u64, wanted: bool) -> ProgressBar {
    if !wanted || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let template = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {msg}  {elapsed_precise}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
