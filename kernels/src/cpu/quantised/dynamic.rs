//! The 8-bit dynamic data type (Dettmers, 2016) by which QLoRA's double quantisation keeps scales: its 256 values and
//! how bitsandbytes 0.50.2 rounds to them on the CPU, so that both make the same bytes of the same numbers.

use std::sync::LazyLock;

/// Values that share a scale.
const BLOCK: usize = 256;
/// Steps of the table that stands for the search: bitsandbytes rounds to the nearest of them first.
const STEPS: f32 = 65_535.0;

static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(true));
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| table(&SIGNED));

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

/// The code of each of 65,536 values from −1 to 1.
fn table(map: &[f32; 256]) -> Vec<u8> {
    let bounds: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
    let code = |step: u16| {
        let value = 2.0 * f32::from(step) / STEPS - 1.0;
        u8::try_from(bounds.partition_point(|&bound| bound < value)).unwrap_or(u8::MAX)
    };
    (0..=u16::MAX).map(code).collect()
}

/// Numbers in 8 bits each, with an f32 for every 256 of them.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicCode {
    /// Places in the signed [`dynamic_map`].
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Vec<f32>,
}

impl DynamicCode {
    /// The nearest code of each number over the largest magnitude of its block.
    pub fn encode(values: &[f32]) -> Self {
        let table = &*TABLE;
        let mut codes = Vec::with_capacity(values.len());
        let mut absmax = Vec::with_capacity(values.len().div_ceil(BLOCK));
        for block in values.chunks(BLOCK) {
            let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            absmax.push(largest);
            let scale = 1.0 / largest;
            codes.extend(block.iter().map(|x| if largest == 0.0 { 0 } else { code(table, x * scale) }));
        }
        Self { codes, absmax }
    }

    /// Number `i` again.
    #[inline]
    pub fn value(&self, i: usize) -> f32 {
        SIGNED[usize::from(self.codes[i])] * self.absmax[i / BLOCK]
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 4 * self.absmax.len()) as u64
    }
}

fn code(table: &[u8], value: f32) -> u8 {
    let value = value.clamp(-1.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in 0 … 65,535, cut off on purpose"
    )]
    let step = ((value + 1.0) * 0.5).mul_add(STEPS, 0.5) as usize;
    table[step.min(usize::from(u16::MAX))]
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
    fn a_block_of_zeros_stays_zero() {
        let code = DynamicCode::encode(&[0.0; 300]);
        assert_eq!((code.codes.len(), code.absmax.len()), (300, 2));
        assert!((0..300).all(|i| code.value(i) == 0.0));
    }
}
