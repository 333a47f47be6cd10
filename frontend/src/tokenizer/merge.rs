//! The merge loop that both kinds of vocabularies share: neighbours are joined, best pair first, until none fits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A piece of text and the id it stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Symbol {
    pub start: usize,
    pub end: usize,
    pub id: u32,
}

const NONE: usize = usize::MAX;

struct Link {
    symbol: Symbol,
    prev: usize,
    next: usize,
    alive: bool,
}

/// A pair that may be joined. Orders by rank, then from left to right.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: u32,
    left: usize,
    right: usize,
    /// Where both symbols ended when the pair was found; if they end elsewhere now, it is stale.
    middle: usize,
    end: usize,
    id: u32,
}

/// Joins neighbours for which `pair` gives a rank (lower is better) and the id of the whole. Takes n log n steps.
#[allow(clippy::indexing_slicing, reason = "all indices are links of the list itself")]
pub(super) fn merge(
    symbols: impl IntoIterator<Item = Symbol>,
    pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
) -> Vec<Symbol> {
    let mut links: Vec<Link> = Vec::new();
    for symbol in symbols {
        let at = links.len();
        links.push(Link { symbol, prev: at.wrapping_sub(1), next: at + 1, alive: true });
    }
    if let Some(last) = links.last_mut() {
        last.next = NONE;
    }
    let mut queue = BinaryHeap::new();
    let add = |queue: &mut BinaryHeap<Reverse<Pair>>, links: &[Link], left: usize, right: usize| {
        let (a, b) = (&links[left].symbol, &links[right].symbol);
        if let Some((rank, id)) = pair(a, b) {
            queue.push(Reverse(Pair { rank, left, right, middle: a.end, end: b.end, id }));
        }
    };
    for right in 1..links.len() {
        add(&mut queue, &links, right - 1, right);
    }
    while let Some(Reverse(p)) = queue.pop() {
        let (left, right) = (&links[p.left], &links[p.right]);
        if !left.alive || !right.alive || left.symbol.end != p.middle || right.symbol.end != p.end {
            continue;
        }
        let after = right.next;
        links[p.right].alive = false;
        links[p.left].symbol.end = p.end;
        links[p.left].symbol.id = p.id;
        links[p.left].next = after;
        if after != NONE {
            links[after].prev = p.left;
            add(&mut queue, &links, p.left, after);
        }
        let before = links[p.left].prev;
        if before != NONE {
            add(&mut queue, &links, before, p.left);
        }
    }
    links.into_iter().filter(|l| l.alive).map(|l| l.symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_pairs_first_then_from_the_left() {
        let text = "aaab";
        let symbols = (0..4).map(|i| Symbol { start: i, end: i + 1, id: 0 });
        let pair = |a: &Symbol, b: &Symbol| match &text[a.start..b.end] {
            "aa" => Some((1, 1)),
            "ab" => Some((0, 2)),
            "aaab" => Some((2, 3)),
            _ => None,
        };
        let ids: Vec<u32> = merge(symbols, pair).into_iter().map(|s| s.id).collect();
        assert_eq!(ids, [3]);
        assert!(merge([], |_, _| None).is_empty());
    }
}
