//! NF4 back to bf16 or f32.

use super::launch::{Address, Launch, at_once, long};

/// A matrix's scales on the device.
#[derive(Debug, Clone, Copy)]
pub enum Scales {
    /// f32 each.
    Plain(Address),
    /// In 8 bits each.
    Double {
        /// Places in the map.
        codes: Address,
        /// The 256 values of the dynamic type.
        map: Address,
        /// An f32 for 256 scales.
        largest: Address,
        /// What was taken off them.
        mean: f32,
    },
}

/// `count` values → y in bf16 or in f32; `values` are the sixteen of the type.
pub fn dequantise(
    codes: Address,
    values: Address,
    scales: Scales,
    count: usize,
    (y, is_bf16): (Address, bool),
) -> Launch {
    let pairs = count.div_ceil(2);
    let at_once = if count.is_multiple_of(2) { at_once(pairs, &[codes, y]) } else { 1 };
    match scales {
        Scales::Plain(scales) => {
            let arguments = [codes.into(), values.into(), scales.into(), long(count), y.into()];
            let kernel = if is_bf16 { "nf4_plain_bf16" } else { "nf4_plain_f32" };
            Launch::elements(("nf4", kernel), pairs, at_once, &arguments)
        }
        Scales::Double { codes: scales, map, largest, mean } => {
            let arguments = [
                codes.into(),
                values.into(),
                scales.into(),
                map.into(),
                largest.into(),
                mean.into(),
                long(count),
                y.into(),
            ];
            let kernel = if is_bf16 { "nf4_double_bf16" } else { "nf4_double_f32" };
            Launch::elements(("nf4", kernel), pairs, at_once, &arguments)
        }
    }
}
