//! Names that a misspelt one may have meant.

/// Most names that are suggested.
const MOST: usize = 3;

/// Up to three of the known names that are most like `name`, best first. None where nothing is alike.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let allowed = (name.chars().count() + 1) / 3;
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .filter(|k| k.chars().count().abs_diff(name.chars().count()) <= allowed)
        .map(|k| (distance(name, k), k))
        .filter(|(d, _)| *d <= allowed)
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().take(MOST).map(|(_, k)| k).collect()
}

/// ``; did you mean `a` or `b`?`` where something is alike, otherwise the known names if they are few.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    const FEW: usize = 12;
    let known: Vec<&str> = known.into_iter().collect();
    let quoted = |names: &[&str]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>();
    match nearest(name, known.iter().copied()).as_slice() {
        [] if known.is_empty() => "; there are none".into(),
        [] if known.len() <= FEW => format!("; known are {}", quoted(&known).join(", ")),
        [] => String::new(),
        near => format!("; did you mean {}?", quoted(near).join(" or ")),
    }
}

/// Edit distance, where exchanging two neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = vec![];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut d = (row[j] + usize::from(x != y)).min(next[j] + 1).min(row[j + 1] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x {
                d = d.min(before[j - 1] + 1);
            }
            next.push(d);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_names_are_found() {
        let known = ["canon", "outline", "eqsat", "fuse", "lower"];
        assert_eq!(nearest("cannon", known), ["canon"]);
        assert_eq!(nearest("fues", known), ["fuse"]);
        assert_eq!(nearest("xyzzy", known), Vec::<&str>::new());
        assert_eq!(suggest("eqast", known), "; did you mean `eqsat`?");
        assert_eq!(suggest("q", ["a", "b"]), "; known are `a`, `b`");
        assert_eq!(suggest("xyzzy", ["a", "b"]), "; known are `a`, `b`");
        assert_eq!((distance("ab", "ba"), distance("", "abc"), distance("abc", "abc")), (1, 3, 0));
    }
}
