//! A small deterministic mutator, for runs without libFuzzer: the same seed gives the same inputs on any machine.

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` − 1, and 0 for 0.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Pieces that parsers give a meaning to.
const WORDS: [&[u8]; 22] = [
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-0",
    b"1e1",
    b"9007199254740992",
    b"9223372036854775808",
    b"null",
    b"\n",
    b"\n\n",
    b"+",
    "\u{2014} ".as_bytes(),
    "\u{1f600}".as_bytes(),
    b"\xff",
    &[0xff; 8],
    &[0; 8],
];

/// The `n`th input of `seed`: one of `corpus` with one to four changes, among them pieces of its other inputs.
pub fn mutated(corpus: &[Vec<u8>], seed: u64, n: u64) -> Vec<u8> {
    let mut random = Random(seed ^ n.wrapping_mul(0xd134_2543_de82_ef95));
    let Some(base) = corpus.get(random.below(corpus.len())) else { return Vec::new() };
    let mut out = base.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len());
        let to = at + random.below((out.len() - at).min(64));
        match random.below(8) {
            0 => out.get_mut(at).into_iter().for_each(|b| *b ^= 1 << random.below(8)),
            1 => out.get_mut(at).into_iter().for_each(|b| *b = random.below(256) as u8),
            2 => out.insert(at, random.below(256) as u8),
            3 => drop(out.drain(at..to)),
            4 => {
                let word = WORDS[random.below(WORDS.len())];
                drop(out.splice(at..at, word.iter().copied()));
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                drop(out.splice(at..to, word.iter().copied()));
            }
            6 => {
                let piece = out[at..to].to_vec();
                drop(out.splice(at..at, piece));
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                let until = from + random.below((other.len() - from).min(64));
                drop(out.splice(at..to, other[from..until].iter().copied()));
            }
        }
    }
    out
}
