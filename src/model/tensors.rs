//! Tensors of a run as safetensors: f32, bf16 and 8-bit codes, written in the order given, read back bit for bit.

use crate::error::Result;
use crate::ops::host::{self, Element};
use candle_core::{DType, Tensor};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::io::{self, Write};

/// Values that are turned into bytes at a time.
const PART: usize = 1 << 14;

/// Writes tensors in the order given, with the one metadata key that transformers asks for.
pub fn write<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let tensors: Vec<_> = tensors.collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0usize;
    for (name, value) in &tensors {
        let end = at + value.elem_count() * value.dtype().size_in_bytes();
        let (dtype, shape) = (stored(value.dtype()), value.dims());
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    for (_, value) in &tensors {
        match value.dtype() {
            DType::BF16 => values(value, |x: &bf16| x.to_le_bytes(), out),
            DType::U8 => values(value, |x: &u8| [*x], out),
            _ => values(value, |x: &f32| x.to_le_bytes(), out),
        }?;
    }
    Ok(())
}

fn values<T: Element, const N: usize>(
    tensor: &Tensor,
    bytes: impl Fn(&T) -> [u8; N],
    out: &mut dyn Write,
) -> io::Result<()> {
    let values = host::read_as::<T>(tensor).map_err(|e| io::Error::other(e.to_string()))?;
    let mut buffer = Vec::with_capacity(PART * N);
    for part in values.chunks(PART) {
        buffer.clear();
        buffer.extend(part.iter().flat_map(&bytes));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Copies the tensor `name` of a file into `to`.
///
/// # Errors
/// It is missing, or of another shape or type: what is wrong, in words.
pub fn read_into(to: &Tensor, file: &SafeTensors<'_>, name: &str) -> Result<(), String> {
    let view = file.tensor(name).map_err(|_| format!("`{name}` is missing"))?;
    put(to, name, &format!("{:?}", view.dtype()), view.shape(), view.data())
}

/// Copies the bytes of a tensor of a file, its type by safetensors' name, into `to`.
///
/// # Errors
/// Another shape or type: what is wrong, in words.
pub fn put(to: &Tensor, name: &str, kind: &str, shape: &[usize], data: &[u8]) -> Result<(), String> {
    let expected = format!("{:?}", stored(to.dtype()));
    if shape != to.dims() || kind != expected {
        return Err(format!("`{name}` is {kind} {shape:?}, expected {expected} {:?}", to.dims()));
    }
    let filled = match to.dtype() {
        DType::BF16 => fill(to, data, bf16::from_le_bytes),
        DType::U8 => fill(to, data, |[x]: [u8; 1]| x),
        _ => fill(to, data, f32::from_le_bytes),
    };
    filled.map_err(|e| e.to_string())
}

fn fill<T: Element, const N: usize>(to: &Tensor, data: &[u8], value: impl Fn([u8; N]) -> T) -> Result<()> {
    host::edit_as(to, |to: &mut [T]| {
        for (x, bytes) in to.iter_mut().zip(data.as_chunks::<N>().0) {
            *x = value(*bytes);
        }
    })
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::BF16 => Dtype::BF16,
        DType::U8 => Dtype::U8,
        _ => Dtype::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_written_is_read_bit_for_bit_and_nothing_else_is() {
        let f = host::tensor(vec![1.5, -0.0, f32::MIN_POSITIVE], 3).unwrap();
        let b = f.to_dtype(DType::BF16).unwrap();
        let u = Tensor::new(&[[1u8, 255], [0, 7]], &Device::Cpu).unwrap();
        let mut bytes = Vec::new();
        write([("f", &f), ("b", &b), ("u", &u)].into_iter(), &mut bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in [("f", &f), ("b", &b), ("u", &u)] {
            let to = tensor.zeros_like().unwrap();
            read_into(&to, &file, name).unwrap();
            let same =
                |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(same(&to), same(tensor), "{name}");
        }
        assert!(read_into(&f, &file, "b").unwrap_err().contains("expected F32"));
        assert!(read_into(&f, &file, "u").unwrap_err().contains("[2, 2]"));
        assert!(read_into(&f, &file, "x").unwrap_err().contains("missing"));
    }
}
