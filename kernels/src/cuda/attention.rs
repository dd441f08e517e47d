//! Attention inside segments: in f32, or on tensor cores.

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

/// Attention over so many rows, N. Heads are of [`LARGEST_HEAD`] values at most.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Heads, scale, window.
    pub shape: &'a Shape,
    /// N.
    pub rows: usize,
    /// q, k, v and out are kept in bf16; sums and gradients stay f32. For heads of an even size.
    pub bf16: bool,
}

/// A kernel for heads of up to 64 and of up to 128 values, with the rows of a block of each.
type Kernel = [(&'static str, usize); 2];

impl Attention<'_> {
    fn launch(&self, [f32, bf16]: [Kernel; 2], heads: usize, all: &[Argument]) -> Launch {
        let (file, kernel) = if self.bf16 { ("attention_bf16", bf16) } else { ("attention", f32) };
        let (name, tile) = kernel[usize::from(self.shape.head_dim > 64)];
        Launch::new((file, name), [number(self.rows.div_ceil(tile)), number(heads)], THREADS, all)
    }

    /// out `[N, H·d]`, lse `[N, H]`.
    pub fn forward(&self, inputs: Inputs, out: Address, lse: Address) -> Launch {
        let kernels = [
            [("attention_forward_64", 32), ("attention_forward_128", 32)],
            [("attention_bf16_forward_64", 64), ("attention_bf16_forward_128", 64)],
        ];
        let all = [&inputs.arguments(self.shape, self.rows)[..], &[out.into(), lse.into()]].concat();
        self.launch(kernels, self.shape.heads, &all)
    }

    /// Gradients of q, k and v, which are overwritten; in this order on one stream.
    pub fn backward(
        &self,
        inputs: Inputs,
        of: Backward,
        (dq, dk, dv): (Address, Address, Address),
    ) -> [Launch; 3] {
        let heads = self.rows * self.shape.heads;
        let of_heads = [Argument::U64(heads as u64), size(self.shape.head_dim)];
        let sums = [&[of.out.into(), of.d_out.into()], &of_heads[..], &[of.along.into()]].concat();
        let kernel = if self.bf16 {
            ("attention_bf16", "attention_bf16_along")
        } else {
            ("attention", "attention_along")
        };
        let along = Launch::rows(kernel, heads.div_ceil(4), THREADS, &sums);
        let saved = [of.d_out, of.lse, of.along].map(Argument::from);
        let shared = [&inputs.arguments(self.shape, self.rows)[..], &saved].concat();
        let by_key = [
            [("attention_backward_kv_64", 32), ("attention_backward_kv_128", 16)],
            [("attention_bf16_backward_kv_64", 64), ("attention_bf16_backward_kv_128", 64)],
        ];
        let by_query = [
            [("attention_backward_q_64", 32), ("attention_backward_q_128", 16)],
            [("attention_bf16_backward_q_64", 64), ("attention_bf16_backward_q_128", 64)],
        ];
        let kv = self.launch(by_key, self.shape.kv_heads, &[&shared[..], &[dk.into(), dv.into()]].concat());
        let q = self.launch(by_query, self.shape.heads, &[&shared[..], &[dq.into()]].concat());
        [along, kv, q]
    }
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
