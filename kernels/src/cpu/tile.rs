//! A small matrix product held in registers, for the blocks of attention: `C = A·B` or `C += A·B`, A with any strides,
//! B in panels of columns, C in rows.

use super::math::fma;

/// Columns of a panel, which lies in a piece: rows of all heads, far apart, would share a few sets of the nearest cache.
pub(crate) const PANEL: usize = 32;

/// A with element (i, k) at `i·row + k·column`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// B with element (k, j) at `j / PANEL·panel + k·row + j % PANEL`.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) panel: usize,
}

impl<'a> Panels<'a> {
    /// Rows of any width.
    pub(crate) fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, panel: PANEL }
    }

    fn column(&self, j: usize) -> usize {
        j / PANEL * self.panel + j % PANEL
    }
}

/// `c[m, n] = a[m, k]·b[k, n]`, or added to it with `ADD`; `c` with rows `c_row` apart. `LANES` = 16 may only be said
/// where the CPU has AVX-512, `FMA` with 8 lanes only where it has AVX2 and FMA.
#[inline(always)]
pub(crate) fn multiply<const FMA: bool, const LANES: usize, const ADD: bool>(
    (m, n, k): (usize, usize, usize),
    a: Strided<'_>,
    b: Panels<'_>,
    c: &mut [f32],
    c_row: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0, "c: {m}×{n}, a sum of nothing");
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len(), "a: {m}×{k} outside its slice");
    assert!(
        b.panel >= PANEL && b.column(n - 1) + (k - 1) * b.row < b.data.len(),
        "b: {k}×{n} outside its slice"
    );
    assert!(n <= c_row && (m - 1) * c_row + n <= c.len(), "c: {m}×{n} outside its slice");
    for j in (0..n).step_by(2 * LANES) {
        let mut i = 0;
        while i < m {
            let rows = height::<LANES>(m - i);
            let at = (&a.data[i * a.row..], &b.data[b.column(j)..], &mut c[i * c_row + j..]);
            match (n - j >= 2 * LANES, LANES, FMA) {
                // SAFETY: the CPU has the features by this function's contract, and the block lies inside the slices
                // by the assertions above.
                #[cfg(target_arch = "x86_64")]
                (true, 16, true) => unsafe {
                    x86::avx512::<ADD>((rows, k), at.0, (a.row, a.column), at.1, b.row, at.2, c_row);
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                (true, 8, true) => unsafe {
                    x86::avx2::<ADD>((rows, k), at.0, (a.row, a.column), at.1, b.row, at.2, c_row);
                },
                _ => {
                    let shape = (rows, (2 * LANES).min(n - j), k);
                    edge::<FMA, ADD>(shape, at.0, (a.row, a.column), at.1, b.row, at.2, c_row);
                }
            }
            i += rows;
        }
    }
}

/// Rows of the next register block: two sums each, in 16 of 32 registers or in 12 of 16, and none of two rows where
/// eight are left.
const fn height<const LANES: usize>(left: usize) -> usize {
    match (LANES, left) {
        (16, 8..) => 8,
        (8, 8) => 4,
        (8, 6..) => 6,
        _ => left,
    }
}

/// A block of any shape up to 8 × 32, row by row.
#[inline(always)]
fn edge<const FMA: bool, const ADD: bool>(
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    for i in 0..m {
        let mut sums = [0f32; PANEL];
        for p in 0..k {
            let a = a[i * a_strides.0 + p * a_strides.1];
            for (sum, b) in sums.iter_mut().zip(&b[p * b_row..p * b_row + n]) {
                *sum = fma::<FMA>(a, *b, *sum);
            }
        }
        for (c, sum) in c[i * c_row..i * c_row + n].iter_mut().zip(sums) {
            *c = if ADD { *c + sum } else { sum };
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
        ($name:ident, $features:literal, [$($height:literal)*], $lanes:literal,
         $zero:ident, $load:ident, $set:ident, $fma:ident, $add:ident, $store:ident) => {
            /// `c[rows, 2·lanes] = a·b`, or added to it.
            ///
            /// # Safety
            /// The CPU has the features; all three blocks lie inside their slices, and the height is one of those below.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const ADD: bool>(
                (rows, k): (usize, usize),
                a: &[f32],
                a_strides: (usize, usize),
                b: &[f32],
                b_row: usize,
                c: &mut [f32],
                c_row: usize,
            ) {
                #[target_feature(enable = $features)]
                unsafe fn block<const ROWS: usize, const ADD: bool>(
                    k: usize,
                    a: *const f32,
                    (a_row, a_column): (usize, usize),
                    b: *const f32,
                    b_row: usize,
                    c: *mut f32,
                    c_row: usize,
                ) {
                    let mut sums = [[$zero(); 2]; ROWS];
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
                    for (r, sums) in sums.into_iter().enumerate() {
                        for (i, sum) in sums.into_iter().enumerate() {
                            // SAFETY: these values of c lie inside its slice, by the caller's promise.
                            unsafe {
                                let c = c.add(r * c_row + i * $lanes);
                                $store(c, if ADD { $add($load(c), sum) } else { sum });
                            }
                        }
                    }
                }

                let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                match rows {
                    $(
                        // SAFETY: by the caller's promise.
                        $height => unsafe { block::<$height, ADD>(k, a, a_strides, b, b_row, c, c_row) },
                    )*
                    _ => unreachable!("a block of {rows} rows"),
                }
            }
        };
    }

    block!(
        avx512,
        "avx512f",
        [1 2 3 4 5 6 7 8],
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_storeu_ps
    );
    block!(
        avx2,
        "avx2,fma",
        [1 2 3 4 5 6],
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
        let a_t: Vec<f32> =
            (0..k).flat_map(|p| (0..m).map(move |i| (i, p))).map(|(i, p)| a[i * k + p]).collect();
        let mut panels = vec![0f32; n.div_ceil(PANEL) * k * PANEL];
        for (p, j) in (0..k).flat_map(|p| (0..n).map(move |j| (p, j))) {
            panels[j / PANEL * k * PANEL + p * PANEL + j % PANEL] = b[p * b_row + j];
        }
        let (mut exact, mut exact_sum) = (c.clone(), c.clone());
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let sum = (0..k).map(|p| a[i * k + p] * b[p * b_row + j]).sum::<f32>();
            exact[i * c_row + j] = sum;
            exact_sum[i * c_row + j] += sum;
        }
        let a = [Strided { data: &a, row: k, column: 1 }, Strided { data: &a_t, row: 1, column: m }];
        let b = [Panels::rows(&b, b_row), Panels { data: &panels, row: PANEL, panel: k * PANEL }];
        for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b))) {
            let (mut stored, mut added) = (c.clone(), c.clone());
            multiply::<FMA, LANES, false>((m, n, k), a, b, &mut stored, c_row);
            multiply::<FMA, LANES, true>((m, n, k), a, b, &mut added, c_row);
            assert_eq!(stored, exact, "{m}×{n}×{k}");
            assert_eq!(added, exact_sum, "{m}×{n}×{k}, added");
        }
    }

    #[test]
    fn blocks_and_their_edges_equal_plain_loops() {
        for m in [1, 3, 4, 5, 8, 9, 10, 15, 33] {
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
