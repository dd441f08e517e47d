//! The driver: products are cut into tasks, panels of right sides packed by the task that uses them.

use super::kernel::{Finish, Kernel, words};
use super::operand::Operand;
use super::pack::Packed;
use super::{Precision, portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::cpu::share::Shared;
use crate::cpu::{Path, path};
use rayon::prelude::*;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// Right lines that a task packs together: three tiles of the widest kernel.
const PANEL_LINES: usize = 96;
/// Words of a line that a panel holds: 384 KiB in all, which a core's own cache keeps. Sums are cut here.
const PANEL_WORDS: usize = 1024;
/// Rows of c below which packing a panel once more costs more than an idle thread.
const LEAST_ROWS: usize = 96;
/// Tasks for each thread, so that none waits long for the last; each further cut of the rows packs the panels once more.
const TASKS_PER_THREAD: usize = 3;
/// The largest register tile.
const LARGEST_TILE: usize = 32 * 32;

/// `left·rightᵀ`.
pub struct Term<'a> {
    /// `[m, k]`, packed.
    pub left: &'a Packed,
    /// `[n, k]`.
    pub right: Operand<'a>,
}

/// What the terms are added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: c is overwritten, its old values are not read.
    Nothing,
    /// The same row for each row of c: a bias.
    Row(&'a [f32]),
    /// c as it stands.
    Standing,
}

/// Where a product goes.
pub enum Out<'a> {
    /// A buffer that is made to hold it; not with [`Start::Standing`].
    Fresh(&'a mut Vec<f32>),
    /// What is there, from its beginning.
    There(&'a mut [f32]),
}

/// `c [m, n] = start + Σ terms`.
pub struct Product<'a> {
    /// Rows and columns.
    pub shape: (usize, usize),
    /// All with `m` left and `n` right lines, in one precision.
    pub terms: Vec<Term<'a>>,
    /// What they are added to.
    pub start: Start<'a>,
    /// Where the sum goes.
    pub out: Out<'a>,
}

/// There is no room for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMemory {
    /// Of the product.
    pub rows: usize,
    /// Of the product.
    pub columns: usize,
}

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for a product of {} rows and {} columns", self.rows, self.columns)
    }
}

impl std::error::Error for NoMemory {}

/// `left·rightᵀ` in a buffer of its own.
///
/// # Errors
/// There is no room for it.
///
/// # Panics
/// When their depths differ.
pub fn product_new(left: &Packed, right: Operand<'_>) -> Result<Vec<f32>, NoMemory> {
    let mut c = Vec::new();
    let shape = (left.lines(), right.lines());
    products(vec![Product {
        shape,
        terms: vec![Term { left, right }],
        start: Start::Nothing,
        out: Out::Fresh(&mut c),
    }])?;
    Ok(c)
}

/// Several products side by side; none may need another's result.
///
/// # Errors
/// There is no room for one of them; then none is computed.
///
/// # Panics
/// When shapes or precisions of a product's parts do not fit together, or a matrix does not lie inside its slice.
pub fn products(mut all: Vec<Product<'_>>) -> Result<(), NoMemory> {
    let Some(precision) = all.iter().flat_map(|p| &p.terms).map(|t| t.left.precision).next() else {
        all.iter_mut().for_each(Product::without_terms);
        return Ok(());
    };
    with_kernel(precision, Run { all, precision })
}

/// What is done with the kernel in use.
pub(super) trait Work {
    type Output;
    fn with<K: Kernel>(self) -> Self::Output;
}

/// Hands `work` the kernel of the path in use.
pub(super) fn with_kernel<W: Work>(precision: Precision, work: W) -> W::Output {
    match (path(), precision) {
        #[cfg(target_arch = "x86_64")]
        (Path::Amx, Precision::Bf16) => work.with::<amx::Amx>(),
        #[cfg(target_arch = "x86_64")]
        (Path::Avx512Bf16, Precision::Bf16) => work.with::<avx512::Avx512Bf16>(),
        #[cfg(target_arch = "x86_64")]
        (Path::Avx512 | Path::Avx512Bf16 | Path::Amx, _) => work.with::<avx512::Avx512>(),
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2, _) => work.with::<avx2::Avx2>(),
        _ => work.with::<portable::Portable>(),
    }
}

/// Products that are computed together.
pub(super) struct Run<'a> {
    pub(super) all: Vec<Product<'a>>,
    pub(super) precision: Precision,
}

/// A product whose parts were checked, with the raw place of its result.
struct Checked<'a> {
    shape: (usize, usize),
    terms: &'a [Term<'a>],
    start: Start<'a>,
    c: Shared<'a>,
    /// Right lines of a panel.
    panel: usize,
}

