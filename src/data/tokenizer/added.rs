//! Added tokens in a text: where they may be recognised and where they are only letters. A user who writes
//! `<|im_end|>` must not end his own turn.

use regex::Regex;
use std::collections::HashMap;
use std::ops::Range;
use tokenizers::tokenizer::normalizer::Range as Part;
use tokenizers::{
    AddedToken, Encoding, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
    Token,
};

/// Where special tokens are recognised.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recognise<'a> {
    /// Anywhere: the text is the program's own.
    Everywhere,
    /// Outside these ranges, ascending and disjoint: they hold what people wrote.
    Outside(&'a [Range<usize>]),
    /// Nowhere: all of it was written by people.
    Nowhere,
}

impl Recognise<'_> {
    fn allows(self, found: &Range<usize>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::Outside(contents) => {
                let behind = contents.partition_point(|c| c.end <= found.start);
                contents.get(behind).is_none_or(|c| found.end <= c.start)
            }
        }
    }
}

/// The tokens that a tokenizer takes out of a text before it looks at words.
#[derive(Debug)]
pub(super) struct Added {
    finder: Option<Regex>,
    tokens: HashMap<String, (u32, AddedToken)>,
}

impl Added {
    /// # Errors
    /// So many tokens that no search can be built for them.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, regex::Error> {
        let tokens: HashMap<String, (u32, AddedToken)> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(id, token)| (token.content.clone(), (id, token)))
            .collect();
        // Longest first makes the leftmost match the longest, as the tokenizer has it.
        let mut names: Vec<&str> = tokens.keys().map(String::as_str).collect();
        names.sort_unstable_by_key(|name| (std::cmp::Reverse(name.len()), *name));
        let names: Vec<String> = names.into_iter().map(regex::escape).collect();
        let pattern = (!names.is_empty()).then(|| names.join("|"));
        let finder = pattern.as_deref().map(Regex::new).transpose()?;
        Ok(Self { finder, tokens })
    }

    /// The id of a special token.
    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.tokens.get(content).map(|(id, _)| *id)
    }

    /// The added token that a text opens with, behind nothing but white space.
    pub(super) fn leading(&self, text: &str) -> Option<Range<usize>> {
        let found = self.finder.as_ref()?.find(text)?;
        let before = text.get(..found.start())?;
        before.trim().is_empty().then(|| found.range())
    }

    /// Whether the text holds a special token where none may be recognised.
    pub(super) fn any_foreign(&self, text: &str, recognise: Recognise) -> bool {
        self.found(text).any(|(range, _, token)| token.special && !recognise.allows(&range))
    }

    fn found<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, u32, &'a AddedToken)> {
        let found = self.finder.iter().flat_map(move |f| f.find_iter(text));
        found.filter_map(|m| {
            let (id, token) = self.tokens.get(m.as_str())?;
            Some((m.range(), *id, token))
        })
    }

    /// The text in parts: an added token with its id and the white space that it takes along, or plain text.
    fn parts(&self, text: &str, recognise: Recognise) -> Vec<(Range<usize>, Option<u32>)> {
        let mut parts = Vec::new();
        let mut done = 0;
        for (range, id, token) in self.found(text) {
            if range.start < done || (token.special && !recognise.allows(&range)) {
                continue;
            }
            let before = text.get(done..range.start).unwrap_or_default();
            let after = text.get(range.end..).unwrap_or_default();
            let start = if token.lstrip { done + before.trim_end().len() } else { range.start };
            let end = if token.rstrip { text.len() - after.trim_start().len() } else { range.end };
            if done < start {
                parts.push((done..start, None));
            }
            parts.push((start..end, Some(id)));
            done = end;
        }
        if done < text.len() {
            parts.push((done..text.len(), None));
        }
        parts
    }

    /// What `tokenizer.encode` does, with special tokens recognised only where they may be.
    pub(super) fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        recognise: Recognise,
    ) -> tokenizers::Result<Encoding> {
        let parts = self.parts(text, recognise);
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole: NormalizedString| {
            let cut = |(range, id): &(Range<usize>, Option<u32>)| {
                let slice = whole.slice(Part::Normalized(range.clone()))?;
                let value = slice.get().to_owned();
                let length = value.len();
                let tokens = id.map(|id| vec![Token::new(id, value, (0, length))]);
                Some((slice, tokens))
            };
            Ok(parts.iter().filter_map(cut).collect::<Vec<_>>())
        })?;
        if let Some(normalizer) = tokenizer.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(splitter) = tokenizer.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::Byte)
    }
}
