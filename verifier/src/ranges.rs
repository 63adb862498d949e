//! What a report says of each stretch of a chain: verified, broken, or not covered and why.

use serde_json::json;

use crate::report::ChainReport;

/// From the first entry with a fault to behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Behind the last entry that there should be and is not; 0 if none is missing.
    pub(crate) missing: u64,
}

impl Extent {
    /// Both, and what lies between them.
    pub(crate) fn join(self, other: Extent) -> Extent {
        Extent { from: self.from.min(other.from), to: self.to.max(other.to), missing: self.missing.max(other.missing) }
    }
}

/// What is known of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its entries are what was signed, by keys of the ledger that was asked for.
    Verified,
    /// It begins at the first entry with a fault, or that is missing, and ends after the last.
    Broken,
    /// Nothing speaks against it, and something is missing that would speak for it.
    NotCovered,
}

impl Standing {
    /// The words.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Verified => "verified",
            Standing::Broken => "broken",
            Standing::NotCovered => "not covered",
        }
    }
}

/// Neighbouring entries of which the same is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Index of the first.
    pub from: u64,
    /// Index after the last.
    pub to: u64,
    /// What is known of them.
    pub standing: Standing,
    /// Why it is no more; empty where they are verified.
    pub why: &'static str,
}

impl Range {
    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let Range { from, to, standing, why } = self;
        let which = match to - from {
            1 => format!("entry {from}"),
            _ => format!("entries {from} to {}", to - 1),
        };
        let why = if why.is_empty() { String::new() } else { format!(", {why}") };
        format!("{}: {which}{why}", standing.as_str())
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({ "from": self.from, "to": self.to, "standing": self.standing.as_str(), "why": self.why })
    }
}

/// Of which ledger a chain is, for all that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Pinned,
    Unknown,
    Another,
}

/// The stretches of a chain, in order, without gaps.
pub(crate) fn ranges(chain: &ChainReport, faults: Option<Extent>, owner: Owner) -> Vec<Range> {
    let kept = chain.anchored.max(chain.covered).unwrap_or(0);
    let anchored = chain.anchored.unwrap_or(0);
    let there = chain.entries.max(chain.end);
    let end = there.max(faults.map_or(0, |e| e.missing));
    // What an anchor has and the chain has not is missing from its end on. Where there is no entry, and none is missing, none is broken.
    let faults = faults.map(|e| (if e.missing > there { e.from.min(there) } else { e.from }, e.to.min(end)));
    let faults = faults.filter(|(from, to)| from < to);
    let of = |index: u64| match faults {
        _ if index < chain.from => (Standing::NotCovered, "which were not read"),
        Some((from, to)) if (from..to).contains(&index) => {
            (Standing::Broken, "from the first entry with a fault to the last")
        }
        Some((_, to)) if index >= to => (Standing::NotCovered, "which rest on what is broken"),
        _ if owner == Owner::Another => (Standing::NotCovered, "which are not of the ledger that was asked for"),
        _ if owner == Owner::Unknown => (Standing::NotCovered, "which hold together, and nothing says whose they are"),
        // An anchor is from before, and does not rest on what the keys are now.
        _ if chain.registry_doubtful && index >= anchored => {
            (Standing::NotCovered, "whose keys are in a registry that is damaged")
        }
        _ if chain.doubtful.iter().any(|(from, to)| (*from..*to).contains(&index)) => {
            (Standing::NotCovered, "which rest on a key that was in other hands then")
        }
        // Before a fault entries are signed by their commits, and what follows them is there. What a checkpoint says is not certain then.
        _ if index < kept || faults.is_some() => (Standing::Verified, ""),
        _ => (Standing::NotCovered, "which hold together and are signed, and which no checkpoint covers yet"),
    };
    let mut bounds = vec![chain.from, anchored, kept, end];
    bounds.extend(faults.iter().flat_map(|(from, to)| [*from, *to]));
    bounds.extend(chain.doubtful.iter().flat_map(|(from, to)| [*from, *to]));
    bounds.retain(|bound| (1..=end).contains(bound));
    bounds.sort_unstable();
    bounds.dedup();
    let mut ranges: Vec<Range> = Vec::new();
    let mut from = 0;
    for to in bounds {
        let (standing, why) = of(from);
        match ranges.last_mut().filter(|last| (last.standing, last.why) == (standing, why)) {
            Some(last) => last.to = to,
            None => ranges.push(Range { from, to, standing, why }),
        }
        from = to;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(chain: &ChainReport, faults: Option<(u64, u64)>, owner: Owner) -> Vec<(u64, u64, Standing)> {
        let ranges = ranges(chain, faults.map(|(from, to)| Extent { from, to, missing: 0 }), owner);
        ranges.iter().map(|r| (r.from, r.to, r.standing)).collect()
    }

    /// Ranges follow on one another from the first entry to the last, whatever is known of them.
    #[test]
    fn each_entry_is_in_one_range() {
        use Standing::{Broken, NotCovered, Verified};
        let chain = |entries, from, covered, anchored| ChainReport {
            entries,
            from,
            covered,
            anchored,
            ..ChainReport::default()
        };
        let whole = chain(100, 0, Some(90), None);
        assert_eq!(said(&whole, None, Owner::Pinned), [(0, 90, Verified), (90, 100, NotCovered)]);
        assert_eq!(said(&whole, None, Owner::Unknown), [(0, 100, NotCovered)]);
        assert_eq!(said(&whole, None, Owner::Another), [(0, 100, NotCovered)]);
        let faulty = [(0, 40, Verified), (40, 51, Broken), (51, 100, NotCovered)];
        assert_eq!(said(&whole, Some((40, 51)), Owner::Pinned), faulty);
        assert_eq!(said(&whole, Some((0, 100)), Owner::Pinned), [(0, 100, Broken)]);
        assert_eq!(said(&chain(100, 0, None, None), Some((40, 51)), Owner::Pinned), faulty);
        // What was not read, and what an anchor proves to be missing.
        let tail = chain(100, 30, Some(100), Some(60));
        assert_eq!(said(&tail, None, Owner::Pinned), [(0, 30, NotCovered), (30, 100, Verified)]);
        // Keys that nobody can be sure of: what an anchor has, it had before.
        let keys = ChainReport { registry_doubtful: true, ..chain(100, 0, Some(100), Some(60)) };
        assert_eq!(said(&keys, None, Owner::Pinned), [(0, 60, Verified), (60, 100, NotCovered)]);
        let missing = ranges(&whole, Some(Extent { from: 119, to: 120, missing: 120 }), Owner::Pinned);
        assert_eq!(missing.last().map(|r| (r.from, r.to, r.standing)), Some((100, 120, Broken)));
        // A row of a place where no entry is breaks none.
        assert_eq!(said(&whole, Some((1 << 50, (1 << 50) + 1)), Owner::Pinned), said(&whole, None, Owner::Pinned));
        // Where rows are missing there are fewer than places.
        let gap = ChainReport { end: 100, ..chain(98, 0, Some(100), None) };
        assert_eq!(
            said(&gap, Some((10, 12)), Owner::Pinned),
            [(0, 10, Verified), (10, 12, Broken), (12, 100, NotCovered)]
        );
        let doubt = ChainReport { doubtful: vec![(20, 30)], ..chain(40, 0, Some(40), None) };
        let expected = [(0, 20, Verified), (20, 30, NotCovered), (30, 40, Verified)];
        assert_eq!(said(&doubt, None, Owner::Pinned), expected);
        assert_eq!(said(&chain(0, 0, None, None), None, Owner::Pinned), []);
    }
}