struct Task {
    product: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Product<'_> {
    fn check(&self, precision: Precision) {
        let (m, n) = self.shape;
        for term in &self.terms {
            let (left, right) = (term.left, &term.right);
            assert!(
                left.lines() == m
                    && right.lines() == n
                    && left.depth == right.depth()
                    && left.precision == precision,
                "product {m}×{n}: a term is {}×{} by {}×{}",
                left.lines(),
                left.depth,
                right.lines(),
                right.depth()
            );
        }
        if let Start::Row(row) = self.start {
            assert!(row.len() == n, "product {m}×{n}: a first row of {}", row.len());
        }
        match &self.out {
            Out::Fresh(_) => {
                assert!(!matches!(self.start, Start::Standing), "nothing stands in a fresh buffer");
            }
            Out::There(c) => {
                let covered = m.checked_mul(n).is_some_and(|size| size <= c.len());
                assert!(covered, "c: {m}×{n} outside its slice");
            }
        }
    }

    /// The start alone.
    fn without_terms(&mut self) {
        self.check(Precision::F32);
        let (m, n) = self.shape;
        let row = match self.start {
            Start::Standing => return,
            Start::Nothing => &vec![0.0; n],
            Start::Row(row) => row,
        };
        match &mut self.out {
            Out::Fresh(c) => **c = row.repeat(m),
            Out::There(c) => c[..m * n].chunks_exact_mut(n.max(1)).for_each(|c| c.copy_from_slice(row)),
        }
    }
}

impl Work for Run<'_> {
    type Output = Result<(), NoMemory>;

    fn with<K: Kernel>(self) -> Self::Output {
        let Self { mut all, precision } = self;
        for empty in all.iter_mut().filter(|p| p.terms.is_empty()) {
            empty.without_terms();
        }
        let mut checked = Vec::with_capacity(all.len());
        for product in all.iter_mut().filter(|p| !p.terms.is_empty()) {
            product.check(precision);
            checked.push(Checked::new::<K>(product)?);
        }
        tasks::<K>(&checked).into_par_iter().for_each(|task| {
            PANEL.with_borrow_mut(|buffers| one_task::<K>(&checked[task.product], &task, buffers));
        });
        drop(checked);
        for product in &mut all {
            if let (Out::Fresh(c), (m, n), false) =
                (&mut product.out, product.shape, product.terms.is_empty())
            {
                // SAFETY: the tasks wrote all m·n values, into the room that was reserved.
                unsafe { c.set_len(m * n) }
            }
        }
        Ok(())
    }
}

impl<'a> Checked<'a> {
    fn new<K: Kernel>(product: &'a mut Product<'_>) -> Result<Self, NoMemory> {
        let Product { shape: (m, n), terms, start, out } = product;
        let (m, n) = (*m, *n);
        let c = match out {
            Out::There(c) => Shared::new(c),
            Out::Fresh(c) => {
                c.clear();
                let shared = m.checked_mul(n).and_then(|size| Shared::fresh(c, size).ok());
                shared.ok_or(NoMemory { rows: m, columns: n })?
            }
        };
        let block = terms.iter().map(|t| t.right.block()).max().unwrap_or(1);
        let panel = PANEL_LINES.max(block).next_multiple_of(K::COLUMNS);
        Ok(Self { shape: (m, n), terms, start: *start, c, panel })
    }
}

/// What a thread keeps from task to task.
#[derive(Default)]
struct Buffers {
    panel: Vec<u32>,
    scratch: Vec<f32>,
}

thread_local! {
    static PANEL: RefCell<Buffers> = RefCell::default();
}

/// Panels of columns, each over all rows; over some rows only where there are too few panels for the threads.
fn tasks<K: Kernel>(all: &[Checked<'_>]) -> Vec<Task> {
    let threads = rayon::current_num_threads();
    let panels: usize = all.iter().map(|p| p.shape.1.div_ceil(p.panel)).sum();
    let mut tasks = Vec::new();
    for (product, p) in all.iter().enumerate() {
        let (m, n) = p.shape;
        if m == 0 {
            continue;
        }
        let wanted = if threads == 1 { 1 } else { (TASKS_PER_THREAD * threads).div_ceil(panels.max(1)) };
        let chunks = wanted.min(m / LEAST_ROWS).max(1);
        let rows = m.div_ceil(chunks).next_multiple_of(K::ROWS);
        for column in (0..n).step_by(p.panel) {
            let columns = column..n.min(column + p.panel);
            tasks.extend((0..m).step_by(rows).map(|row| Task {
                product,
                rows: row..m.min(row + rows),
                columns: columns.clone(),
            }));
        }
    }
    tasks
}

/// A stretch of a term's depth.
struct Stretch<'a> {
    term: &'a Term<'a>,
    depth: Range<usize>,
    words: usize,
}

