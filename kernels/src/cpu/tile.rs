//! A small matrix product held in registers, for the blocks of attention: `C += A·B`, B and C in rows, A with any
//! strides.

use super::math::fma;

/// A with element (i, k) at `i·row + k·column`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// `c[m, n] += a[m, k]·b[k, n]`, `b` and `c` with rows `b_row` and `c_row` apart. `LANES` = 16 may only be said where
/// the CPU has AVX-512, `FMA` with 8 lanes only where it has AVX2 and FMA.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool, const LANES: usize>(
    (m, n, k): (usize, usize, usize),
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len(), "a: {m}×{k} outside its slice");
    assert!(n <= b_row && (k - 1) * b_row + n <= b.len(), "b: {k}×{n} outside its slice");
    assert!(n <= c_row && (m - 1) * c_row + n <= c.len(), "c: {m}×{n} outside its slice");
    // Rows and columns of a register block: 16 of 32 registers hold sums with 16 lanes, 8 of 16 with 8.
    let (rows, columns) = if LANES == 16 { (8, 32) } else { (4, 16) };
    for j in (0..n).step_by(columns) {
        for i in (0..m).step_by(rows) {
            let whole = m - i >= rows && n - j >= columns;
            let at = (&a.data[i * a.row..], &b[j..], &mut c[i * c_row + j..]);
            match (whole, LANES, FMA) {
                // SAFETY: the CPU has the features by this function's contract, and the block lies inside the slices
                // by the assertions above.
                #[cfg(target_arch = "x86_64")]
                (true, 16, true) => unsafe {
                    x86::block_avx512(k, at.0, (a.row, a.column), at.1, b_row, at.2, c_row);
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                (true, 8, true) => unsafe {
                    x86::block_avx2(k, at.0, (a.row, a.column), at.1, b_row, at.2, c_row);
                },
                _ => {
                    let shape = (rows.min(m - i), columns.min(n - j), k);
                    edge::<FMA>(shape, at.0, (a.row, a.column), at.1, b_row, at.2, c_row);
                }
            }
        }
    }
}

/// A block of any shape up to 8 × 32, row by row.
#[inline(always)]
fn edge<const FMA: bool>(
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    for i in 0..m {
        let mut sums = [0f32; 32];
        for p in 0..k {
            let a = a[i * a_strides.0 + p * a_strides.1];
            for (sum, b) in sums.iter_mut().zip(&b[p * b_row..p * b_row + n]) {
                *sum = fma::<FMA>(a, *b, *sum);
            }
        }
        for (c, sum) in c[i * c_row..i * c_row + n].iter_mut().zip(sums) {
            *c += sum;
        }
    }
}

/// Blocks whose sums stay in registers; written out, because loops over arrays are not reliably kept there.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    macro_rules! block {
        ($name:ident, $features:literal, $rows:literal, $lanes:literal,
         $zero:ident, $load:ident, $set:ident, $fma:ident, $add:ident, $store:ident) => {
            /// `c[rows, 2·lanes] += a·b`.
            ///
            /// # Safety
            /// The CPU has the features; all three blocks lie inside their slices.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                k: usize,
                a: &[f32],
                (a_row, a_column): (usize, usize),
                b: &[f32],
                b_row: usize,
                c: &mut [f32],
                c_row: usize,
            ) {
                let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                let mut sums = [[$zero(); 2]; $rows];
                for p in 0..k {
                    // SAFETY: row p of b and column p of a lie inside their slices, by the caller's promise.
                    unsafe {
                        let b = b.add(p * b_row);
                        let b = [$load(b), $load(b.add($lanes))];
                        let a = a.add(p * a_column);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let a = $set(*a.add(r * a_row));
                            sums[0] = $fma(a, b[0], sums[0]);
                            sums[1] = $fma(a, b[1], sums[1]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    // SAFETY: row r of c lies inside its slice, by the caller's promise.
                    unsafe {
                        let c = c.add(r * c_row);
                        $store(c, $add($load(c), sums[0]));
                        $store(c.add($lanes), $add($load(c.add($lanes)), sums[1]));
                    }
                }
            }
        };
    }

    block!(
        block_avx512,
        "avx512f",
        8,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_storeu_ps
    );
    block!(
        block_avx2,
        "avx2,fma",
        4,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_storeu_ps
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Path;

    /// Whole numbers, so that every order of summation is exact.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect()
    }

    fn check<const FMA: bool, const LANES: usize>((m, n, k): (usize, usize, usize)) {
        // Rows wider than the blocks, as they lie inside a head; what stands between must stay.
        let (b_row, c_row) = (n + 3, n + 2);
        let (a, b, c) = (numbers(m * k, 1), numbers(k * b_row, 2), numbers(m * c_row, 3));
        let mut exact = c.clone();
        for (i, j, p) in (0..m).flat_map(|i| (0..n).flat_map(move |j| (0..k).map(move |p| (i, j, p)))) {
            exact[i * c_row + j] += a[i * k + p] * b[p * b_row + j];
        }
        let mut in_rows = c.clone();
        multiply_add::<FMA, LANES>(
            (m, n, k),
            Strided { data: &a, row: k, column: 1 },
            &b,
            b_row,
            &mut in_rows,
            c_row,
        );
        assert_eq!(in_rows, exact, "{m}×{n}×{k}, a in rows");
        let a_t: Vec<f32> =
            (0..k).flat_map(|p| (0..m).map(move |i| (i, p))).map(|(i, p)| a[i * k + p]).collect();
        let mut in_columns = c;
        let strided = Strided { data: &a_t, row: 1, column: m };
        multiply_add::<FMA, LANES>((m, n, k), strided, &b, b_row, &mut in_columns, c_row);
        assert_eq!(in_columns, exact, "{m}×{n}×{k}, a in columns");
    }

    #[test]
    fn blocks_and_their_edges_equal_plain_loops() {
        for m in [1, 3, 4, 5, 8, 9, 33] {
            for n in [1, 15, 16, 17, 31, 32, 33, 65] {
                for k in [1, 6, 33] {
                    check::<false, 8>((m, n, k));
                    if Path::detect() >= Path::Avx2 {
                        check::<true, 8>((m, n, k));
                    }
                    if Path::detect() >= Path::Avx512 {
                        check::<true, 16>((m, n, k));
                    }
                }
            }
        }
    }
}
