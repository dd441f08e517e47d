//! Formats of 32 values with one scale, or a scale and a least value.

use super::{half, part};

/// d, then 16 bytes whose low halves are the first 16 values.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(part(block, 0));
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15) - 8.0);
        out[i + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// d, m, then as [`q4_0`].
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(part(block, 0)), half(part(block, 2)));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// d, the fifth bits of all values, then as [`q4_0`].
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(part(block, 0));
    let fifths = fifth_bits(part(block, 2));
    for (i, &byte) in block[6..].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15 | fifths[i]) - 16.0);
        out[i + 16] = d * (f32::from(byte >> 4 | fifths[i + 16]) - 16.0);
    }
}

/// d, m, the fifth bits, then as [`q4_0`].
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(part(block, 0)), half(part(block, 2)));
    let fifths = fifth_bits(part(block, 4));
    for (i, &byte) in block[8..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15 | fifths[i]) + m;
        out[i + 16] = d * f32::from(byte >> 4 | fifths[i + 16]) + m;
    }
}

/// d, then a signed byte a value.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(part(block, 0));
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

/// 16 where the value's bit is set.
#[inline(always)]
fn fifth_bits(bits: [u8; 4]) -> [u8; 32] {
    let bits = u32::from_le_bytes(bits);
    let mut out = [0; 32];
    for (i, out) in out.iter_mut().enumerate() {
        *out = if bits >> i & 1 == 1 { 16 } else { 0 };
    }
    out
}
