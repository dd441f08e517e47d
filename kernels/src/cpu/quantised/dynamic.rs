//! Numbers in the 8-bit dynamic data type, by which QLoRA's double quantisation keeps scales.

use super::super::codebook::Codebook;

/// Values that share a scale.
const BLOCK: usize = 256;

/// Numbers in 8 bits each, with an f32 for every 256 of them.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicCode {
    /// Codes of the signed [`Codebook`].
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Vec<f32>,
}

impl DynamicCode {
    /// The nearest code of each number over the largest magnitude of its block.
    pub fn encode(values: &[f32]) -> Self {
        let mut codes = vec![0; values.len()];
        let encode = |(block, codes): (&[f32], &mut [u8])| Codebook::signed().encode(block, codes);
        let absmax = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).map(encode).collect();
        Self { codes, absmax }
    }

    /// Number `i` again.
    #[inline]
    pub fn value(&self, i: usize) -> f32 {
        Codebook::signed().value(self.codes[i]) * self.absmax[i / BLOCK]
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 4 * self.absmax.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_stays_zero() {
        let code = DynamicCode::encode(&[0.0; 300]);
        assert_eq!((code.codes.len(), code.absmax.len()), (300, 2));
        assert!((0..300).all(|i| code.value(i) == 0.0));
    }
}
