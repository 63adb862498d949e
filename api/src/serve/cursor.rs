//! A place in all chains at once: `chain:index` for each, joined by commas. It names the last entry that was seen of each chain; a
//! chain that is not named was not seen at all. It is `Last-Event-ID` of feeds and `after` of pages.

use std::fmt;

use super::error::ApiError;

/// How far a reader is in every chain: the index of the next entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) Vec<u64>);

impl Cursor {
    /// Before the first entry of every chain.
    pub(crate) fn start(chains: u32) -> Cursor {
        Cursor(vec![0; chains as usize])
    }

    /// Reads `0:41,1:17`.
    pub(crate) fn parse(text: &str, chains: u32) -> Result<Cursor, ApiError> {
        let mut next = vec![None; chains as usize];
        let form = || {
            ApiError::invalid("a cursor is chain:index, joined by commas, each chain once: send back the one you got")
        };
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (chain, index) = item.split_once(':').ok_or_else(form)?;
            let number = |text: &str| {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                text.parse::<u64>().ok().filter(|n| digits && *n < (1 << 53)).ok_or_else(form)
            };
            let place = next.get_mut(number(chain)? as usize).filter(|place| place.is_none()).ok_or_else(form)?;
            *place = Some(number(index)? + 1);
        }
        Ok(Cursor(next.into_iter().map(Option::unwrap_or_default).collect()))
    }

    /// Refuses a place beyond the ends of the chains, `sizes`: whoever saw those entries saw another history.
    pub(crate) fn check(&self, sizes: &[u64]) -> Result<(), ApiError> {
        let beyond = self.0.iter().zip(sizes).any(|(next, size)| next > size);
        let message = "the cursor is beyond the end of the ledger: it is of another ledger, or entries that you saw are gone; \
                       verify the ledger against a checkpoint that you kept";
        if beyond { Err(ApiError::invalid(message)) } else { Ok(()) }
    }

    /// Notes that an entry was seen.
    pub(crate) fn saw(&mut self, chain: u32, index: u64) {
        if let Some(next) = self.0.get_mut(chain as usize) {
            *next = index + 1;
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.0.iter().enumerate().filter(|(_, next)| **next > 0);
        for (i, (chain, next)) in seen.enumerate() {
            write!(f, "{}{chain}:{}", if i > 0 { "," } else { "" }, next - 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_print_as_they_are_read() {
        for text in ["", "0:41", "1:0", "0:41,2:7"] {
            assert_eq!(Cursor::parse(text, 3).unwrap().to_string(), text);
        }
        assert_eq!(Cursor::parse("2:7,0:41", 3).unwrap(), Cursor(vec![42, 0, 8]));
        for bad in ["0", "0:", ":1", "3:1", "0:1,0:2", "0:-1", "0:+1", "x:1", "0:99999999999999999999"] {
            assert!(Cursor::parse(bad, 3).is_err(), "{bad}");
        }
    }
}
