//! What `like` and `ilike` mean, for every backend and for live predicates.

/// Whether a text matches a pattern: `%` stands for any run, `_` for one
/// character, everything else for itself. Case matters.
pub fn matches_like(pattern: &str, text: &str) -> bool {
    matches(pattern, text, |a, b| a == b)
}

/// The same where the case of ASCII letters does not matter.
pub fn matches_ilike(pattern: &str, text: &str) -> bool {
    matches(pattern, text, |a, b| a.eq_ignore_ascii_case(&b))
}

/// Walks both texts once and goes back to the latest `%` only, so that a
/// hostile pattern costs at most pattern times text, never more.
fn matches(pattern: &str, text: &str, same: impl Fn(char, char) -> bool) -> bool {
    let mut pattern_rest = pattern.chars();
    let mut text_rest = text.chars();
    // Where to go on when what follows the latest `%` does not fit: behind it, one character later.
    let mut again: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let mut next = pattern_rest.clone();
        match next.next() {
            Some('%') => {
                again = Some((next.clone(), text_rest.clone()));
                pattern_rest = next;
                continue;
            }
            None if text_rest.as_str().is_empty() => return true,
            wanted => {
                let mut following = text_rest.clone();
                let fits = match (wanted, following.next()) {
                    (Some('_'), Some(_)) => true,
                    (Some(wanted), Some(found)) => same(wanted, found),
                    _ => false,
                };
                if fits {
                    pattern_rest = next;
                    text_rest = following;
                    continue;
                }
            }
        }
        let Some((behind, from)) = &mut again else { return false };
        if from.next().is_none() {
            return false;
        }
        pattern_rest = behind.clone();
        text_rest = from.clone();
    }
}
