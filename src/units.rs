//! Quantities with their units: a number that is paid for, waited for or allocated is never a bare `f64`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

/// Bytes of a GiB.
pub const BYTES_PER_GIB: f64 = 1_073_741_824.0;
/// Joules of a kWh.
pub const JOULES_PER_KWH: f64 = 3.6e6;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl Mul<$inner> for $name {
            type Output = Self;
            fn mul(self, by: $inner) -> Self {
                Self(self.0 * by)
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
                all.fold(Self::default(), Add::add)
            }
        }
    };
}

quantity!(
    /// Bytes of memory or disk.
    Bytes(u64)
);
quantity!(
    /// Tokens of text.
    Tokens(u64)
);
quantity!(
    /// Floating-point operations; a multiply-add counts two.
    Flops(f64)
);
quantity!(
    /// Seconds of the monotonic clock.
    Seconds(f64)
);
quantity!(
    /// Joules of energy.
    Joules(f64)
);
quantity!(
    /// US dollars.
    Usd(f64)
);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0 as f64;
        let shown = match self.0 {
            0..=1023 => format!("{} B", self.0),
            1024..=1_048_575 => format!("{:.1} KiB", b / 1024.0),
            1_048_576..=1_073_741_823 => format!("{:.1} MiB", b / 1_048_576.0),
            _ => format!("{:.2} GiB", b / BYTES_PER_GIB),
        };
        f.pad(&shown)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&group_thousands(self.0))
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (by, unit) = [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")]
            .into_iter()
            .find(|(by, _)| self.0 >= *by)
            .unwrap_or((1e6, "MFLOP"));
        f.pad(&format!("{:.2} {unit}", self.0 / by))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        let shown = if s < 0.001 {
            format!("{:.0} µs", s * 1e6)
        } else if s < 1.0 {
            format!("{:.0} ms", s * 1e3)
        } else if s < 60.0 {
            format!("{s:.1} s")
        } else if s < 3600.0 {
            format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor())
        } else {
            format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor())
        };
        f.pad(&shown)
    }
}

impl fmt::Display for Joules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.0 >= 3.6e5 {
            format!("{:.3} kWh", self.0 / JOULES_PER_KWH)
        } else {
            format!("{:.0} J", self.0)
        };
        f.pad(&shown)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pilots cost fractions of a cent: two decimals would show them as free.
        let shown = if self.0 != 0.0 && self.0.abs() < 0.1 {
            format!("${:.6}", self.0)
        } else {
            format!("${:.2}", self.0)
        };
        f.pad(&shown)
    }
}

/// `1234567` as `1,234,567`.
pub fn group_thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_people_write_them() {
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(3 << 30).to_string(), "3.00 GiB");
        assert_eq!(Tokens(1_234_567).to_string(), "1,234,567");
        assert_eq!(Seconds(0.25).to_string(), "250 ms");
        assert_eq!(Seconds(59.94).to_string(), "59.9 s");
        assert_eq!(Seconds(119.99).to_string(), "1 min 59 s");
        assert_eq!(Seconds(3725.0).to_string(), "1 h 02 min");
        assert_eq!(Usd(0.0).to_string(), "$0.00");
        assert_eq!(Usd(0.001_234).to_string(), "$0.001234");
        assert_eq!(Usd(12.345).to_string(), "$12.35");
        assert_eq!(Joules(7.2e6).to_string(), "2.000 kWh");
        assert_eq!(Flops(5.7e8 * 1024.0).to_string(), "583.68 GFLOP");
    }
}
