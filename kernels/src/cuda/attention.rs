//! Attention inside segments.

use super::launch::{Address, Argument, Launch, number, size};
use crate::cpu::attention::{Shape, Span};

/// Largest head that a kernel is compiled for.
pub const LARGEST_HEAD: usize = 128;
const THREADS: u32 = 128;

/// The first row of each row's segment, and the row behind it where it belongs to none; spans as in training, whose
/// queries are their keys, ascending.
pub fn starts(spans: &[Span], rows: usize) -> Vec<u32> {
    let mut starts: Vec<u32> = (1..=number(rows)).collect();
    for span in spans {
        for start in &mut starts[span.q.clone()] {
            *start = number(span.q.start);
        }
    }
    starts
}

/// q, k, v and the starts.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    /// `[N, H·d]`
    pub q: Address,
    /// `[N, K·d]`
    pub k: Address,
    /// `[N, K·d]`
    pub v: Address,
    /// `[N]`, of [`starts`].
    pub starts: Address,
}

impl Inputs {
    fn arguments(&self, shape: &Shape, rows: usize) -> Vec<Argument> {
        let of = [
            size(rows),
            size(shape.heads),
            size(shape.kv_heads),
            size(shape.head_dim),
            shape.scale.into(),
            shape.softcap.unwrap_or(0.0).into(),
            size(shape.window.unwrap_or(0)),
        ];
        let inputs = [self.q, self.k, self.v, self.starts].map(Argument::from);
        [&of[..], &inputs].concat()
    }
}

fn launch(
    names: [&'static str; 2],
    shape: &Shape,
    tiles: [usize; 2],
    blocks: [usize; 2],
    all: &[Argument],
) -> Launch {
    let wide = usize::from(shape.head_dim > 64);
    let grid = [number(blocks[0].div_ceil(tiles[wide])), number(blocks[1])];
    Launch::new(("attention", names[wide]), grid, THREADS, all)
}

/// out `[N, H·d]`, lse `[N, H]`. Heads are of [`LARGEST_HEAD`] values at most.
pub fn forward(shape: &Shape, rows: usize, inputs: Inputs, out: Address, lse: Address) -> Launch {
    let all = [&inputs.arguments(shape, rows)[..], &[out.into(), lse.into()]].concat();
    let names = ["attention_forward_64", "attention_forward_128"];
    launch(names, shape, [32, 32], [rows, shape.heads], &all)
}

/// What the forward pass left, and the gradient of its output; `along` `[N, H]` is room for Σ dO·O.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// `[N, H·d]`
    pub out: Address,
    /// `[N, H]`
    pub lse: Address,
    /// `[N, H·d]`
    pub d_out: Address,
    /// `[N, H]`
    pub along: Address,
}

/// Gradients of q, k and v, which are overwritten; in this order on one stream.
pub fn backward(
    shape: &Shape,
    rows: usize,
    inputs: Inputs,
    of: Backward,
    (dq, dk, dv): (Address, Address, Address),
) -> [Launch; 3] {
    let heads = rows * shape.heads;
    let sums =
        [of.out.into(), of.d_out.into(), Argument::U64(heads as u64), size(shape.head_dim), of.along.into()];
    let along = Launch::rows(("attention", "attention_along"), heads.div_ceil(4), THREADS, &sums);
    let saved = [of.d_out, of.lse, of.along].map(Argument::from);
    let shared = [&inputs.arguments(shape, rows)[..], &saved].concat();
    let kv = launch(
        ["attention_backward_kv_64", "attention_backward_kv_128"],
        shape,
        [32, 16],
        [rows, shape.kv_heads],
        &[&shared[..], &[dk.into(), dv.into()]].concat(),
    );
    let q = launch(
        ["attention_backward_q_64", "attention_backward_q_128"],
        shape,
        [32, 16],
        [rows, shape.heads],
        &[&shared[..], &[dq.into()]].concat(),
    );
    [along, kv, q]
}
