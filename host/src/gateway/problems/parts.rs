//! One list out of several.

use super::ProblemKind;

pub(super) const fn count(parts: &[&[ProblemKind]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// All of them, one after the other; `N` is what [`count`] answers.
pub(super) const fn joined<const N: usize>(parts: &[&[ProblemKind]]) -> [ProblemKind; N] {
    let mut all = [parts[0][0]; N];
    let (mut index, mut part, mut place) = (0, 0, 0);
    while index < N {
        if place == parts[part].len() {
            (part, place) = (part + 1, 0);
            continue;
        }
        all[index] = parts[part][place];
        (index, place) = (index + 1, place + 1);
    }
    all
}
