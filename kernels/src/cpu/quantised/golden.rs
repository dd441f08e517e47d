//! The formats against their makers: `tests/golden/quantised.py` wrote the numbers, by bitsandbytes and `gguf`.

use super::super::codebook::dynamic_map;
use super::nf4::{Scales, mean};
use super::{Ggml, GgmlKind, Nf4, Quantised};
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn bytes<'a>(file: &SafeTensors<'a>, name: &str) -> &'a [u8] {
    file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data()
}

fn shape(file: &SafeTensors<'_>, name: &str) -> (usize, usize) {
    let view = file.tensor(name).unwrap();
    (view.shape()[0], view.shape()[1])
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn encode(shape: (usize, usize), values: &[f32], double_quant: bool) -> Nf4 {
    Nf4::encode(shape, double_quant, |range, out| out.copy_from_slice(&values[range]))
}

fn all(matrix: &dyn Quantised) -> Vec<f32> {
    let (rows, width) = matrix.shape();
    let mut out = vec![0f32; rows * width];
    for (row, out) in out.chunks_mut(width).enumerate() {
        matrix.dequantise(row, 0..width, out);
    }
    out
}

/// Codes and scales, in the order in which the goldens name and hash them.
fn parts(plain: &Nf4, double: &Nf4) -> [(&'static str, Vec<u8>); 5] {
    let (Scales::Plain(absmax), Scales::Double { code, mean }) = (&plain.scales, &double.scales) else {
        panic!("{plain:?}, {double:?}");
    };
    assert_eq!(plain.codes, double.codes);
    [
        ("codes", plain.codes.clone()),
        ("absmax", raw(absmax)),
        ("codes2", code.codes.clone()),
        ("absmax2", raw(&code.absmax)),
        ("offset", raw(&[*mean])),
    ]
}

#[test]
fn the_dynamic_types_are_bitsandbytes_own() {
    let file = read(&repository("tests/golden/quantised/nf4.safetensors"));
    let file = SafeTensors::deserialize(&file).unwrap();
    for (name, signed) in [("map.signed", true), ("map.unsigned", false)] {
        assert_eq!(dynamic_map(signed).to_vec(), floats(bytes(&file, name)), "{name}");
    }
}

#[test]
fn means_are_those_of_torch() {
    let file = read(&repository("tests/golden/quantised/nf4.safetensors"));
    let file = SafeTensors::deserialize(&file).unwrap();
    let values: Vec<f32> = floats(bytes(&file, "bf16.values")).into_iter().map(f32::abs).collect();
    let counts = bytes(&file, "counts").as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize);
    for (count, theirs) in counts.zip(floats(bytes(&file, "means"))) {
        assert_eq!(mean(&values[..count]).to_bits(), theirs.to_bits(), "of {count}");
    }
}

#[test]
fn nf4_equals_bitsandbytes_bit_for_bit() {
    let file = read(&repository("tests/golden/quantised/nf4.safetensors"));
    let file = SafeTensors::deserialize(&file).unwrap();
    let cases: Vec<&str> = file.names().into_iter().filter_map(|name| name.strip_suffix(".values")).collect();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let name = |part: &str| format!("{case}.{part}");
        let shape = shape(&file, &name("values"));
        let values = floats(bytes(&file, &name("values")));
        let (plain, double) = (encode(shape, &values, false), encode(shape, &values, true));
        for (part, ours) in parts(&plain, &double) {
            assert!(ours == bytes(&file, &name(part)), "{case}: {part} differs");
        }
        for (part, matrix) in [("plain", &plain), ("double", &double)] {
            assert!(all(matrix) == floats(bytes(&file, &name(part))), "{case}: values differ, {part}");
        }
    }
}

/// Every linear of a model against the hash of what bitsandbytes makes of it.
fn compare_hashes(model: &str, weights: &Path) {
    let hashes = read(&repository("tests/golden/quantised/nf4.json"));
    let hashes: serde_json::Value = serde_json::from_slice(&hashes).unwrap();
    let hashes = hashes[model].as_object().unwrap();
    assert!(hashes.len() >= 42);
    let file = read(weights);
    let file = SafeTensors::deserialize(&file).unwrap();
    for (name, theirs) in hashes {
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::BF16);
        let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        let values: Vec<f32> = view.data().as_chunks::<2>().0.iter().map(wide).collect();
        let shape = shape(&file, name);
        let mut digest = Sha256::new();
        for (_, part) in parts(&encode(shape, &values, false), &encode(shape, &values, true)) {
            digest.update(&part);
        }
        let ours = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        assert_eq!(ours, theirs.as_str().unwrap(), "{name}");
    }
}

#[test]
fn nf4_of_a_trained_model_equals_bitsandbytes_bit_for_bit() {
    compare_hashes("quickstart", &repository("configs/quickstart/model/model.safetensors"));
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2_HF"]
fn nf4_of_smollm2_equals_bitsandbytes_bit_for_bit() {
    let folder = std::env::var("FTTRAIN_SMOLLM2_HF").expect("FTTRAIN_SMOLLM2_HF names SmolLM2's folder");
    compare_hashes("smollm2", &Path::new(&folder).join("model.safetensors"));
}

#[test]
fn every_ggml_type_equals_the_gguf_package_bit_for_bit() {
    let file = read(&repository("tests/golden/quantised/ggml.gguf"));
    let golden = read(&repository("tests/golden/quantised/ggml.safetensors"));
    let golden = SafeTensors::deserialize(&golden).unwrap();
    // The file's tensors lie in this order at its end, each padded to 32 bytes; the reader of headers is not here.
    let sizes: Vec<usize> = GgmlKind::ALL
        .iter()
        .map(|kind| {
            let ((rows, width), (values, bytes)) = (shape(&golden, &format!("{kind:?}")), kind.block());
            rows * width / values * bytes
        })
        .collect();
    let mut at = file.len() - sizes.iter().map(|size| size.next_multiple_of(32)).sum::<usize>();
    for (kind, size) in GgmlKind::ALL.into_iter().zip(sizes) {
        let name = format!("{kind:?}");
        let matrix = Ggml::new(kind, shape(&golden, &name), file[at..at + size].to_vec()).unwrap();
        let (ours, theirs) = (all(&matrix), floats(bytes(&golden, &name)));
        let differing = ours.iter().zip(&theirs).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differing, 0, "{name}: of {} values", theirs.len());
        at += size.next_multiple_of(32);
    }
}
