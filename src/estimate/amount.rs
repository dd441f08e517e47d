//! An amount of money together with how it came about: no dollar of this program is without its kind.

use crate::units::Usd;
use serde::{Deserialize, Serialize};

/// How a number came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// From a meter; of money: a stated price times metered time or energy.
    Measured,
    /// The user said so.
    Stated,
    /// From the estimate.
    Predicted,
    /// From a model of something that could not be measured.
    Modelled,
    /// It exists, and nobody knows how much it is.
    Unknown,
}

impl Kind {
    /// The word in the ledger, in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Stated => "stated",
            Self::Predicted => "predicted",
            Self::Modelled => "modelled",
            Self::Unknown => "unknown",
        }
    }

    /// The kind of this word; one that is not known says as much.
    pub fn of(word: &str) -> Self {
        let all = [Self::Measured, Self::Stated, Self::Predicted, Self::Modelled];
        all.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Unknown)
    }
}

/// An amount of money; unknown is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Amount {
    /// A stated price times metered time or energy.
    Measured(Usd),
    /// The user said so.
    Stated(Usd),
    /// From the estimate.
    Predicted(Usd),
    /// From a model of something that could not be measured.
    Modelled(Usd),
    /// It exists, and nobody knows how much it is.
    Unknown,
}

impl Amount {
    /// An amount of a kind; without a finite number it is unknown.
    pub fn new(kind: Kind, usd: Option<f64>) -> Self {
        match (kind, usd.filter(|usd| usd.is_finite())) {
            (Kind::Measured, Some(usd)) => Self::Measured(Usd(usd)),
            (Kind::Stated, Some(usd)) => Self::Stated(Usd(usd)),
            (Kind::Predicted, Some(usd)) => Self::Predicted(Usd(usd)),
            (Kind::Modelled, Some(usd)) => Self::Modelled(Usd(usd)),
            (Kind::Unknown, _) | (_, None) => Self::Unknown,
        }
    }

    /// Dollars, where they are known.
    pub fn usd(self) -> Option<f64> {
        match self {
            Self::Measured(usd) | Self::Stated(usd) | Self::Predicted(usd) | Self::Modelled(usd) => {
                Some(usd.0)
            }
            Self::Unknown => None,
        }
    }

    /// How it came about.
    pub fn kind(self) -> Kind {
        match self {
            Self::Measured(_) => Kind::Measured,
            Self::Stated(_) => Kind::Stated,
            Self::Predicted(_) => Kind::Predicted,
            Self::Modelled(_) => Kind::Modelled,
            Self::Unknown => Kind::Unknown,
        }
    }
}

/// The sum of amounts is of the weakest kind among them, and unknown where one of them is.
impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::Measured(Usd(0.0)), |sum, one| {
            let usd = sum.usd().zip(one.usd()).map(|(a, b)| a + b);
            Self::new(sum.kind().max(one.kind()), usd)
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    kind: Kind,
    amount_usd: Option<f64>,
}

impl From<Written> for Amount {
    fn from(written: Written) -> Self {
        Self::new(written.kind, written.amount_usd)
    }
}

impl From<Amount> for Written {
    fn from(amount: Amount) -> Self {
        Self { kind: amount.kind(), amount_usd: amount.usd() }
    }
}

/// One line of what a run or a month costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostLine {
    /// `compute`, `electricity`, `people`, …
    pub category: String,
    /// How much, and how that is known.
    #[serde(flatten)]
    pub amount: Amount,
    /// What it pays for: `run`, `month`, …
    pub period: String,
}

impl CostLine {
    /// A cost of one run.
    pub fn of_run(category: &str, amount: Amount) -> Self {
        Self { category: category.into(), amount, period: "run".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_as_weak_as_its_weakest_part() {
        let sum = |all: &[Amount]| all.iter().copied().sum::<Amount>();
        assert_eq!(sum(&[Amount::Measured(Usd(1.0)), Amount::Stated(Usd(0.5))]), Amount::Stated(Usd(1.5)));
        assert_eq!(sum(&[Amount::Modelled(Usd(1.0)), Amount::Measured(Usd(1.0))]).kind(), Kind::Modelled);
        assert_eq!(sum(&[Amount::Measured(Usd(1.0)), Amount::Unknown]), Amount::Unknown);
    }

    #[test]
    fn no_number_is_unknown_and_never_0() {
        for usd in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            assert_eq!(Amount::new(Kind::Measured, usd), Amount::Unknown);
        }
        assert_eq!(Amount::new(Kind::Unknown, Some(1.0)).usd(), None);
    }

    #[test]
    fn a_line_is_flat_in_json_and_reads_back() {
        let line = CostLine::of_run("electricity", Amount::Modelled(Usd(0.25)));
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"category":"electricity","kind":"modelled","amount_usd":0.25,"period":"run"}"#);
        assert_eq!(serde_json::from_str::<CostLine>(&text).unwrap(), line);
        let unknown = serde_json::to_string(&CostLine::of_run("people", Amount::Unknown)).unwrap();
        assert!(unknown.contains(r#""amount_usd":null"#), "{unknown}");
    }
}
