//! Lengths of time as people write them.

use std::time::Duration;

/// `250ms`, `90s`, `15m`, `12h`, `30d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60 * 1_000,
        "h" => 3_600 * 1_000,
        "d" => 24 * 3_600 * 1_000,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds)) {
        Some(span) if milliseconds > 0 => Ok(Duration::from_millis(span)),
        _ => Err("write a whole number with ms, s, m, h or d behind it, such as 30d".into()),
    }
}

/// The same the other way round, in the largest unit that fits.
pub(super) fn text(span: Duration) -> String {
    let milliseconds = span.as_millis();
    for (unit, of) in [("d", 24 * 3_600 * 1_000), ("h", 3_600 * 1_000), ("m", 60 * 1_000), ("s", 1_000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(of) {
            return format!("{}{unit}", milliseconds / of);
        }
    }
    if milliseconds == 0 { "0s".into() } else { format!("{milliseconds}ms") }
}
