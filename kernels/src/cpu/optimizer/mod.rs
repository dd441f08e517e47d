//! Updates of one trained tensor, in place and in parts of a fixed size. A tensor is f32, or bf16 that each update
//! rounds at random, so that steps smaller than its last bit are not lost on the way.

mod adafactor;
mod adamw;
mod adamw_8bit;
mod lion;
mod sgd;

pub use adafactor::{Adafactor, adafactor, adafactor_matrix};
pub use adamw::{AdamW, adamw};
pub use adamw_8bit::{BLOCK, Blocks, adamw_8bit};
pub use lion::{Lion, lion};
pub use sgd::{Sgd, sgd};

use super::{dispatch, mix};
use half::bf16;
use rayon::prelude::*;

/// Values that one task takes; whole blocks of 8-bit states.
const CHUNK: usize = 16_384;

/// The values of a trained tensor.
#[derive(Debug)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// Rounded up or down at random, each as often as it is near: the key makes the draws of this tensor and step.
    Bf16(&'a mut [bf16], u64),
}

/// A part of them.
enum Part<'a> {
    F32(&'a mut [f32]),
    Bf16 { values: &'a mut [bf16], key: u64, first: usize },
}

impl<'a> Values<'a> {
    /// Parts of `size` values, the last one shorter; `size` is a multiple of 4.
    fn parts(self, size: usize) -> Vec<Part<'a>> {
        match self {
            Self::F32(values) => values.chunks_mut(size).map(Part::F32).collect(),
            Self::Bf16(values, key) => {
                let part = |(i, values)| Part::Bf16 { values, key, first: i * size };
                values.chunks_mut(size).enumerate().map(part).collect()
            }
        }
    }
}

impl Part<'_> {
    /// Lets `change` work on the values in f32.
    fn update(self, change: impl FnOnce(&mut [f32])) {
        match self {
            Self::F32(values) => change(values),
            Self::Bf16 { values, key, first } => {
                let mut wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
                change(&mut wide);
                round(&wide, values, key, first);
            }
        }
    }
}

/// Rounds down in magnitude, after 16 random bits were added to the 16 that are cut off; infinities and NaN stay.
fn round(from: &[f32], to: &mut [bf16], key: u64, first: usize) {
    for (quad, (from, to)) in from.chunks(4).zip(to.chunks_mut(4)).enumerate() {
        let mut draws = mix(key ^ mix((first / 4 + quad) as u64));
        for (from, to) in from.iter().zip(to) {
            let bits = from.to_bits();
            let upper = |bits: u32| bf16::from_bits((bits >> 16) as u16);
            *to = if from.is_finite() {
                upper(bits.wrapping_add((draws & 0xffff) as u32))
            } else {
                bf16::from_f32(*from)
            };
            draws >>= 16;
        }
    }
}

/// Σ x² in f64, by chunks of a fixed size: NaN and infinities come through.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(squares_part).collect();
    parts.into_iter().sum()
}

dispatch! {
    fn squares_part(x: &[f32]) -> f64 {
        let mut sums = [0f64; 16];
        for chunk in x.chunks(16) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                let x = f64::from(*x);
                *sum += x * x;
            }
        }
        sums.into_iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_right_on_average_and_leaves_what_fits() {
        let fits = [1.0, -2.5, 0.0, (-100f32).exp2(), f32::INFINITY];
        let mut to = [bf16::ZERO; 5];
        round(&fits, &mut to, 1, 0);
        assert_eq!(to, fits.map(bf16::from_f32));
        // A quarter of the way from one bf16 to the next.
        let (low, high) = (1.0f32, 1.0 + 1.0 / 128.0);
        let x = low + 0.25 * (high - low);
        for sign in [1.0, -1.0] {
            let mut to = vec![bf16::ZERO; 40_000];
            round(&vec![sign * x; 40_000], &mut to, 7, 0);
            assert!(to.iter().all(|y| [sign * low, sign * high].contains(&y.to_f32())));
            let mean = to.iter().map(|y| f64::from(y.to_f32())).sum::<f64>() / 40_000.0;
            // Five standard errors: √(0.25·0.75/40,000) of the distance.
            assert!((mean - f64::from(sign * x)).abs() < 5.0 * 0.0022 * f64::from(high - low), "{mean}");
        }
        let mut nan = [bf16::ZERO];
        round(&[f32::NAN], &mut nan, 1, 0);
        assert!(nan[0].is_nan());
    }

    #[test]
    fn a_draw_depends_on_key_and_place_and_not_on_the_parts() {
        let from: Vec<f32> = (0..1000u16).map(|i| 1.0 + f32::from(i) * 1e-5).collect();
        let whole = |key| {
            let mut to = vec![bf16::ZERO; 1000];
            round(&from, &mut to, key, 0);
            to
        };
        let mut parts = vec![bf16::ZERO; 1000];
        for (part, values) in Values::Bf16(&mut parts, 3).parts(64).into_iter().zip(from.chunks(64)) {
            part.update(|to| to.copy_from_slice(values));
        }
        assert_eq!(parts, whole(3));
        assert_ne!(parts, whole(4));
    }
}
