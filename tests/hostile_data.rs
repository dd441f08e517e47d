//! No data file crashes the program, hangs it, or takes memory out of proportion: each ends in samples or in a named
//! refusal with exit code 3 (data) or 4 (tokenizer).

use fttrain::arch::Arch;
use fttrain::arch::source::Source as Base;
use fttrain::config::{Config, Format, OnBadRow, parse};
use fttrain::data::prepare::{Prepared, prepare_data};
use fttrain::data::rng::Rng;
use fttrain::data::tokenizer::{GgufVocab, Tokenizer, TokenizerFiles};
use fttrain::error::{Kind, Result};
use std::fmt::Write;
use std::sync::OnceLock;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const FORMATS: [Format; 6] = [
    Format::ChatTemplate,
    Format::PromptCompletion,
    Format::Completion,
    Format::Alpaca,
    Format::Sharegpt,
    Format::Tokenized,
];

/// The small llama's base and how data are read for it, by a config.
fn settled() -> &'static Config {
    static SETTLED: OnceLock<Config> = OnceLock::new();
    SETTLED.get_or_init(|| {
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let text = format!(
            "base_model = {base:?}\noutput_dir = \"out\"\nsequence_len = 512\nexcess_length_strategy = \"truncate\"\n\
             max_line_bytes = 4194304\n[[datasets]]\npath = \"rows.jsonl\"\ntype = \"completion\"\n"
        );
        parse("test", &text, None, &[]).unwrap().config
    })
}

/// Its shapes, with room for the tokens below.
fn arch() -> &'static Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(|| Arch { vocab_size: 300, ..Base::locate(&settled().base).unwrap().arch().unwrap() })
}

/// Every byte, and the two marks of a turn.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(made_tokenizer)
}

fn made_tokenizer() -> Tokenizer {
    let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    letters.sort_unstable();
    let mut tokens: Vec<String> = ["<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
    tokens.extend(letters.iter().map(char::to_string));
    let token_types = (0..tokens.len()).map(|i| if i < 2 { 3 } else { 1 }).collect();
    let vocab = GgufVocab { model: "gpt2".into(), tokens, token_types, eos: Some(1), ..GgufVocab::default() };
    Tokenizer::from_gguf(&vocab, arch(), Some("chatml")).unwrap()
}

fn prepare(bytes: &[u8], format: Format, on_bad_row: OnBadRow) -> Result<Prepared> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let mut data = settled().data.clone();
    let source = &mut data.datasets[0];
    source.path = path;
    source.format = format;
    if format == Format::Sharegpt {
        source.field_messages = "conversations".into();
    }
    data.on_bad_row = on_bad_row;
    prepare_data(&data, 42, tokenizer(), None)
}

/// A whole file of each format.
fn good(format: Format) -> String {
    let row = match format {
        Format::ChatTemplate => {
            r#"{"messages": [{"role": "user", "content": "q\u00e9"}, {"role": "assistant", "content": "a"}]}"#
        }
        Format::PromptCompletion => r#"{"prompt": "q", "completion": "a\n"}"#,
        Format::Completion => r#"{"text": "some <|im_end|> text"}"#,
        Format::Alpaca => r#"{"instruction": "i", "input": "", "output": "o"}"#,
        Format::Sharegpt => {
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#
        }
        Format::Tokenized => r#"{"input_ids": [5, 6, 1], "labels": [-100, 6, 1]}"#,
    };
    format!("{row}\n{row}\n")
}

#[test]
fn a_file_cut_anywhere_is_read_or_refused() {
    for format in FORMATS {
        let whole = good(format);
        for end in 0..whole.len() {
            match prepare(&whole.as_bytes()[..end], format, OnBadRow::Fail) {
                Ok(prepared) => assert!(!prepared.train.is_empty()),
                Err(error) => assert_eq!(error.kind, Kind::Data, "{error}"),
            }
        }
    }
}

#[test]
fn flipped_bits_are_read_or_refused() {
    for format in FORMATS {
        let whole = good(format).into_bytes();
        for at in 0..whole.len() {
            for bit in [0, 3, 5, 7] {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let fails = prepare(&flipped, format, OnBadRow::Fail);
                if let Err(error) = &fails {
                    assert_eq!(error.kind, Kind::Data, "{error}");
                    assert!(error.to_string().contains("rows.jsonl"), "{error}");
                }
                // The other row is whole, unless the two became one: skipping leaves something.
                let skips = prepare(&flipped, format, OnBadRow::Skip);
                let joined = whole[at] == b'\n';
                assert!(skips.is_ok() || joined, "{format:?} byte {at} bit {bit}: {:?}", skips.err());
            }
        }
    }
}

