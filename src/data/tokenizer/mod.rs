//! The model's tokenizer: text to ids with offsets, its special tokens, its chat template, and the files that the
//! output folder gets. Special tokens in what people wrote are letters; nothing is ever added to a text in silence.

mod added;
mod gguf;
mod open;
mod patterns;
mod source;
mod to_gguf;

pub use gguf::GgufVocab;
pub use open::TokenizerFiles;

use super::Message;
use super::error::RowFault;
use super::template::Template;
use super::turns::{Shape, Shapes};
use added::{Added, Recognise};
use patterns::{LONG_WORD_BYTES, Patterns};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Ids of a text with their byte ranges in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// One a token: start and end byte.
    pub offsets: Vec<(usize, usize)>,
    /// The text held the name of a special token where it is only text.
    pub foreign: bool,
}

/// A model's tokenizer with its chat template.
#[derive(Debug)]
pub struct Tokenizer {
    /// Without truncation, padding and post-processor: it adds nothing and leaves nothing out.
    inner: tokenizers::Tokenizer,
    added: Added,
    patterns: Patterns,
    template: Option<Template>,
    shapes: Shapes,
    /// Ids that stand in front of a text without a template: BOS, or none.
    prefix: Vec<u32>,
    eos: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    longest_token_bytes: usize,
    notes: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    fingerprint: String,
}

impl Tokenizer {
    /// Ids of a text that people wrote: nothing is added, and names of special tokens are letters.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, RowFault> {
        self.encode_text(text).map(|e| e.ids)
    }

    /// As [`Self::encode`], with offsets.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Encoded, RowFault> {
        self.run(text, Recognise::Nowhere)
    }

    /// Ids of a rendered conversation: special tokens are recognised everywhere.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, RowFault> {
        self.run(text, Recognise::Everywhere).map(|e| e.ids)
    }

    /// Ids with offsets; special tokens are recognised outside `contents` alone (ascending, disjoint byte ranges).
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_outside(&self, text: &str, contents: &[Range<usize>]) -> Result<Encoded, RowFault> {
        self.run(text, Recognise::Outside(contents))
    }

    /// Text of ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> String {
        guard(|| self.inner.decode(ids, false)).unwrap_or_default()
    }

    /// The conversation as the model sees it.
    ///
    /// # Errors
    /// There is no template, or it fails.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, RowFault> {
        let none = || RowFault::Template("the model has none".into());
        self.template.as_ref().ok_or_else(none)?.render(messages, add_generation_prompt)
    }

    /// Where the template puts messages of these roles.
    ///
    /// # Errors
    /// There is no template, it fails, or it does not show where messages lie.
    pub(super) fn shape(&self, messages: &[Message]) -> Result<Arc<Shape>, RowFault> {
        let none = || RowFault::Template("the model has none".into());
        let template = self.template.as_ref().ok_or_else(none)?;
        self.shapes.get(template, messages, |text| self.added.leading(text))
    }

    /// What is wrong with the template as a whole, for the summary.
    pub(super) fn audit(&self) -> Vec<String> {
        let Some(template) = &self.template else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let alone = |role: &str| template.render(&[Message::new(role, "text")], false).ok();
        if alone("user").is_some_and(|user| Some(user) == alone("assistant")) {
            found.push(
                "the chat template writes the same for user and assistant: the model cannot tell whose turn it is, and \
                 masking is impossible for it"
                    .to_owned(),
            );
        }
        let pair = [Message::new("user", "text"), Message::new("assistant", "text")];
        if let Ok(shape) = self.shape(&pair) {
            if shape.prompt_missing {
                found.push(
                    "the chat template's generation prompt does not stand before assistant turns: counting starts at \
                     their text"
                        .to_owned(),
                );
            }
            match shape.end_of_turn() {
                None => {
                    found.push("the chat template puts no special token behind an assistant turn".to_owned());
                }
                Some(name) if !self.added.id(name).is_some_and(|id| self.eos_ids.contains(&id)) => {
                    found.push(format!(
                        "the chat template ends a turn with {name}, which is not among the EOS tokens: stop on it when \
                         generating"
                    ));
                }
                Some(_) => {}
            }
        }
        found
    }

    /// Whether a text that people wrote holds the name of a special token.
    pub fn names_special(&self, text: &str) -> bool {
        self.added.any_foreign(text, Recognise::Nowhere)
    }

    /// Whether there is a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Ids that end a text, ascending.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id that is put behind a text without a template.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Ids whose presence among the targets teaches the model to stop: EOS, and the template's end of turn.
    pub fn stop_ids(&self) -> Vec<u32> {
        let pair = [Message::new("user", "text"), Message::new("assistant", "text")];
        let turn = self.shape(&pair).ok();
        let end = turn.as_ref().and_then(|s| self.added.id(s.end_of_turn()?));
        self.eos_ids.iter().copied().chain(end).collect()
    }

    /// Ids that the model's own tokenizer puts in front of every text: BOS, or none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// V: every id is below.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Bytes that one token may stand for, at most.
    pub(super) fn longest_token_bytes(&self) -> usize {
        self.longest_token_bytes
    }

    /// Facts that people should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// SHA-256 over all that decides which ids a text gets.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Names and contents of the files for the output folder.
    pub fn save(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }

    fn run(&self, text: &str, recognise: Recognise) -> Result<Encoded, RowFault> {
        let foreign = self.added.any_foreign(text, recognise);
        let encoding = guard(|| {
            if foreign {
                self.added.encode(&self.inner, text, recognise)
            } else {
                self.inner.encode(text, false)
            }
        });
        let encoding = encoding.map_err(RowFault::Tokenizer)?;
        if has_long_word(&encoding) {
            self.patterns.check(text).map_err(RowFault::Tokenizer)?;
        }
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec(), foreign })
    }
}

