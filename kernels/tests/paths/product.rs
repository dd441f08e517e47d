//! The driver of large products: every kind of side, in both precisions.

use super::{close, on_the_path, random};
use fttrain_kernels::cpu::{
    self, Operand, Out, Packed, Precision, Product, Quantised, Source, Start, Term, product_new, products,
};
use half::bf16;
use std::ops::Range;

/// Rows, columns, depth. Single ones, sizes that no tile divides, whole tiles, several panels of columns, and depths
/// that are cut into stretches (above 1024 in f32, above 2048 in bf16).
const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 5, 3),
    (7, 1, 2),
    (3, 17, 33),
    (12, 32, 64),
    (24, 96, 31),
    (33, 65, 129),
    (130, 3, 7),
    (65, 129, 200),
    (13, 33, 4101),
    (1, 200, 2049),
];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// How a side lies in memory.
#[derive(Debug, Clone, Copy)]
enum Kind {
    F32,
    Bf16,
    Quantised,
}

/// Whole numbers times a scale for each block of 32.
#[derive(Debug)]
struct Blocks {
    numbers: Vec<i8>,
    rows: usize,
    width: usize,
}

impl Quantised for Blocks {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    fn bytes(&self) -> u64 {
        self.numbers.len() as u64
    }

    fn block(&self) -> usize {
        32
    }

    fn dequantise(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        assert!(columns.start.is_multiple_of(32) && columns.end <= self.width);
        assert!(columns.end.is_multiple_of(32) || columns.end == self.width, "{columns:?}");
        assert_eq!(out.len(), columns.len());
        for (column, out) in columns.zip(out) {
            let scale = 1.0 + (column / 32) as f32;
            *out = f32::from(self.numbers[row * self.width + column]) * scale / 64.0;
        }
    }
}

/// One side `[lines, depth]`, and what it means in f64.
struct Side {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    blocks: Blocks,
    kind: Kind,
    turned: bool,
    lines: usize,
    depth: usize,
}

impl Side {
    fn random(seed: u64, (lines, depth): (usize, usize), kind: Kind, turned: bool) -> Self {
        let values = random(seed, lines * depth, 1.0);
        let (rows, width) = if turned { (depth, lines) } else { (lines, depth) };
        #[allow(clippy::cast_possible_truncation)]
        let numbers = values.iter().map(|x| (x * 100.0) as i8).collect();
        Self {
            bf16: values.iter().map(|&x| bf16::from_f32(x)).collect(),
            f32: values,
            blocks: Blocks { numbers, rows, width },
            kind,
            turned,
            lines,
            depth,
        }
    }

    fn operand(&self) -> Operand<'_> {
        let source = match self.kind {
            Kind::F32 => Source::F32(&self.f32),
            Kind::Bf16 => Source::Bf16(&self.bf16),
            Kind::Quantised => Source::Quantised(&self.blocks),
        };
        let operand = Operand::new(source, self.blocks.rows, self.blocks.width);
        if self.turned { operand.t() } else { operand }
    }

    /// The values as they are multiplied, line by line.
    fn exact(&self, precision: Precision, scale: f32) -> Vec<f64> {
        let mut in_memory = vec![0.0; self.f32.len()];
        match self.kind {
            Kind::F32 => in_memory.copy_from_slice(&self.f32),
            Kind::Bf16 => in_memory.iter_mut().zip(&self.bf16).for_each(|(to, x)| *to = x.to_f32()),
            Kind::Quantised => {
                for (row, out) in in_memory.chunks_exact_mut(self.blocks.width).enumerate() {
                    self.blocks.dequantise(row, 0..self.blocks.width, out);
                }
            }
        }
        let rounds = precision == Precision::Bf16 && cpu::path().has_bf16();
        let value = |l: usize, k: usize| {
            let at = if self.turned { k * self.lines + l } else { l * self.depth + k };
            let x = in_memory[at] * scale;
            f64::from(if rounds { bf16::from_f32(x).to_f32() } else { x })
        };
        (0..self.lines).flat_map(|l| (0..self.depth).map(move |k| (l, k))).map(|(l, k)| value(l, k)).collect()
    }
}

