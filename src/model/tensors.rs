//! Tensors of a run as safetensors: f32, bf16 and 8-bit codes, written in the order given, read back bit for bit.

use crate::arch::safetensors::{self, Dtype, TensorEntry};
use crate::error::Result;
use crate::ops::host::{self, Element};
use candle_core::{DType, Tensor};
use half::bf16;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

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
        let (dtype, shape) = (stored(value.dtype()).name(), value.dims());
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
    let mut buffer = Vec::new();
    buffer.resize(PART, [0; N]);
    for part in values.chunks(PART) {
        let filled = &mut buffer[..part.len()];
        for (to, value) in filled.iter_mut().zip(part) {
            *to = bytes(value);
        }
        out.write_all(filled.as_flattened())?;
    }
    Ok(())
}

/// Reads a file of `size` bytes from its beginning to its end, one tensor at a time: each is given to `put` with what
/// `wanted` holds under its name.
///
/// # Errors
/// The file is none of safetensors, or its names are not those wanted, or `put` refuses one: what is wrong, in words.
pub fn read<T>(
    from: &mut dyn Read,
    size: u64,
    mut wanted: BTreeMap<String, T>,
    mut put: impl FnMut(T, &TensorEntry, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    for entry in safetensors::read(from, size).map_err(|e| e.to_string())? {
        let to = wanted.remove(&entry.name).ok_or_else(|| format!("`{}` has no place here", entry.name))?;
        bytes.resize(usize::try_from(entry.len).map_err(|e| e.to_string())?, 0);
        from.read_exact(&mut bytes).map_err(|e| format!("`{}`: {e}", entry.name))?;
        put(to, &entry, &bytes)?;
    }
    wanted.into_keys().next().map_or(Ok(()), |name| Err(format!("`{name}` is missing")))
}

/// Copies the bytes of a tensor of a file into `to`.
///
/// # Errors
/// Another shape or type: what is wrong, in words.
pub fn put(to: &Tensor, entry: &TensorEntry, data: &[u8]) -> Result<(), String> {
    expect(entry, stored(to.dtype()), to.dims())?;
    let filled = match to.dtype() {
        DType::BF16 => fill(to, data, bf16::from_le_bytes),
        DType::U8 => fill(to, data, |[x]: [u8; 1]| x),
        _ => fill(to, data, f32::from_le_bytes),
    };
    filled.map_err(|e| e.to_string())
}

/// Refuses a tensor of another shape or type: what is wrong, in words.
pub fn expect(entry: &TensorEntry, dtype: Dtype, shape: &[usize]) -> Result<(), String> {
    if entry.dtype == dtype && entry.shape == shape {
        return Ok(());
    }
    let TensorEntry { name, dtype: found, shape: given, .. } = entry;
    Err(format!("`{name}` is {} {given:?}, expected {} {shape:?}", found.name(), dtype.name()))
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
        let zeros = [("f", &f), ("b", &b), ("u", &u)].map(|(name, t)| (name, t.zeros_like().unwrap()));
        let into = |to: &[(&str, &Tensor)]| {
            let wanted = to.iter().map(|(name, t)| ((*name).to_owned(), *t)).collect();
            read(&mut bytes.as_slice(), bytes.len() as u64, wanted, put)
        };
        let [zf, zb, zu] = zeros.each_ref().map(|(name, t)| (*name, t));
        into(&[zf, zb, zu]).unwrap();
        let values =
            |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for ((name, read), written) in zeros.iter().zip([&f, &b, &u]) {
            assert_eq!(values(read), values(written), "{name}");
        }
        assert!(into(&[zf, ("b", &f), zu]).unwrap_err().contains("`b` is BF16 [3], expected F32"));
        assert!(into(&[zf, zb, ("u", &f)]).unwrap_err().contains("`u` is U8 [2, 2], expected F32 [3]"));
        assert!(into(&[zf, zb, zu, ("x", &f)]).unwrap_err().contains("`x` is missing"));
        assert!(into(&[zf, zu]).unwrap_err().contains("`b` has no place"));
        let cut = bytes.len() - 1;
        let read = read(&mut &bytes[..cut], cut as u64, BTreeMap::from([("f".to_owned(), &f)]), put);
        assert!(read.is_err(), "a file that ends early");
    }
}