/// Whether neighbouring tokens of one word span more than [`LONG_WORD_BYTES`].
fn has_long_word(encoding: &tokenizers::Encoding) -> bool {
    let mut current = (None, 0);
    let tokens = encoding.get_word_ids().iter().zip(encoding.get_offsets());
    tokens.into_iter().any(|(&word, &(start, end))| {
        if current.0 != word {
            current = (word, start);
        }
        end.saturating_sub(current.1) > LONG_WORD_BYTES
    })
}

/// The tokenizers crate panics on some contradictions inside a tokenizer.json; a file must not end the program.
fn guard<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the tokenizer's tables contradict each other".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::data::template::CHATML;
    use crate::data::testing::{VOCAB, arch, tokenizer, vocab};
    use serde_json::Value;
    use std::path::PathBuf;

    #[test]
    fn names_of_special_tokens_are_letters_unless_the_text_is_rendered() {
        let tokenizer = tokenizer();
        let text = "a<|im_end|> the";
        assert_eq!(tokenizer.encode_rendered(text).unwrap().len(), 3);
        let plain = tokenizer.encode(text).unwrap();
        assert!(plain.iter().all(|&id| id > 2));
        assert_eq!(tokenizer.decode(&plain), text);
        assert!(tokenizer.names_special(text) && !tokenizer.names_special("im_end"));
    }

    #[test]
    fn the_guarded_way_gives_the_ids_of_the_plain_one() {
        let tokenizer = tokenizer();
        for text in [
            "",
            "the cat",
            "<|im_start|>user\nthe and<|im_end|>\n",
            "é\u{1f600}  \n 12",
            "<|im_start|><|im_end|>",
        ] {
            let plain = tokenizer.inner.encode(text, false).unwrap();
            let guarded = tokenizer.added.encode(&tokenizer.inner, text, Recognise::Everywhere).unwrap();
            assert_eq!(plain.get_ids(), guarded.get_ids(), "{text:?}");
            assert_eq!(plain.get_offsets(), guarded.get_offsets(), "{text:?}");
        }
    }

    #[test]
    fn a_saved_tokenizer_opens_again_as_the_same() {
        let mut vocab = vocab();
        vocab.add_bos = Some(true);
        let first = Tokenizer::from_gguf(&vocab, &arch(), None).unwrap();
        assert_eq!((first.prefix(), first.eos_ids()), (&[1][..], &[2][..]));
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in first.save() {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let files = TokenizerFiles {
            tokenizer_json: folder.path().join("tokenizer.json"),
            tokenizer_config: Some(folder.path().join("tokenizer_config.json")),
            ..TokenizerFiles::default()
        };
        let again = Tokenizer::from_files(&files, &arch(), None).unwrap();
        assert_eq!(again.save(), first.save());
        assert_eq!(again.fingerprint(), first.fingerprint());
        assert_eq!(again.prefix(), first.prefix());
        assert!(again.has_template());
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let files = TokenizerFiles { tokenizer_json: path.clone(), ..TokenizerFiles::default() };
        let open =
            || Tokenizer::from_files(&files, &arch(), None).err().map(crate::error::Error::from).unwrap();
        assert!(open().to_string().contains("no such file"), "{}", open());
        let whole = tokenizer().save()[0].1.clone();
        for broken in
            [&b""[..], b"{}", b"[1]", b"{\"model\": {\"type\": \"BPE\"}}", &whole[..whole.len() / 2]]
        {
            std::fs::write(&path, broken).unwrap();
            let error = open();
            assert_eq!(error.kind, crate::error::Kind::Model);
            assert!(
                error.to_string().contains("tokenizer.json") && error.to_string().contains("hint"),
                "{error}"
            );
        }
        std::fs::write(&path, &whole).unwrap();
        let small = Arch { vocab_size: 100, ..arch() };
        let error = Tokenizer::from_files(&files, &small, None).err().unwrap().to_string();
        assert!(error.contains("has 100 rows"), "{error}");
    }

    #[test]
    fn gguf_metadata_that_contradicts_itself_is_refused() {
        let broken = |change: &dyn Fn(&mut GgufVocab)| {
            let mut vocab = vocab();
            change(&mut vocab);
            Tokenizer::from_gguf(&vocab, &arch(), None).err().map(|e| e.to_string()).unwrap()
        };
        for (error, fact) in [
            (broken(&|v| v.model = "llama".into()), "only \"gpt2\""),
            (broken(&|v| v.pre = Some("mystery".into())), "mystery"),
            (broken(&|v| v.tokens.clear()), "missing or empty"),
            (broken(&|v| v.token_types.truncate(5)), "5 token types"),
            (broken(&|v| v.merges.push("nospace".into())), "not a pair"),
            (broken(&|v| v.merges.push("zz zz".into())), "not among the tokens"),
            (broken(&|v| v.tokens[9] = v.tokens[8].clone()), "stands twice"),
        ] {
            assert!(error.contains(fact), "{error}");
        }
        let out_of_range =
            Tokenizer::from_gguf(&GgufVocab { eos: Some(9999), ..vocab() }, &arch(), None).unwrap();
        assert!(out_of_range.eos_ids().is_empty());
    }

    #[test]
    fn a_pattern_that_explodes_is_refused_and_never_hangs() {
        let with_pattern = |pattern: &str| {
            let mut json: Value = serde_json::from_slice(&tokenizer().save()[0].1).unwrap();
            json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
            let folder = tempfile::tempdir().unwrap();
            let tokenizer_json = folder.path().join("tokenizer.json");
            std::fs::write(&tokenizer_json, json.to_string()).unwrap();
            let files = TokenizerFiles { tokenizer_json, ..TokenizerFiles::default() };
            Tokenizer::from_files(&files, &arch(), None)
        };
        let error = with_pattern(r"(a|a)*(?>b)").err().unwrap().to_string();
        assert!(error.contains("too many steps"), "{error}");
        // Harmless on runs of one character, explosive on runs of two.
        let sly = with_pattern(r"(xy|x|y)*(?>z)").unwrap();
        assert!(sly.encode("xyxyz xy").is_ok());
        let error = sly.encode(&"xy".repeat(1000)).unwrap_err().to_string();
        assert!(error.contains("too many steps"), "{error}");
    }

    #[test]
    fn every_known_way_of_cutting_words_can_be_built() {
        for pre in ["gpt-2", "smollm", "starcoder", "llama-bpe", "qwen2"] {
            let vocab = GgufVocab { pre: Some(pre.into()), ..vocab() };
            let tokenizer = Tokenizer::from_gguf(&vocab, &arch(), None).unwrap();
            let text = "It's the 1234 and\n\n  more é";
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text, "{pre}");
            assert_eq!(tokenizer.prefix().len(), usize::from(pre == "llama-bpe"));
        }
    }

    #[test]
    fn templates_are_taken_from_where_the_config_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.jinja");
        std::fs::write(&file, "mine {{ eos_token }}").unwrap();
        let render = |wanted: Option<&str>| {
            let tokenizer = Tokenizer::from_gguf(&vocab(), &arch(), wanted);
            tokenizer
                .map(|t| t.render_chat(&[Message::new("user", "a")], false).unwrap())
                .map_err(|e| e.to_string())
        };
        let chatml = "<|im_start|>user\na<|im_end|>\n".to_owned();
        assert_eq!(render(None), Ok(chatml.clone()));
        assert_eq!(render(Some("chatml")), Ok(chatml));
        assert_eq!(render(Some("{{ messages[0].content }}")), Ok("a".into()));
        assert_eq!(render(file.to_str()), Ok("mine <|im_end|>".into()));
        assert!(render(Some("zephyr")).unwrap_err().contains("neither"));
        assert!(render(Some("gone.jinja")).unwrap_err().contains("no such file"));
    }

    #[test]
    fn a_template_that_hides_roles_or_never_ends_turns_is_pointed_out() {
        let audit = |template: &str| {
            Tokenizer::from_gguf(&vocab(), &arch(), Some(template)).unwrap().audit().join("; ")
        };
        assert_eq!(audit(CHATML), "");
        let blind = audit("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}");
        assert!(blind.contains("the same for user and assistant"), "{blind}");
        assert!(blind.contains("<|endoftext|>, which is not among the EOS"), "{blind}");
        let endless = audit(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Bot:{% endif %}",
        );
        assert!(endless.contains("no special token behind"), "{endless}");
        assert!(endless.contains("generation prompt does not stand"), "{endless}");
    }

    #[test]
    fn padding_rows_of_the_embedding_are_said() {
        assert!(tokenizer().notes().iter().any(|n| n.contains(&format!("{VOCAB} rows"))));
    }

    fn variable(name: &str) -> PathBuf {
        std::env::var_os(name).unwrap_or_else(|| panic!("set {name}")).into()
    }

    fn smollm2() -> (TokenizerFiles, Arch) {
        let folder = variable("FTTRAIN_SMOLLM2_HF");
        let files = TokenizerFiles {
            tokenizer_json: folder.join("tokenizer.json"),
            tokenizer_config: Some(folder.join("tokenizer_config.json")),
            chat_template: Some(folder.join("chat_template.jinja")),
            ..TokenizerFiles::default()
        };
        let arch = Arch { vocab_size: 49152, ..arch() };
        (files, arch)
    }

    #[test]
    #[ignore = "needs FTTRAIN_SMOLLM2_HF and FTTRAIN_GSM8K"]
    fn a_vocabulary_from_lists_encodes_as_the_file_it_was_taken_from() {
        let (files, arch) = smollm2();
        let file = Tokenizer::from_files(&files, &arch, None).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(&files.tokenizer_json).unwrap()).unwrap();
        let mut tokens = vec![String::new(); 49152];
        for (name, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = name.clone();
        }
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let lists = GgufVocab {
            file: "lists".into(),
            model: "gpt2".into(),
            pre: Some("smollm".into()),
            token_types: (0..tokens.len()).map(|id| if id < 17 { 3 } else { 1 }).collect(),
            tokens,
            merges: merges
                .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
                .collect(),
            eos: Some(2),
            ..GgufVocab::default()
        };
        let lists = Tokenizer::from_gguf(&lists, &arch, None).unwrap();
        let rows = std::fs::read_to_string(variable("FTTRAIN_GSM8K")).unwrap();
        for row in rows.lines() {
            assert_eq!(file.encode(row).unwrap(), lists.encode(row).unwrap(), "{row}");
        }
    }
}