/// `c += left·rightᵀ`.
fn add_exact(c: &mut [f64], (m, n, k): (usize, usize, usize), left: &[f64], right: &[f64]) {
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] += (0..k).map(|p| left[i * k + p] * right[j * k + p]).sum::<f64>();
        }
    }
}

#[test]
fn products_of_any_sides_equal_plain_loops() {
    on_the_path();
    for precision in PRECISIONS {
        for shape in SHAPES {
            let (m, n, k) = shape;
            for (left_turned, right_turned) in [(false, false), (false, true), (true, false), (true, true)] {
                for kind in [Kind::F32, Kind::Bf16, Kind::Quantised] {
                    let left = Side::random(1, (m, k), Kind::F32, left_turned);
                    let right = Side::random(2, (n, k), kind, right_turned);
                    // Only f32 sides are scaled.
                    let (operand, scale) = match kind {
                        Kind::F32 => (right.operand().scaled(1.5), 1.5),
                        Kind::Bf16 | Kind::Quantised => (right.operand(), 1.0),
                    };
                    let packed = Packed::new(left.operand().scaled(0.5), precision);
                    let c = product_new(&packed, operand).unwrap();
                    let mut expected = vec![0.0; m * n];
                    add_exact(
                        &mut expected,
                        shape,
                        &left.exact(precision, 0.5),
                        &right.exact(precision, scale),
                    );
                    let what = format!("{shape:?} {precision:?} {kind:?} {left_turned} {right_turned}");
                    close(&what, &c, &expected);
                }
            }
        }
    }
}

#[test]
fn terms_are_added_to_what_the_product_starts_from() {
    on_the_path();
    let (m, n) = (29, 70);
    let depths = [33, 5, 2100];
    for precision in PRECISIONS {
        let sides: Vec<(Side, Side)> = depths
            .iter()
            .enumerate()
            .map(|(i, &k)| {
                let kind = if i == 1 { Kind::F32 } else { Kind::Bf16 };
                (Side::random(3 * i as u64, (m, k), Kind::F32, false), Side::random(9, (n, k), kind, i == 2))
            })
            .collect();
        let packed: Vec<Packed> =
            sides.iter().map(|(left, _)| Packed::new(left.operand().scaled(0.5), precision)).collect();
        let terms = || {
            let pairs = packed.iter().zip(&sides);
            pairs.map(|(left, (_, right))| Term { left, right: right.operand() }).collect::<Vec<_>>()
        };
        let mut sums = vec![0.0; m * n];
        for ((left, right), k) in sides.iter().zip(depths) {
            add_exact(&mut sums, (m, n, k), &left.exact(precision, 0.5), &right.exact(precision, 1.0));
        }
        let (bias, before) = (random(5, n, 1.0), random(6, m * n, 1.0));
        // What stands in c must not be read unless it is added to: it may be uninitialised.
        let (mut plain, mut on_row, mut added) = (vec![f32::NAN; m * n], Vec::new(), before.clone());
        let shape = (m, n);
        products(vec![
            Product { shape, terms: terms(), start: Start::Nothing, out: Out::There(&mut plain) },
            Product { shape, terms: terms(), start: Start::Row(&bias), out: Out::Fresh(&mut on_row) },
            Product { shape, terms: terms(), start: Start::Standing, out: Out::There(&mut added) },
        ])
        .unwrap();
        close("nothing", &plain, &sums);
        let with = |start: &dyn Fn(usize) -> f32| -> Vec<f64> {
            sums.iter().enumerate().map(|(i, sum)| sum + f64::from(start(i))).collect()
        };
        close("a row", &on_row, &with(&|i| bias[i % n]));
        close("what stood there", &added, &with(&|i| before[i]));
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it_or_on_the_threads() {
    on_the_path();
    let (m, n, k) = (310, 200, 2111);
    for precision in PRECISIONS {
        let (left, right) = (random(1, m * k, 1.0), random(2, n * k, 1.0));
        let product = |rows: Range<usize>| {
            let packed = Packed::new(Operand::f32(&left[rows.start * k..], rows.len(), k), precision);
            product_new(&packed, Operand::f32(&right, n, k)).unwrap()
        };
        let whole = product(0..m);
        for rows in [0..1, 5..18, 300..310] {
            assert!(product(rows.clone()) == whole[rows.start * n..rows.end * n], "{rows:?} {precision:?}");
        }
        for threads in [1, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| product(0..m)) == whole, "{threads} threads {precision:?}");
        }
    }
}

