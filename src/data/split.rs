//! `split`: which part of a file's rows is taken, in the datasets library's notation.

use super::error::Error;
use std::ops::Range;

/// A part of the rows: `train[from:to]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Split {
    from: Option<Bound>,
    to: Option<Bound>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Rows(u64),
    Percent(u64),
}

impl Bound {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_suffix('%');
        let number: u64 = digits.unwrap_or(text).parse().ok()?;
        match digits {
            Some(_) if number > 100 => None,
            Some(_) => Some(Self::Percent(number)),
            None => Some(Self::Rows(number)),
        }
    }

    /// Percentages round to the nearest row, as the datasets library does.
    fn of(self, rows: u64) -> u64 {
        match self {
            Self::Rows(n) => n.min(rows),
            Self::Percent(p) => {
                let exact = (u128::from(rows) * u128::from(p) + 50) / 100;
                u64::try_from(exact).unwrap_or(rows).min(rows)
            }
        }
    }
}

impl Split {
    /// Reads `train`, `train[:100]`, `train[100:]`, `train[10%:20%]`.
    ///
    /// # Errors
    /// Anything else: a local file has no other splits.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Split(text.to_owned());
        let rest = text.trim().strip_prefix("train").ok_or_else(wrong)?;
        if rest.is_empty() {
            return Ok(Self::default());
        }
        let inside = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')).ok_or_else(wrong)?;
        let (from, to) = inside.split_once(':').ok_or_else(wrong)?;
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            text => Bound::parse(text).map(Some).ok_or_else(wrong),
        };
        Ok(Self { from: bound(from)?, to: bound(to)? })
    }

    /// Whether the rows must be counted before the first is taken.
    pub(super) fn needs_count(self) -> bool {
        let percent = |b: Option<Bound>| matches!(b, Some(Bound::Percent(_)));
        percent(self.from) || percent(self.to)
    }

    /// The part of a file of `rows` rows; `u64::MAX` stands for a count that is not needed.
    pub(super) fn range(self, rows: u64) -> Range<u64> {
        let from = self.from.map_or(0, |b| b.of(rows));
        let to = self.to.map_or(rows, |b| b.of(rows));
        from..to.max(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_by_rows_and_by_percent() {
        let range = |text: &str, rows| Split::parse(text).unwrap().range(rows);
        assert_eq!(range("train", 10), 0..10);
        assert_eq!(range("train[:3]", 10), 0..3);
        assert_eq!(range("train[3:]", 10), 3..10);
        assert_eq!(range("train[10%:20%]", 1000), 100..200);
        assert_eq!(range("train[:50%]", 3), 0..2);
        assert_eq!(range("train[8:100]", 10), 8..10);
        assert_eq!(range("train[20:30]", 10), 10..10);
        assert_eq!(range("train[5:2]", 10), 5..5);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "test",
            "train[",
            "train[]",
            "train[5]",
            "train[-5:]",
            "train[:101%]",
            "train[a:b]",
            "train[1.5:2]",
            "trainx",
            "train+test",
            "train[:99999999999999999999]",
        ] {
            assert!(Split::parse(text).is_err(), "{text}");
        }
    }
}
