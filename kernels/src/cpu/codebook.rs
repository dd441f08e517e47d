//! The 8-bit dynamic data type (Dettmers, 2016): its 256 values, and how bitsandbytes 0.50.2 rounds to them on the CPU,
//! so that both make the same bytes of the same numbers.

use std::sync::LazyLock;

/// Steps of the table that stands for the search: bitsandbytes rounds to the nearest of them first.
const STEPS: f32 = 65_535.0;

static SIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(true));
static UNSIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(false));

/// The values behind the codes 0 … 255, ascending, and the code of each of 65,536 values from −1 to 1.
#[derive(Debug)]
pub struct Codebook {
    map: [f32; 256],
    table: Vec<u8>,
}

impl Codebook {
    /// Values from −1 to 1.
    pub fn signed() -> &'static Self {
        &SIGNED
    }

    /// Values from 0 to 1, twice as close.
    pub fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    fn new(signed: bool) -> Self {
        let map = dynamic_map(signed);
        let bounds: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
        let code = |step: u16| {
            let value = 2.0 * f32::from(step) / STEPS - 1.0;
            u8::try_from(bounds.partition_point(|&bound| bound < value)).unwrap_or(u8::MAX)
        };
        Self { map, table: (0..=u16::MAX).map(code).collect() }
    }

    /// The nearest codes of values over their largest magnitude, which is returned; of zeros, zeros.
    pub fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        if largest == 0.0 {
            codes.fill(0);
            return largest;
        }
        let scale = 1.0 / largest;
        for (code, x) in codes.iter_mut().zip(values) {
            *code = self.code(x * scale);
        }
        largest
    }

    /// The values behind codes, times their largest magnitude.
    pub fn decode(&self, codes: &[u8], largest: f32, values: &mut [f32]) {
        for (x, code) in values.iter_mut().zip(codes) {
            *x = self.map[usize::from(*code)] * largest;
        }
    }

    /// The value behind a code.
    #[inline]
    pub fn value(&self, code: u8) -> f32 {
        self.map[usize::from(code)]
    }

    fn code(&self, value: f32) -> u8 {
        let value = value.clamp(-1.0, 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in 0 … 65,535, cut off on purpose"
        )]
        let step = ((value + 1.0) * 0.5).mul_add(STEPS, 0.5) as usize;
        self.table[step.min(usize::from(u16::MAX))]
    }
}

/// The values of the dynamic type, ascending: an exponent that begins with a run of zeros, and a linear fraction in the
/// bits that it leaves; and 0 and 1.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    /// Of 8 bits, one is the sign's.
    const EXPONENTS: i32 = 7;
    let mut values = Vec::with_capacity(256);
    for i in 0..EXPONENTS {
        let steps = 1_u16 << if signed { i } else { i + 1 };
        // The power is a double that meets a float: rounded before it is multiplied.
        #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
        let power = 10f64.powi(i + 1 - EXPONENTS) as f32;
        for k in 0..steps {
            let value = power * f32::midpoint(boundary(k, steps), boundary(k + 1, steps));
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.extend([0.0, 1.0]);
    values.resize(256, 0.0);
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

/// Boundary `k` of `steps` equal steps from 0.1 to 1, as torch's `linspace` makes it: from the nearer end.
fn boundary(k: u16, steps: u16) -> f32 {
    let step = (1.0_f32 - 0.1) / f32::from(steps);
    if k < steps.div_ceil(2) {
        step.mul_add(f32::from(k), 0.1)
    } else {
        (-step).mul_add(f32::from(steps - k), 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_has_256_values_of_which_zero_is_one() {
        let map = dynamic_map(true);
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        let unsigned = dynamic_map(false);
        assert!(unsigned.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((unsigned[0], unsigned[255]), (0.0, 1.0));
    }

    #[test]
    fn a_block_of_zeros_stays_zero_and_values_of_the_map_come_back() {
        let mut codes = [7u8; 3];
        assert_eq!(Codebook::signed().encode(&[0.0; 3], &mut codes).to_bits(), 0);
        assert_eq!(codes, [0; 3]);
        for book in [Codebook::signed(), Codebook::unsigned()] {
            let mut codes = [0; 256];
            let largest = book.encode(&book.map, &mut codes);
            let mut again = [0.0; 256];
            book.decode(&codes, largest, &mut again);
            // A value moves by half a step of the table, and to a neighbour no farther away: together one step, which is
            // more than lies between the smallest values.
            assert!(book.map.iter().zip(again).all(|(a, b)| (a - b).abs() <= 2.0 / STEPS), "{again:?}");
        }
    }
}