#[test]
fn nothing_to_multiply_changes_nothing_and_an_empty_sum_is_its_start() {
    on_the_path();
    for precision in PRECISIONS {
        let empty = Packed::new(Operand::f32(&[], 0, 3), precision);
        assert!(product_new(&empty, Operand::f32(&[1.0; 12], 4, 3)).unwrap().is_empty());
        let no_depth = Packed::new(Operand::f32(&[], 33, 0), precision);
        let zeros = product_new(&no_depth, Operand::f32(&[], 65, 0)).unwrap();
        assert!(zeros.len() == 33 * 65 && zeros.iter().all(|x| x.to_bits() == 0));
    }
    let mut c = Vec::new();
    products(vec![Product {
        shape: (2, 2),
        terms: Vec::new(),
        start: Start::Row(&[1.0, 2.0]),
        out: Out::Fresh(&mut c),
    }])
    .unwrap();
    assert_eq!(c, [1.0, 2.0, 1.0, 2.0]);
    products(Vec::new()).unwrap();
}

#[test]
fn a_value_that_is_not_finite_comes_through_and_touches_no_other_row() {
    on_the_path();
    for precision in PRECISIONS {
        let mut a = random(1, 14 * 9, 1.0);
        a[9 * 3 + 2] = f32::NAN;
        a[9 * 5 + 8] = f32::INFINITY;
        let left = Packed::new(Operand::f32(&a, 14, 9), precision);
        let c = product_new(&left, Operand::f32(&[1.0; 45], 5, 9)).unwrap();
        for (i, row) in c.chunks(5).enumerate() {
            assert!(
                row.iter().all(|x| x.is_finite() != (i == 3 || i == 5)),
                "{precision:?} row {i}: {row:?}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "operand: 3×4 outside its slice")]
fn a_side_outside_its_slice_is_refused() {
    let _ = Operand::f32(&[0.0; 11], 3, 4);
}

#[test]
#[should_panic(expected = "outside its slice")]
fn a_side_whose_size_overflows_is_refused() {
    let _ = Operand::f32(&[0.0], 3, usize::MAX / 2 + 1);
}

#[test]
#[should_panic(expected = "c: 3×2 outside its slice")]
fn a_result_outside_its_slice_is_refused() {
    let left = Packed::new(Operand::f32(&[0.0; 3], 3, 1), Precision::F32);
    let terms = vec![Term { left: &left, right: Operand::f32(&[0.0; 2], 2, 1) }];
    products(vec![Product { shape: (3, 2), terms, start: Start::Nothing, out: Out::There(&mut [0.0; 5]) }])
        .unwrap();
}

#[test]
#[should_panic(expected = "a term is 3×1 by 2×2")]
fn sides_of_different_depths_are_refused() {
    let left = Packed::new(Operand::f32(&[0.0; 3], 3, 1), Precision::F32);
    product_new(&left, Operand::f32(&[0.0; 4], 2, 2)).unwrap();
}

/// Without depth, sides of any size lie inside an empty slice; one product's size wraps, the other's has no room.
#[test]
fn a_product_that_no_memory_holds_is_an_error() {
    let left = Packed::new(Operand::f32(&[], 1 << 16, 0), Precision::F32);
    for columns in [1 << 48, 1 << 45] {
        let error = product_new(&left, Operand::f32(&[], columns, 0)).unwrap_err();
        assert_eq!((error.rows, error.columns), (1 << 16, columns));
        assert!(error.to_string().contains("65536 rows"), "{error}");
    }
}
