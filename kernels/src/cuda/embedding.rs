//! Rows of the embedding, and their gradient by sorted tokens.

use super::launch::{Address, Launch, THREADS, at_once, size};

/// Rows `ids` of a table `[V, width]` → y `[N, width]`.
pub fn gather(table: Address, is_bf16: bool, ids: Address, (n, width): (usize, usize), y: Address) -> Launch {
    let kernel = if is_bf16 { "gather_bf16" } else { "gather_f32" };
    let arguments = [table.into(), ids.into(), size(width), y.into()];
    Launch::rows(("embedding", kernel), n, THREADS, &arguments).taking(at_once(width, &[table, y]))
}

/// The rows of a batch by their token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sorted {
    /// Each token once, ascending.
    pub ids: Vec<u32>,
    /// Where its rows begin in `order`, and where the last one's end.
    pub starts: Vec<u32>,
    /// Rows of the batch.
    pub order: Vec<u32>,
}

impl Sorted {
    /// Sorts a batch's tokens; rows of one token stay in their order.
    pub fn new(tokens: &[u32]) -> Self {
        let mut pairs: Vec<(u32, u32)> = tokens.iter().copied().zip(0..).collect();
        pairs.sort_unstable();
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for (at, (token, _)) in (0..).zip(&pairs) {
            if ids.last() != Some(token) {
                ids.push(*token);
                starts.push(at);
            }
        }
        let order: Vec<u32> = pairs.into_iter().map(|(_, row)| row).collect();
        starts.push(super::launch::number(order.len()));
        Self { ids, starts, order }
    }
}

/// `sum[id] += Σ dy` of its rows; dy `[N, width]`, sum `[V, width]`; `tokens` is the number of different ones.
pub fn scatter(
    dy: Address,
    (ids, starts, order): (Address, Address, Address),
    (tokens, width): (usize, usize),
    sum: Address,
) -> Launch {
    let arguments = [dy.into(), ids.into(), starts.into(), order.into(), size(width), sum.into()];
    let at_once = at_once(width, &[dy, sum]);
    Launch::rows(("embedding", "scatter_sorted"), tokens, THREADS, &arguments).taking(at_once)
}
