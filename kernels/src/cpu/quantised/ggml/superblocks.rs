//! Formats of 256 values in groups of 16 or 32, whose scales are small whole numbers over one f16.

use super::{half, part};

/// Groups of 16: a byte each of scale and least value, quarters of 64 bytes, d, dmin.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, least) = (half(part(block, 80)), half(part(block, 82)));
    let quarters: [u8; 64] = part(block, 16);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[i] & 15);
        let offset = least * f32::from(block[i] >> 4);
        let (at, shift) = place(i);
        for (out, byte) in out.iter_mut().zip(&quarters[at..at + 16]) {
            *out = scale * f32::from(byte >> shift & 3) - offset;
        }
    }
}

/// Groups of 16: third bits, quarters, 16 scales of six bits, d.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let thirds: [u8; 32] = part(block, 0);
    let quarters: [u8; 64] = part(block, 32);
    let scales: [u8; 12] = part(block, 96);
    let d = half(part(block, 108));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (at, shift) = place(i);
        let bytes = quarters[at..at + 16].iter().zip(&thirds[at % 32..at % 32 + 16]);
        for (out, (byte, third)) in out.iter_mut().zip(bytes) {
            // A bit that is not set takes four away.
            let missing = 4 * (!(third >> (i / 2)) & 1);
            *out = scale * (f32::from(byte >> shift & 3) - f32::from(missing));
        }
    }
}

/// First byte and shift of group `i` among quarters: 128 values take 32 bytes, 32 of them at each shift.
#[inline(always)]
fn place(i: usize) -> (usize, usize) {
    (i / 8 * 32 + i % 2 * 16, i % 8 / 2 * 2)
}

/// Groups of 32: d, dmin, eight scales and least values of six bits, halves of 128 bytes.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, least) = (half(part(block, 0)), half(part(block, 2)));
    let scales = part(block, 4);
    let halves: [u8; 128] = part(block, 16);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = six_bits(&scales, i);
        let (scale, offset) = (d * scale, least * offset);
        for (out, byte) in out.iter_mut().zip(&halves[i / 2 * 32..]) {
            *out = scale * f32::from(byte >> (i % 2 * 4) & 15) - offset;
        }
    }
}

/// As [`q4_k`], with fifth bits before the halves.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, least) = (half(part(block, 0)), half(part(block, 2)));
    let scales = part(block, 4);
    let fifths: [u8; 32] = part(block, 16);
    let halves: [u8; 128] = part(block, 48);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = six_bits(&scales, i);
        let (scale, offset) = (d * scale, least * offset);
        let bytes = halves[i / 2 * 32..].iter().zip(&fifths);
        for (out, (byte, fifth)) in out.iter_mut().zip(bytes) {
            *out = scale * f32::from(byte >> (i % 2 * 4) & 15 | (fifth >> i & 1) << 4) - offset;
        }
    }
}

/// Groups of 16: low halves, high quarters, signed scales, d.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let halves: [u8; 128] = part(block, 0);
    let quarters: [u8; 64] = part(block, 128);
    let d = half(part(block, 208));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[192 + i].cast_signed());
        // 128 values take 64 bytes of halves: the low ones of all, then the high ones.
        let (low, low_shift) = (i / 8 * 64 + i % 4 * 16, i % 8 / 4 * 4);
        let (high, high_shift) = place(i);
        let bytes = halves[low..low + 16].iter().zip(&quarters[high..high + 16]);
        for (out, (low, high)) in out.iter_mut().zip(bytes) {
            let value = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
            *out = scale * (f32::from(value) - 32.0);
        }
    }
}

/// Scale and least value of group `i`: six bits each in twelve bytes.
#[inline(always)]
fn six_bits(bytes: &[u8; 12], i: usize) -> (f32, f32) {
    let (scale, least) = if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        let both = bytes[i + 4];
        (both & 15 | bytes[i - 4] >> 6 << 4, both >> 4 | bytes[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}