#[test]
fn noise_is_refused_and_never_crashes() {
    let mut rng = Rng::new(1, "noise", 0, 0);
    let letters = b"{}[]\",:0123456789-+.eE\\untrfalsemg \n\t\xff\xc3\xa9\x00";
    for round in 0..2000 {
        let length = rng.below(200);
        let pick = |rng: &mut Rng| letters[usize::try_from(rng.below(letters.len() as u64)).unwrap()];
        let bytes: Vec<u8> = (0..length).map(|_| pick(&mut rng)).collect();
        let format = FORMATS[round % FORMATS.len()];
        if let Err(error) = prepare(&bytes, format, OnBadRow::Skip) {
            assert_eq!(error.kind, Kind::Data, "{error}");
        }
    }
}

#[test]
fn rows_made_to_hurt_end_in_a_refusal_or_in_bounded_samples() {
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
    let long_word = "x".repeat(3 << 20);
    let spaces = " ".repeat(2 << 20);
    let mut turns = String::new();
    for i in 0..20_000 {
        let role = if i % 2 == 0 { "user" } else { "assistant" };
        write!(turns, r#"{{"role":"{role}","content":""}},"#).unwrap();
    }
    turns.pop();
    let mut keys = String::new();
    for i in 0..100_000 {
        write!(keys, "\"{i}\":[],").unwrap();
    }
    let rows = [
        (Format::Completion, format!(r#"{{"text": {}}}"#, deep("[", "]"))),
        (Format::Completion, format!(r#"{{"other": {}, "text": "a"}}"#, deep("[", "]"))),
        (Format::Completion, format!(r#"{{"text": {}}}"#, deep("{\"a\":", "}"))),
        (Format::ChatTemplate, format!(r#"{{"messages": {}}}"#, deep("[", "]"))),
        (Format::ChatTemplate, format!(r#"{{"messages": [{turns}]}}"#)),
        (Format::ChatTemplate, format!(r#"{{"messages": [{}{{}}]}}"#, "{},".repeat(500_000))),
        (Format::ChatTemplate, format!(r#"{{"messages": [{{"role": "{long_word}", "content": "a"}}]}}"#)),
        (Format::PromptCompletion, format!(r#"{{"prompt": "{long_word}", "completion": "a"}}"#)),
        (Format::PromptCompletion, format!(r#"{{"prompt": "{spaces}", "completion": "{spaces}"}}"#)),
        (
            Format::PromptCompletion,
            format!(r#"{{"prompt": "a", "completion": "{}"}}"#, "<|im_end|>".repeat(300_000)),
        ),
        (Format::Completion, format!(r#"{{"text": "{long_word}"}}"#)),
        (Format::Completion, format!(r#"{{{keys}"text": "a"}}"#)),
        (Format::Completion, format!(r#"{{"text": "{long_word}{long_word}"}}"#)),
        (Format::Tokenized, format!(r#"{{"input_ids": [{}0], "labels": []}}"#, "0,".repeat(1_000_000))),
        (Format::Tokenized, r#"{"input_ids": [1e99], "labels": [18446744073709551615]}"#.into()),
        (Format::Completion, r#"{"text": "\ud800"}"#.into()),
        (Format::Completion, "{\"text\": \"\0\u{e000}1\u{e001}\"}".into()),
    ];
    for (format, row) in rows {
        let start: String = row.chars().take(60).collect();
        match prepare(row.as_bytes(), format, OnBadRow::Fail) {
            Ok(prepared) => {
                assert!(prepared.train.iter().all(|s| s.ids.len() <= 512), "{start}");
                assert!(prepared.train.iter().all(|s| s.ids.len() == s.labels.len()), "{start}");
            }
            Err(error) => {
                assert!(matches!(error.kind, Kind::Data | Kind::Model), "{start}: {error}");
                assert!(error.to_string().len() < 4096, "{start}");
            }
        }
    }
}

#[test]
fn a_tokenizer_file_cut_or_flipped_anywhere_opens_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let files = TokenizerFiles { tokenizer_json: path.clone(), ..TokenizerFiles::default() };
    let whole = tokenizer().save()[0].1.clone();
    let mut refused = 0;
    let mut open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match Tokenizer::from_files(&files, arch(), None) {
            Ok(tokenizer) => drop(tokenizer.encode("a text <|im_end|>\u{e9}")),
            Err(error) => {
                refused += 1;
                assert_eq!(fttrain::error::Error::from(error).kind, Kind::Model);
            }
        }
    };
    for at in (0..whole.len()).step_by(7) {
        open(&whole[..at]);
        let mut flipped = whole.clone();
        flipped[at] ^= 2;
        open(&flipped);
    }
    assert!(refused > whole.len() / 7);
}
