//! Scalar functions written so that a loop over them vectorises.

/// `a·b + c`, fused where the instruction set does it in one step.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// eˣ to about 1 unit in the last place for x ≤ 88; 0 below −87.3.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, eʳ by its Taylor polynomial of degree 7 (remainder below 2⁻²⁷), 2ⁿ through the exponent bits.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 355/512: exact in f32 with trailing zeros, so n·LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // Adding and removing 1.5·2²³ rounds to the nearest integer.
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<FMA>(p, r, c);
    }
    // n stands in the low bits of `shifted`; no conversion that would have to look out for NaN.
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Σ aᵢ·bᵢ in 32 running sums that are folded at the end: the order depends on the length alone.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 32];
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..32 {
            sums[i] = fma::<FMA>(x[i], y[i], sums[i]);
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] = fma::<FMA>(*x, *y, sums[i]);
    }
    fold(sums)
}

/// The largest value; −∞ of none, and NaN is passed over.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 32];
    let higher = |top: f32, x: f32| if x > top { x } else { top };
    let (chunks, rest) = x.as_chunks::<32>();
    // By value: a loop that writes its array where a number is larger becomes one of masked stores.
    for chunk in chunks {
        tops = std::array::from_fn(|i| higher(tops[i], chunk[i]));
    }
    let mut width = 16;
    while width > 0 {
        for i in 0..width {
            tops[i] = higher(tops[i], tops[i + width]);
        }
        width /= 2;
    }
    rest.iter().fold(tops[0], |top, x| higher(top, *x))
}

/// Adds 32 running sums pairwise.
#[inline(always)]
pub(crate) fn fold(mut sums: [f32; 32]) -> f32 {
    let mut width = 16;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let mut worst = 0f64;
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp::<true>(x)) - exact).abs() / exact);
            worst = worst.max((f64::from(exp::<false>(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(exp::<true>(-1e30).to_bits(), 0f32.to_bits());
        assert_eq!(exp::<true>(0.0).to_bits(), 1f32.to_bits());
    }

    #[test]
    fn exp_keeps_nan() {
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_zero_far_below_and_finite_far_above() {
        for x in [-87.4, -104.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp::<true>(x).to_bits(), 0, "{x}");
        }
        for x in [88.0, 89.0, 1e30, f32::INFINITY] {
            assert!(exp::<true>(x).is_finite() && exp::<true>(x) > 1.6e38, "{x}");
        }
    }

    #[test]
    fn sigmoid_is_a_half_at_zero_and_its_two_sides_sum_to_one() {
        assert_eq!(sigmoid::<true>(0.0).to_bits(), 0.5f32.to_bits());
        for i in 0..1000 {
            let x = i as f32 * 0.1;
            assert!((sigmoid::<true>(x) + sigmoid::<true>(-x) - 1.0).abs() < 2e-7, "{x}");
        }
        assert!(sigmoid::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn the_largest_is_found_at_any_place_and_nan_is_passed_over() {
        assert_eq!(largest(&[]).to_bits(), f32::NEG_INFINITY.to_bits());
        for n in 1..100 {
            for at in 0..n {
                let mut x = vec![-2.0; n];
                x[(at + 1) % n] = f32::NAN;
                x[at] = -1.0;
                assert_eq!(largest(&x).to_bits(), (-1f32).to_bits(), "{at} of {n}");
            }
        }
    }

    #[test]
    fn a_dot_product_takes_every_term_once() {
        for n in 0..100u16 {
            let (ones, numbers) = (vec![1f32; n.into()], (1..=n).map(f32::from).collect::<Vec<_>>());
            let sum = f32::from(n) * (f32::from(n) + 1.0) / 2.0;
            assert_eq!(dot::<true>(&ones, &numbers).to_bits(), sum.to_bits(), "{n}");
            assert_eq!(dot::<false>(&ones, &numbers).to_bits(), sum.to_bits(), "{n}");
        }
    }
}
