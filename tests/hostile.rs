//! Promise 3, for model files: whatever their bytes, reading ends in a model or in an error of exit code 4 that names
//! the file and the rule. Each test starts from a small valid file and breaks one thing.

use candle_core::DType;
use fttrain::arch::source::WeightFiles;
use fttrain::arch::{Arch, config_json, gguf, safetensors};
use fttrain::error::{Error, Kind};
use fttrain::model::weights::Loader;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A safetensors file, field by field.
#[derive(Clone)]
struct Plain {
    /// Overrides the header's length.
    declared: Option<u64>,
    header: String,
    data: Vec<u8>,
}

impl Plain {
    fn new(header: &str, data: usize) -> Self {
        Self { declared: None, header: header.into(), data: vec![0; data] }
    }

    fn two() -> Self {
        Self::new(
            r#"{"__metadata__":{"format":"pt"},
                "b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},
                "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#,
            20,
        )
    }

    fn bytes(&self) -> Vec<u8> {
        let declared = self.declared.unwrap_or(self.header.len() as u64);
        let mut bytes = declared.to_le_bytes().to_vec();
        bytes.extend_from_slice(self.header.as_bytes());
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The error must be of a model file, name that file and hold the words.
fn assert_refused<T>(result: Result<T, Error>, path: &Path, words: &str) {
    let Err(error) = result else {
        panic!("accepted, expected: {words}");
    };
    let text = error.to_string();
    assert_eq!(error.kind, Kind::Model, "{text}");
    assert!(
        text.contains(words) && text.contains(path.file_name().unwrap().to_str().unwrap()),
        "expected: {words}\ngot: {text}"
    );
    assert!(error.problems.iter().all(|p| p.hint.is_some()), "{text}");
}

fn assert_safetensors_refused(file: &Plain, words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "model.safetensors", &file.bytes());
    assert_refused(safetensors::Shard::read(&path), &path, words);
}

#[test]
fn a_valid_safetensors_file_is_read_in_any_order_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "model.safetensors", &Plain::two().bytes());
    let shard = safetensors::Shard::read(&path).unwrap();
    let start = 8 + Plain::two().header.len() as u64;
    let found: Vec<_> =
        shard.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.offset, t.len)).collect();
    let (a, b): (&[usize], &[usize]) = (&[2], &[2, 2]);
    assert_eq!(found, [("a", a, start, 4), ("b", b, start + 4, 16)]);
}

#[test]
fn refuses_header_lengths_that_cannot_be() {
    let with = |declared| Plain { declared: Some(declared), ..Plain::two() };
    for declared in [0, 1, 100 << 20, 1 << 63, u64::MAX] {
        let words = format!("the header declares {declared} bytes; 2 to 16777216 are accepted");
        assert_safetensors_refused(&with(declared), &words);
    }
    assert_safetensors_refused(&with(5000), "declares 5000 bytes, the file has");
    let folder = tempfile::tempdir().unwrap();
    for size in 0..8 {
        let path = write(&folder, "short.safetensors", &vec![0; size]);
        let words = format!("{size} bytes are too few");
        assert_refused(safetensors::Shard::read(&path), &path, &words);
    }
}

#[test]
fn refuses_tensors_that_do_not_tile_the_data() {
    let two = |a: &str, b: &str, data| {
        Plain::new(
            &format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},
                    "b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            ),
            data,
        )
    };
    for (a, b, data, words) in [
        ("[0,4]", "[2,6]", 6, "tensor `b` begins at byte 2 of the data, inside `a`"),
        ("[0,4]", "[0,4]", 4, "inside `a`"),
        ("[0,4]", "[5,9]", 9, "tensor `b` begins at byte 5 of the data, 1 bytes behind"),
        ("[1,5]", "[5,9]", 9, "tensor `a` begins at byte 1 of the data, 1 bytes behind"),
        ("[0,4]", "[4,8]", 9, "1 bytes lie behind the last tensor (`b`)"),
        ("[0,4]", "[4,8]", 7, "tensor `b` ends at byte 8 of the data, which has 7"),
        ("[4,0]", "[4,8]", 8, "tensor `a` of shape [4] and dtype U8 needs 4 bytes, its offsets are 4 to 0"),
        ("[0,3]", "[3,7]", 7, "needs 4 bytes, its offsets are 0 to 3"),
        ("[0,18446744073709551615]", "[4,8]", 8, "ends at byte 18446744073709551615"),
    ] {
        assert_safetensors_refused(&two(a, b, data), words);
    }
    assert_safetensors_refused(&Plain::new("{}", 3), "3 bytes lie behind the last tensor");
}

