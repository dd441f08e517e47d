//! Dense f32 products of strided matrices, by the `gemm` crate's kernels.

/// A matrix inside a slice: element (i, j) stands at `i·row + j·column`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> MatRef<'a> {
    /// Rows of `width` that lie end to end.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The same matrix with rows and columns exchanged; nothing moves.
    #[must_use]
    pub fn t(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// Whether `rows` × `columns` lie inside the slice; no size is too large to be asked.
    fn covers(&self, rows: usize, columns: usize) -> bool {
        if rows == 0 || columns == 0 {
            return true;
        }
        let ends = ((rows - 1).checked_mul(self.row), (columns - 1).checked_mul(self.column));
        matches!(ends, (Some(down), Some(across)) if down.checked_add(across).is_some_and(|at| at < self.data.len()))
    }
}

/// `c = scale·a·b`, or `c += scale·a·b` where `accumulate`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]` in rows that lie
/// `c_row` apart.
///
/// # Panics
/// When a matrix does not lie inside its slice.
pub fn matmul(
    (m, n, k): (usize, usize, usize),
    a: MatRef<'_>,
    b: MatRef<'_>,
    scale: f32,
    accumulate: bool,
    c: &mut [f32],
    c_row: usize,
) {
    assert!(a.covers(m, k), "a: {m}×{k} outside its slice");
    assert!(b.covers(k, n), "b: {k}×{n} outside its slice");
    assert!(
        m == 0 || n == 0 || (n <= c_row && MatRef::rows(c, c_row).covers(m, n)),
        "c: {m}×{n} outside its slice"
    );
    // SAFETY: all three matrices were just checked to lie inside their slices.
    unsafe { product((m, n, k), a, b, scale, accumulate, c.as_mut_ptr(), c_row) }
}

/// `a·b` in a buffer of its own, which is written once.
///
/// # Panics
/// When a matrix does not lie inside its slice, or the product is too large for memory.
pub fn matmul_new((m, n, k): (usize, usize, usize), a: MatRef<'_>, b: MatRef<'_>) -> Vec<f32> {
    assert!(a.covers(m, k), "a: {m}×{k} outside its slice");
    assert!(b.covers(k, n), "b: {k}×{n} outside its slice");
    let size = m.checked_mul(n).unwrap_or_else(|| panic!("c: {m}×{n} is too large"));
    let mut c = Vec::with_capacity(size);
    // SAFETY: a and b were just checked; c has room for all m·n values, none of which is read.
    unsafe { product((m, n, k), a, b, 1.0, false, c.as_mut_ptr(), n) }
    // SAFETY: without `accumulate` the product writes every value of c, zeros where k = 0.
    unsafe { c.set_len(size) }
    c
}

/// # Safety
/// `a` and `b` cover the shape, `c` points to room for `m` rows of `n` values, `c_row` apart with `n ≤ c_row`; the
/// values there may be uninitialised only without `accumulate`.
unsafe fn product(
    (m, n, k): (usize, usize, usize),
    a: MatRef<'_>,
    b: MatRef<'_>,
    scale: f32,
    accumulate: bool,
    c: *mut f32,
    c_row: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| isize::try_from(s).unwrap_or(isize::MAX);
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: by the caller's promise; c's rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            stride(c_row),
            accumulate,
            a.data.as_ptr(),
            stride(a.column),
            stride(a.row),
            b.data.as_ptr(),
            stride(b.column),
            stride(b.row),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