/// The depth of all terms in groups that fit into a panel. They follow from the shapes alone.
fn groups<'a, K: Kernel>(terms: &'a [Term<'a>]) -> Vec<Vec<Stretch<'a>>> {
    let per_word = if K::BF16 { 2 } else { 1 };
    let mut groups = vec![Vec::new()];
    let mut room = PANEL_WORDS;
    for term in terms {
        let depth = term.left.depth;
        let step = PANEL_WORDS * per_word;
        // A depth of 0 is one empty stretch: c still has to be written.
        for first in (0..depth.max(1)).step_by(step) {
            let depth = first..depth.min(first + step);
            let words = words::<K>(depth.len());
            if words > room {
                groups.push(Vec::new());
                room = PANEL_WORDS;
            }
            room = room.saturating_sub(words);
            if let Some(group) = groups.last_mut() {
                group.push(Stretch { term, depth, words });
            }
        }
    }
    groups
}

fn one_task<K: Kernel>(product: &Checked<'_>, task: &Task, buffers: &mut Buffers) {
    let mut fresh = true;
    for group in groups::<K>(product.terms) {
        let tiles = task.columns.len().div_ceil(K::COLUMNS);
        let per_tile: usize = group.iter().map(|s| s.words * K::COLUMNS).sum();
        buffers.panel.resize(buffers.panel.len().max(tiles * per_tile), 0);
        pack_panel::<K>(&group, task, per_tile, buffers);
        for row in task.rows.clone().step_by(K::ROWS) {
            let rows = row..task.rows.end.min(row + K::ROWS);
            for i in 0..tiles {
                let packed = &buffers.panel[i * per_tile..(i + 1) * per_tile];
                let column = task.columns.start + i * K::COLUMNS;
                let columns = column..task.columns.end.min(column + K::COLUMNS);
                one_tile::<K>(product, &group, packed, &rows, &columns, fresh);
            }
        }
        fresh = false;
    }
}

/// The group's right lines of this task, tile after tile.
fn pack_panel<K: Kernel>(group: &[Stretch<'_>], task: &Task, per_tile: usize, buffers: &mut Buffers) {
    let Buffers { panel, scratch } = buffers;
    let tiles = task.columns.len().div_ceil(K::COLUMNS);
    let mut before = 0;
    for stretch in group {
        let size = stretch.words * K::COLUMNS;
        let piece = stretch.term.right.piece(task.columns.clone(), stretch.depth.clone(), scratch);
        for i in 0..tiles {
            let to = &mut panel[i * per_tile + before..][..size];
            // SAFETY: the path was chosen for this CPU; `to` has the block's size.
            unsafe {
                K::pack_right(&piece.some_lines(i * K::COLUMNS, K::COLUMNS), stretch.words, to.as_mut_ptr());
            }
        }
        before += size;
    }
}

/// One register tile of c, through all stretches of a group.
fn one_tile<K: Kernel>(
    product: &Checked<'_>,
    group: &[Stretch<'_>],
    packed: &[u32],
    rows: &Range<usize>,
    columns: &Range<usize>,
    fresh: bool,
) {
    let (shape, c_row) = ((rows.len(), columns.len()), product.shape.1);
    let whole = shape == (K::ROWS, K::COLUMNS);
    let mut standing = !fresh || matches!(product.start, Start::Standing);
    let row = |r: usize| {
        // SAFETY: this task alone has these rows and columns of c.
        unsafe { product.c.place((rows.start + r) * c_row + columns.start, columns.len()) }
    };
    if let (true, Start::Row(first)) = (fresh, product.start) {
        for r in 0..rows.len() {
            // SAFETY: `row` has as many values as there are columns.
            unsafe { row(r).copy_from_nonoverlapping(first[columns.clone()].as_ptr(), columns.len()) }
        }
        standing = true;
    }
    let mut before = 0;
    for stretch in group {
        let word = stretch.depth.start / if K::BF16 { 2 } else { 1 };
        let a = stretch.term.left.block(rows.start / K::ROWS, K::ROWS, word, stretch.words);
        let b = &packed[before..before + stretch.words * K::COLUMNS];
        before += b.len();
        let finish = if standing { Finish::Add } else { Finish::Store };
        if whole {
            // SAFETY: the path was chosen for this CPU; both blocks were cut to `words`; the tile lies inside c, and
            // what is added to was written before.
            unsafe {
                K::tile(stretch.words, a.as_ptr(), b.as_ptr(), shape, row(0), c_row, finish);
            }
        } else {
            let mut edge = [0f32; LARGEST_TILE];
            // SAFETY: as above, with a c that is large enough for any tile.
            unsafe {
                let c = edge.as_mut_ptr();
                K::tile(stretch.words, a.as_ptr(), b.as_ptr(), shape, c, K::COLUMNS, Finish::Store);
            }
            for r in 0..rows.len() {
                let sums = &edge[r * K::COLUMNS..][..columns.len()];
                for (i, sum) in sums.iter().enumerate() {
                    // SAFETY: value i of a row that this task alone has; what is added to was written before.
                    unsafe {
                        let c = row(r).add(i);
                        *c = if standing { *c + sum } else { *sum };
                    }
                }
            }
        }
        standing = true;
    }
}
