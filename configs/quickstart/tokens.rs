//! The base model's tokenizer: byte-level BPE learned from the corpus, with the turn marks as special tokens, in the
//! files that Hugging Face's libraries read.

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// Ids 0 to 4, in this order.
pub(crate) const SPECIALS: [&str; 5] = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// V.
pub(crate) const VOCABULARY: usize = 2048;

/// Each turn between its mark and the end mark.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Learns the merges; the same texts give the same bytes.
pub(crate) fn learn<'t>(texts: impl Iterator<Item = &'t str> + Send) -> tokenizers::Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(byte_level))
        .build()?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIALS.map(|s| AddedToken::from(s, true)).to_vec())
        .build();
    tokenizer.train(&mut trainer, texts)?;
    Ok(tokenizer.into())
}

/// `tokenizer_config.json`.
pub(crate) fn config() -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "bos_token": null,
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    })
}