#[test]
fn refuses_shapes_whose_bytes_cannot_be() {
    let of = |shape: &str| {
        Plain::new(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#), 0)
    };
    for shape in [
        "[18446744073709551615]",
        "[4294967296, 4294967296]",
        "[0, 18446744073709551615]",
        "[2305843009213693952]",
    ] {
        assert_safetensors_refused(&of(shape), "does not fit 63 bits");
    }
    let many = format!("[{}1]", "1,".repeat(999));
    assert_safetensors_refused(&of(&many), "tensor `a` has 1000 dimensions; at most 8");
    assert_safetensors_refused(&of("[-1]"), "invalid value");
    assert_safetensors_refused(&of("[1.5]"), "invalid type");
}

#[test]
fn refuses_names_dtypes_and_json_that_break_the_rules() {
    let named = |name: &str| {
        Plain::new(&format!(r#"{{{name}:{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), 1)
    };
    for name in [r#""../../x""#, r#""/etc/x""#, r#""a\\b""#, r#""a\u0000b""#] {
        assert_safetensors_refused(&named(name), "must have no slashes and no control characters");
    }
    assert_safetensors_refused(&named(r#""""#), "must have 1 to 512 bytes");
    let long = format!("\"{}\"", "a".repeat(513));
    assert_safetensors_refused(&named(&long), "must have 1 to 512 bytes");
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_safetensors_refused(&Plain::new(twice, 2), "\"a\" stands twice");
    let dtype = r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#;
    assert_safetensors_refused(&Plain::new(dtype, 4), "tensor `a` has the unknown dtype \"F33\"");
    for broken in ["[]", "{\"a\":", "{\"a\":1}", "null", "{} x", "{\"a\":{}}"] {
        assert_safetensors_refused(&Plain::new(broken, 0), "header byte");
    }
    let deep = format!("{{\"__metadata__\":{}", "[".repeat(100_000));
    assert_safetensors_refused(&Plain::new(&deep, 0), "header byte");
    let mut latin = Plain::two().bytes();
    latin[12] = 0xff;
    assert!(safetensors::parse(&latin, latin.len() as u64).is_err());
}

#[test]
fn refuses_an_index_that_leads_elsewhere_or_disagrees_with_its_shards() {
    let folder = tempfile::tempdir().unwrap();
    let index = |text: &str| write(&folder, "model.safetensors.index.json", text.as_bytes());
    write(&folder, "one.safetensors", &Plain::two().bytes());
    let open = || safetensors::open(folder.path());
    let path = index(r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}"#);
    assert_eq!(open().unwrap()[0].tensors.len(), 2);
    for (text, words) in [
        (r#"{"weight_map": {"a": "../one.safetensors"}}"#, "not a plain name"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "not a plain name"),
        (r#"{"weight_map": {"a": "..\\one.safetensors"}}"#, "not a plain name"),
        (r#"{"weight_map": {"a": ".one.safetensors"}}"#, "not a plain name"),
        (r#"{"weight_map": {"a": "one.bin"}}"#, "not a plain name"),
        (r#"{"weight_map": {}}"#, "`weight_map` is empty"),
        (
            r#"{"weight_map": {"a": "one.safetensors"}}"#,
            "holds tensor `b`, which the index does not put there",
        ),
        (
            r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}}"#,
            "puts tensor `c` into one.safetensors",
        ),
        (r"{}", "missing field `weight_map`"),
        ("", "EOF"),
    ] {
        index(text);
        assert_refused(open(), &path, words);
    }
    let many: Vec<String> = (0..1001).map(|n| format!(r#""{n}": "{n}.safetensors""#)).collect();
    index(&format!(r#"{{"weight_map": {{{}}}}}"#, many.join(",")));
    assert_refused(open(), &path, "names 1001 files; at most 1000");
    index(r#"{"weight_map": {"a": "gone.safetensors"}}"#);
    assert_refused(open(), Path::new("gone.safetensors"), "cannot open");
    std::fs::remove_file(&path).unwrap();
    assert_refused(open(), folder.path(), "none of model.safetensors");
}

#[test]
fn no_cut_and_no_flipped_bit_of_a_safetensors_file_panics() {
    let bytes = Plain::two().bytes();
    let size = bytes.len() as u64;
    assert!(safetensors::parse(&bytes, size).is_ok());
    for cut in 0..bytes.len() {
        assert!(safetensors::parse(&bytes[..cut], cut as u64).is_err(), "cut at {cut}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(tensors) = safetensors::parse(&bytes, size) {
            assert!(tensors.iter().all(|t| t.offset + t.len <= size), "bit {bit}");
        }
    }
}

/// A GGUF file, field by field.
#[derive(Clone)]
struct Ggml {
    magic: [u8; 4],
    version: u32,
    /// Override the counts.
    tensor_count: Option<u64>,
    key_count: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

fn number(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend_from_slice(&u32::try_from(dims.len()).unwrap().to_le_bytes());
    for dim in dims {
        bytes.extend_from_slice(&dim.to_le_bytes());
    }
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes
}

impl Ggml {
    fn new() -> Self {
        let tokens = [&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("a"), &text("b")].concat();
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: vec![
                key("general.architecture", 8, &text("llama")),
                number("general.alignment", 32),
                key("tokenizer.ggml.tokens", 9, &tokens),
            ],
            tensors: vec![tensor("a", &[4, 2], 0, 0), tensor("b", &[32], 8, 32)],
            alignment: 32,
            data: vec![0; 66],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        let count = |given: Option<u64>, all: &[Vec<u8>]| given.unwrap_or(all.len() as u64).to_le_bytes();
        bytes.extend_from_slice(&count(self.tensor_count, &self.tensors));
        bytes.extend_from_slice(&count(self.key_count, &self.keys));
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend_from_slice(&self.data);
        bytes
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

fn assert_gguf_refused(change: impl FnOnce(&mut Ggml), words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "model.gguf", &Ggml::new().with(change).bytes());
    assert_refused(gguf::Header::read(&path), &path, words);
}

#[test]
fn a_valid_gguf_header_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for version in [2, 3] {
        let bytes = Ggml::new().with(|file| file.version = version).bytes();
        let path = write(&folder, "model.gguf", &bytes);
        let header = gguf::Header::read(&path).unwrap();
        assert_eq!(header.text("general.architecture"), Some("llama"));
        assert_eq!(header.texts("tokenizer.ggml.tokens").unwrap(), ["a", "b"]);
        let b = header.tensor("b").unwrap();
        assert_eq!((b.len, b.offset + b.len), (34, bytes.len() as u64));
        assert_eq!(header.tensor("a").unwrap().dims, [4, 2]);
    }
}

#[test]
fn refuses_a_gguf_file_of_another_kind_or_version() {
    assert_gguf_refused(|f| f.magic = *b"GGML", "does not start with `GGUF`");
    for version in [0, 1, 4, 9, u32::MAX] {
        let words = format!("GGUF version {version} is not supported; supported: 2, 3");
        assert_gguf_refused(|f| f.version = version, &words);
    }
    assert_gguf_refused(|f| f.version = 3_u32.swap_bytes(), "is big-endian");
}

#[test]
fn refuses_gguf_counts_that_the_file_cannot_hold() {
    for count in [1 << 63, u64::MAX, 1_000_000] {
        let words = format!("{count} tensors cannot fit");
        assert_gguf_refused(|f| f.tensor_count = Some(count), &words);
        let words = format!("{count} keys cannot fit");
        assert_gguf_refused(|f| f.key_count = Some(count), &words);
        let long = [&8_u32.to_le_bytes()[..], &count.to_le_bytes()].concat();
        let words = format!("{count} array items cannot fit");
        assert_gguf_refused(|f| f.keys.push(key("k", 9, &long)), &words);
        let words = format!("{count} bytes of text cannot fit");
        assert_gguf_refused(|f| f.keys.push(key("k", 8, &count.to_le_bytes())), &words);
    }
    assert_gguf_refused(|f| f.key_count = Some(5), "a key of");
    assert_gguf_refused(|f| f.key_count = Some(2), "tensor");
}

#[test]
fn refuses_gguf_keys_that_break_the_rules() {
    let named = |length: u64| [&length.to_le_bytes()[..], &[0; 8]].concat();
    for length in [u64::MAX, 1 << 63, 65_536, 0] {
        let words = format!("a key of {length} bytes; 1 to 65535 are allowed");
        assert_gguf_refused(|f| f.keys[0] = named(length), &words);
    }
    assert_gguf_refused(
        |f| f.keys.push(number("general.alignment", 32)),
        "key `general.alignment` stands twice",
    );
    let nested = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    assert_gguf_refused(|f| f.keys.push(key("k", 9, &nested)), "key `k` is an array of arrays");
    let unknown = [&13_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    assert_gguf_refused(|f| f.keys.push(key("k", 9, &unknown)), "key `k` has value type 13");
    assert_gguf_refused(|f| f.keys.push(key("k", 13, &[])), "key `k` has value type 13");
    assert_gguf_refused(|f| f.keys.push(key("k", 7, &[2])), "key `k` has a bool of value 2");
    let bytes = [&1_u64.to_le_bytes()[..], &[0xff]].concat();
    assert_gguf_refused(|f| f.keys.push(key("k", 8, &bytes)), "is not UTF-8");
}

#[test]
fn refuses_gguf_alignments_that_are_no_power_of_two_in_bounds() {
    for alignment in [0, 1, 4, 13, 24, 131_072, 1 << 31] {
        let words = format!("must be a power of two from 8 to 65536, got {alignment}");
        assert_gguf_refused(|f| f.keys[1] = number("general.alignment", alignment), &words);
    }
    assert_gguf_refused(
        |f| f.keys[1] = key("general.alignment", 8, &text("32")),
        "got a value of another type",
    );
}

#[test]
fn refuses_gguf_tensors_that_break_the_rules() {
    for (bad, words) in [
        (tensor("a", &[32], 0, 32), "tensor `a` stands twice"),
        (tensor("b", &[1; 5], 0, 0), "tensor `b` has 5 dimensions"),
        (tensor("b", &[], 0, 0), "tensor `b` has 0 dimensions"),
        (tensor("b", &[32], 4, 32), "tensor `b` has type 4, which does not exist"),
        (tensor("b", &[32], 99, 32), "tensor `b` has type 99"),
        (tensor("b", &[32], 20, 32), "stored as IQ4_NL, which is not supported; supported: F32"),
        (tensor("b", &[1 << 32, 1 << 32], 0, 32), "does not fit 63 bits"),
        (tensor("b", &[1 << 62, 4], 0, 32), "does not fit 63 bits"),
        (tensor("b", &[0], 0, 32), "is 0 or does not fit"),
        (tensor("b", &[33], 8, 32), "rows of 33 values are no whole number of Q8_0 blocks of 32"),
        (tensor("b", &[16, 2], 8, 32), "rows of 16 values"),
        (tensor("b", &[32], 8, 33), "begins at offset 33, no multiple of the alignment 32"),
        (tensor("b", &[32], 8, 64), "tensor `b` needs bytes"),
        (tensor("b", &[32], 8, 1 << 63), "tensor `b` needs bytes"),
        (tensor("b", &[32], 8, u64::MAX - 31), "tensor `b` needs bytes"),
        (tensor("b", &[4096], 0, 32), "tensor `b` needs bytes"),
        (tensor("b", &[32], 8, 0), "overlap at byte"),
        (tensor("", &[32], 8, 32), "a tensor name of 0 bytes"),
        (tensor(&"b".repeat(65), &[32], 8, 32), "a tensor name of 65 bytes"),
    ] {
        assert_gguf_refused(|f| f.tensors[1] = bad, words);
    }
    assert_gguf_refused(|f| f.data.truncate(65), "tensor `b` needs bytes");
}

#[test]
fn no_cut_and_no_flipped_bit_of_a_gguf_file_panics() {
    let bytes = Ggml::new().bytes();
    let size = bytes.len() as u64;
    assert!(gguf::parse(&bytes, size).is_ok());
    for cut in 0..bytes.len() {
        assert!(gguf::parse(&bytes[..cut], cut as u64).is_err(), "cut at {cut}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok((_, tensors)) = gguf::parse(&bytes, size) {
            assert!(tensors.iter().all(|t| t.offset + t.len <= size), "bit {bit}");
        }
    }
}

/// A tiny model's metadata and tensors, valid but for the changes.
fn model_keys() -> Vec<Vec<u8>> {
    vec![
        key("general.architecture", 8, &text("llama")),
        number("llama.block_count", 1),
        number("llama.embedding_length", 8),
        number("llama.feed_forward_length", 12),
        number("llama.attention.head_count", 2),
        number("llama.attention.head_count_kv", 1),
        number("llama.context_length", 64),
        key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes()),
    ]
}

fn model_gguf() -> Ggml {
    let shapes: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[8, 16]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 12]),
        ("blk.0.ffn_up.weight", &[8, 12]),
        ("blk.0.ffn_down.weight", &[12, 8]),
        ("output_norm.weight", &[8]),
    ];
    let mut tensors = Vec::new();
    let mut data = Vec::new();
    for (name, dims) in shapes {
        tensors.push(tensor(name, dims, 0, data.len() as u64));
        let count = dims.iter().product::<u64>();
        for n in 0..count {
            data.extend_from_slice(&f32::from(u16::try_from(n).unwrap()).to_le_bytes());
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    Ggml { keys: model_keys(), tensors, data, ..Ggml::new() }
}

fn read_gguf(file: &Ggml, folder: &TempDir) -> Result<(gguf::Header, Arch), Error> {
    let path = write(folder, "model.gguf", &file.bytes());
    let header = gguf::Header::read(&path)?;
    let arch = header.arch()?;
    Ok((header, arch))
}

#[test]
fn a_gguf_model_is_read_with_its_rows_of_q_and_k_in_halves() {
    let folder = tempfile::tempdir().unwrap();
    let (header, arch) = read_gguf(&model_gguf(), &folder).unwrap();
    assert!(arch.tie_word_embeddings && !arch.qkv_bias);
    assert_eq!((arch.head_dim, arch.kv_heads, arch.vocab_size), (4, 1, 16));
    let loader = Loader::open(&WeightFiles::Gguf(header), &arch, 0, "tiny").unwrap();
    let first_column = |name: &str| {
        let tensor = loader.load(name, DType::F32).unwrap();
        let rows = tensor.to_vec2::<f32>().unwrap();
        rows.into_iter().map(|row| row[0] / 8.0).collect::<Vec<f32>>()
    };
    let q = first_column("model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let v = first_column("model.layers.0.self_attn.v_proj.weight");
    assert_eq!(v, [0.0, 1.0, 2.0, 3.0]);
    let down = loader.load("model.layers.0.mlp.down_proj.weight", DType::BF16).unwrap();
    assert_eq!((down.dims(), down.dtype()), (&[8, 12][..], DType::BF16));
}

#[test]
fn refuses_gguf_metadata_that_makes_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Path::new("model.gguf");
    let swap = |at: usize, new: Vec<u8>| model_gguf().with(|f| f.keys[at] = new);
    let add = |new: Vec<u8>| model_gguf().with(|f| f.keys.push(new));
    for (file, words) in [
        (
            swap(0, key("general.architecture", 8, &text("mamba"))),
            "is \"mamba\", which is not supported; supported: llama, qwen2, qwen3",
        ),
        (swap(0, number("general.architecture", 1)), "`general.architecture` is missing"),
        (
            swap(1, number("llama.block_count", 1_000_000_000)),
            "`llama.block_count` must be a whole number from 1 to 1000, got 1000000000",
        ),
        (swap(1, number("x", 1)), "`llama.block_count` is missing"),
        (swap(4, number("llama.attention.head_count", 3)), "must divide `llama.embedding_length` (8)"),
        (swap(4, number("llama.attention.head_count", 0)), "got 0"),
        (
            swap(5, number("llama.attention.head_count_kv", 3)),
            "must divide `llama.attention.head_count` (2), got 3",
        ),
        (swap(7, key("llama.attention.layer_norm_rms_epsilon", 6, &f32::NAN.to_le_bytes())), "got NaN"),
        (
            add(key("llama.rope.freq_base", 6, &0_f32.to_le_bytes())),
            "`llama.rope.freq_base` must be a number from 1e0",
        ),
        (add(key("llama.rope.scaling.type", 8, &text("yarn"))), "`llama.rope.scaling.type` is \"yarn\""),
        (add(number("llama.rope.dimension_count", 2)), "a rope over a part of the head"),
        (add(number("llama.expert_count", 8)), "a mixture of experts"),
        (model_gguf().with(|f| f.tensors[0] = tensor("x", &[8, 16], 0, 0)), "`token_embd.weight` is missing"),
        (
            model_gguf().with(|f| f.tensors[10] = tensor("rope_freqs.weight", &[2], 0, 2496)),
            "`rope_freqs.weight` is a stretch of its own",
        ),
    ] {
        assert_refused(read_gguf(&file, &folder), gguf, words);
    }
}

const CONFIG: &str = r#"{"model_type": "qwen2", "vocab_size": 6, "hidden_size": 4, "intermediate_size": 3,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": false}"#;

/// A safetensors model whose tensors are those of the config but for the changes; values are 1.
fn model(change: impl FnOnce(&mut Vec<(String, Vec<usize>, &'static str)>)) -> (TempDir, Arch, WeightFiles) {
    let arch = config_json::parse(CONFIG.as_bytes(), "config.json").unwrap();
    let parameters = arch.parameters().into_iter();
    let mut tensors: Vec<_> = parameters.map(|p| (p.name, p.shape, "F32")).collect();
    change(&mut tensors);
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape, dtype) in tensors {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            match dtype {
                "BF16" => data.extend_from_slice(&[0x80, 0x3f]),
                _ => data.extend_from_slice(&1_f32.to_le_bytes()),
            }
        }
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let file = Plain { declared: None, header: format!("{{{}}}", entries.join(",")), data };
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "model.safetensors", &file.bytes());
    let shards = safetensors::open(folder.path()).unwrap();
    (folder, arch, WeightFiles::Safetensors(shards))
}

#[test]
fn lists_what_is_missing_left_over_transposed_or_of_another_dtype() {
    let (_folder, arch, files) = model(|tensors| {
        tensors.retain(|t| t.0 != "model.norm.weight");
        tensors.push(("model.layers.0.extra".into(), vec![1], "F32"));
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![1], "F32"));
        for (name, shape, dtype) in tensors {
            match name.as_str() {
                "model.layers.0.mlp.up_proj.weight" => shape.reverse(),
                "model.layers.0.self_attn.q_proj.bias" => *dtype = "I32",
                _ => {}
            }
        }
    });
    let error = Loader::open(&files, &arch, 0, "tiny").unwrap_err();
    for words in [
        "tiny: 4 tensors do not fit",
        "model.norm.weight: missing, expected [4]",
        "model.layers.0.extra: not expected, found [1]",
        "model.layers.0.mlp.up_proj.weight: expected [3, 4], found [4, 3] (transposed)",
        "model.layers.0.self_attn.q_proj.bias: expected F32, F16, BF16 or F64, found I32",
    ] {
        assert!(error.to_string().contains(words), "{words}\n{error}");
    }
    let (_folder, arch, files) = model(|tensors| tensors.truncate(2));
    let error = Loader::open(&files, &arch, 0, "tiny").unwrap_err().to_string();
    assert!(error.contains("and 3 more"), "{error}");
}

#[test]
fn a_tied_head_is_fine_with_and_without_its_own_tensor_and_said() {
    for own in [true, false] {
        let (_folder, mut arch, files) = model(|tensors| {
            if !own {
                tensors.retain(|t| t.0 != "lm_head.weight");
            }
        });
        if !own {
            let error = Loader::open(&files, &arch, 0, "tiny").unwrap_err().to_string();
            assert!(error.contains("lm_head.weight: missing"), "{error}");
        }
        arch.tie_word_embeddings = true;
        let loader = Loader::open(&files, &arch, 0, "tiny").unwrap();
        assert!(loader.notes()[0].contains("tied"));
        assert_eq!(loader.notes()[0].contains("not used"), own);
    }
}

#[test]
fn refuses_weights_that_are_not_finite_with_name_and_count() {
    let (folder, arch, files) = model(|_| ());
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let WeightFiles::Safetensors(shards) = &files else { unreachable!() };
    let embedding = &shards[0].tensors[0];
    let at = usize::try_from(embedding.offset).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes[at + 8..at + 12].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    // Finite in f32, infinite once rounded to bf16.
    bytes[at + 16..at + 20].copy_from_slice(&f32::MAX.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let files = WeightFiles::Safetensors(safetensors::open(folder.path()).unwrap());
    let loader = Loader::open(&files, &arch, 0, "tiny").unwrap();
    for (dtype, count) in [(DType::F32, 2), (DType::BF16, 3)] {
        let error = loader.load("model.embed_tokens.weight", dtype).unwrap_err();
        let words = format!("model.embed_tokens.weight: {count} of 24 values are NaN or infinite");
        assert!(error.to_string().contains(&words), "{error}");
        assert_eq!(error.kind, Kind::Model);
    }
    assert!(loader.load("model.norm.weight", DType::F32).is_ok());
}

#[test]
fn refuses_a_file_that_was_replaced_or_cut_while_it_is_read() {
    let (folder, arch, files) = model(|_| ());
    let path = folder.path().join("model.safetensors");
    let loader = Loader::open(&files, &arch, 0, "tiny").unwrap();
    assert!(loader.load("lm_head.weight", DType::F32).is_ok());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_refused(loader.load("lm_head.weight", DType::F32), &path, "changed while it was read");
    assert_refused(Loader::open(&files, &arch, 0, "tiny"), &path, "changed while it was read");
}

#[test]
fn refuses_what_is_no_regular_file_without_waiting_for_it() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(gguf::Header::read(folder.path()), folder.path(), "is not a regular file");
    #[cfg(unix)]
    {
        let fifo = folder.path().join("config.json");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_refused(config_json::read(&fifo), &fifo, "is not a regular file");
    }
    let huge = folder.path().join("huge.json");
    std::fs::File::create(&huge).unwrap().set_len(2 << 30).unwrap();
    assert_refused(config_json::read(&huge), &huge, "at most 16777216 are accepted");
}

#[test]
fn fresh_weights_need_no_file_and_follow_from_the_seed() {
    let arch = config_json::parse(CONFIG.as_bytes(), "config.json").unwrap();
    let load = |seed, name: &str| {
        let loader = Loader::open(&WeightFiles::Reinit, &arch, seed, "tiny").unwrap();
        let tensor = loader.load(name, DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(load(1, "lm_head.weight"), load(1, "lm_head.weight"));
    assert_ne!(load(1, "lm_head.weight"), load(2, "lm_head.weight"));
    assert_eq!(load(1, "model.norm.weight"), [1.0; 4]);
    assert_eq!(load(1, "model.layers.0.self_attn.v_proj.bias"), [0.0; 2]);
}

fn env(name: &str) -> PathBuf {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set")).into()
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2 and FTTRAIN_SMOLLM2_HF"]
fn the_gguf_file_and_the_folder_of_smollm2_hold_the_same_bits() {
    let header = gguf::Header::read(&env("FTTRAIN_SMOLLM2")).unwrap();
    let folder = env("FTTRAIN_SMOLLM2_HF");
    let arch = config_json::read(&folder.join("config.json")).unwrap();
    let from_gguf = header.arch().unwrap();
    assert_eq!(Arch { init_std: arch.init_std, ..from_gguf.clone() }, arch);
    let shards = WeightFiles::Safetensors(safetensors::open(&folder).unwrap());
    let plain = Loader::open(&shards, &arch, 0, "folder").unwrap();
    let blocks = Loader::open(&WeightFiles::Gguf(header), &from_gguf, 0, "gguf").unwrap();
    for parameter in arch.parameters() {
        let bits = |loader: &Loader| {
            let tensor = loader.load(&parameter.name, DType::BF16).unwrap();
            let values = tensor.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
            values.into_iter().map(half::bf16::to_bits).collect::<Vec<_>>()
        };
        assert!(bits(&plain) == bits(&blocks), "{}", parameter.name);
    }
}
