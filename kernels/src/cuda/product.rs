//! A product that cuBLAS makes, as a value.

use super::launch::Address;

/// A product of two row-major matrices of one type, bf16 or f32, summed in f32: `out = scale·left·right`, or added to what
/// stands there.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// `[m, k]`, or `[k, m]` where it is turned.
    pub left: (Address, bool),
    /// `[k, n]`, or `[n, k]` where it is turned.
    pub right: (Address, bool),
    /// `[m, n]`
    pub out: Address,
    /// m, n, k.
    pub shape: (usize, usize, usize),
    /// Both sides are bf16, else f32.
    pub is_bf16: bool,
    /// `out` is bf16, as only a product of bf16 can be; else f32.
    pub out_is_bf16: bool,
    /// On the product.
    pub scale: f32,
    /// Whether the product is added.
    pub adds: bool,
}
