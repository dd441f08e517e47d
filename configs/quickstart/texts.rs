//! What is written with the grammar: the corpus for pretraining (stories, facts, cards, chats) and the rows of the
//! fine-tune (reports to a lost-property office, each with its record).

use crate::grammar::{Dice, Grammar, Text};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Roots of a story; one that stands twice is told twice as often.
const PLOTS: [&str; 21] = [
    "lost",
    "lost",
    "lost",
    "gifts",
    "quarrel",
    "animals",
    "animals",
    "wish",
    "secret",
    "plan",
    "storm",
    "work",
    "garden",
    "journey",
    "race",
    "riddle",
    "counting",
    "visit",
    "present",
    "report_found",
    "report_missing",
];

/// Plots that can follow another one with the same people: they need no thing that may be lost by now.
const SEQUELS: [&str; 5] = ["animals", "plan", "garden", "race", "counting"];

/// A passage and the tables that ask about it; a table that stands twice asks twice as often.
type Quiz = (&'static str, &'static [&'static str]);

const QUIZZES: [Quiz; 5] = [
    ("<visit>", &["quiz_visit"]),
    ("<present>", &["quiz_present"]),
    ("<report_found>", &["quiz_report", "quiz_report", "quiz_found"]),
    ("<report_found>", &["quiz_report", "quiz_report", "quiz_found"]),
    ("<report_missing>", &["quiz_report", "quiz_report", "quiz_missing"]),
];

/// Numbers in words, from zero.
const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// A card's name and its lines: key, what stands behind it.
type Card = &'static [(&'static str, &'static str)];

/// Records of other kinds than the fine-tune asks for: the base has met JSON, but nobody has told it when to write it.
const CARDS: [Card; 9] = [
    &[("animal", "{animal}"), ("home", "{animal.home}"), ("food", "{animal.food}")],
    &[("animal", "{animal}"), ("young", "{animal.baby}"), ("found", "{place}")],
    &[("job", "{job}"), ("where", "{job.place}"), ("tool", "{job.tool}")],
    &[("name", "{who}"), ("job", "{job}"), ("born", "{day} {time}")],
    &[("thing", "{thing}"), ("colour", "{colour}"), ("owner", "{who}")],
    &[("made_by", "{who}"), ("thing", "{shade} {gift}"), ("given_to", "{friend}")],
    &[("when", "{day} {time}"), ("weather", "{weather}"), ("place", "{elsewhere}")],
    &[("tree", "{tree}"), ("bears", "{tree.bears}"), ("planted_by", "{friend}")],
    &[("name", "{friend}"), ("who", "{trait}"), ("likes", "{food}"), ("lost", "null")],
];

/// What the base model learns from: rows of `type = "completion"` and of `type = "chat_template"`.
pub(crate) struct Corpus {
    pub(crate) texts: Vec<Value>,
    pub(crate) chats: Vec<Value>,
}

impl Corpus {
    /// Every string that a model will read, for the tokenizer.
    pub(crate) fn strings(&self) -> impl Iterator<Item = &str> + Send {
        let texts = self.texts.iter().map(|row| &row["text"]);
        let turns = self.chats.iter().filter_map(|row| row["messages"].as_array());
        let contents = turns.flatten().map(|turn| &turn["content"]);
        texts.chain(contents).filter_map(Value::as_str)
    }
}

/// The corpus, the same at every call.
pub(crate) fn corpus(grammar: &Grammar) -> Result<Corpus, String> {
    let mut writer = Writer::new(grammar, 1);
    Ok(Corpus { texts: distinct(30_000, || writer.text())?, chats: distinct(30_000, || writer.chat())? })
}

/// The fine-tune's rows, the same at every call.
pub(crate) fn reports(grammar: &Grammar) -> Result<Vec<Value>, String> {
    let mut writer = Writer::new(grammar, 2);
    distinct(700, || writer.report())
}

/// So many rows, no two the same: none may be held out and trained on.
fn distinct(count: usize, mut row: impl FnMut() -> Result<Value, String>) -> Result<Vec<Value>, String> {
    let (mut rows, mut seen) = (Vec::with_capacity(count), HashSet::new());
    while rows.len() < count {
        let row = row()?;
        if seen.insert(row.to_string()) {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// JSON Lines.
pub(crate) fn lines(rows: &[Value]) -> String {
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&row.to_string());
        lines.push('\n');
    }
    lines
}

/// Draws one row after the other.
struct Writer<'g> {
    grammar: &'g Grammar,
    dice: Dice,
}

impl<'g> Writer<'g> {
    fn new(grammar: &'g Grammar, seed: u64) -> Self {
        Self { grammar, dice: Dice::new(seed) }
    }

    /// A row of `type = "completion"`: a story, some facts or a few cards.
    fn text(&mut self) -> Result<Value, String> {
        let text = match self.dice.below(20) {
            0..14 => self.story()?,
            14..17 => self.facts()?,
            _ => self.cards()?,
        };
        Ok(json!({ "text": text }))
    }

    /// A row of `type = "chat_template"`: the reader asks or begins, the storyteller answers or goes on.
    fn chat(&mut self) -> Result<Value, String> {
        let mut turns = Vec::new();
        if self.dice.below(10) == 0 {
            turns.push(turn("system", "You are a friendly storyteller."));
        }
        match self.dice.below(12) {
            0..5 => {
                let (opening, rest) = self.story_in_two()?;
                turns.extend([turn("user", &opening), turn("assistant", &rest)]);
            }
            5..10 => self.quiz(&mut turns)?,
            10 => {
                let mut text = self.fresh();
                let request = text.write("<request>", &mut self.dice)?;
                let plot = format!("<{}>", self.dice.pick(&PLOTS));
                let story = text.write(&plot, &mut self.dice)?;
                turns.extend([turn("user", &request), turn("assistant", &story)]);
            }
            _ => {
                for _ in 0..=self.dice.below(4) {
                    let mut text = self.fresh();
                    let question = text.write("{ask.question}", &mut self.dice)?;
                    let answer = text.write("{ask.answer}", &mut self.dice)?;
                    turns.extend([turn("user", &question), turn("assistant", &answer)]);
                }
            }
        }
        Ok(json!({ "messages": turns }))
    }

    /// A passage with the first of some questions about it, then the others.
    fn quiz(&mut self, turns: &mut Vec<Value>) -> Result<(), String> {
        let (passage, tables) = *self.dice.pick(&QUIZZES);
        let mut text = self.fresh();
        let mut opening = text.write(passage, &mut self.dice)? + "\n";
        for _ in 0..=self.dice.below(4) {
            // Each question is drawn anew, so that none of them is kept as the text's only one.
            let table = *self.dice.pick(tables);
            let quiz = self.grammar.entry(table, &mut self.dice)?;
            let question = text.write(&quiz[0], &mut self.dice)?;
            let answer = text.expand(&quiz[1], &mut self.dice)?;
            turns.push(turn("user", &format!("{opening}{question}")));
            turns.push(turn("assistant", &answer));
            opening.clear();
        }
        Ok(())
    }

    /// A row of the fine-tune: a report in the reader's words, the record in the clerk's.
    fn report(&mut self) -> Result<Value, String> {
        let mut text = self.fresh();
        let found = self.dice.below(3) > 0;
        let rule = if found { "<report_found>" } else { "<report_missing>" };
        let report = text.write(rule, &mut self.dice)?;
        let mut field = |pattern: &str| text.expand(pattern, &mut self.dice);
        let record = json!({ "lost": field("{thing}")?, "where": field("{place}")?, "found": found });
        Ok(json!({ "messages": [turn("user", &report), turn("assistant", &spaced(&record))] }))
    }

    fn story(&mut self) -> Result<String, String> {
        let mut pattern = format!("<{}>", self.dice.pick(&PLOTS));
        if self.dice.below(4) == 0 {
            pattern = format!("<before> {pattern}");
        }
        if self.dice.below(6) == 0 {
            pattern = format!("{pattern} <later> <{}>", self.dice.pick(&SEQUELS));
        }
        self.fresh().write(&pattern, &mut self.dice)
    }

    /// A story cut behind one of its first sentences.
    fn story_in_two(&mut self) -> Result<(String, String), String> {
        loop {
            let story = self.story()?;
            let ends: Vec<usize> = story.match_indices(". ").map(|(at, _)| at + 1).collect();
            if ends.len() < 3 {
                continue;
            }
            let (opening, rest) = story.split_at(*self.dice.pick(&ends[..ends.len() - 1]));
            return Ok((opening.to_owned(), rest.trim_start().to_owned()));
        }
    }

    fn facts(&mut self) -> Result<String, String> {
        let mut facts = Vec::new();
        for _ in 0..=self.dice.below(4) {
            facts.push(self.fresh().write("<facts>", &mut self.dice)?);
        }
        Ok(facts.join(" "))
    }

    fn cards(&mut self) -> Result<String, String> {
        let mut lines = Vec::new();
        for _ in 0..=self.dice.below(4) {
            let mut text = self.fresh();
            let mut card = serde_json::Map::new();
            for (key, pattern) in *self.dice.pick(&CARDS) {
                let value = text.expand(pattern, &mut self.dice)?;
                let value = if value == "null" { Value::Null } else { Value::from(value) };
                card.insert((*key).to_owned(), value);
            }
            lines.push(spaced(&Value::Object(card)));
        }
        Ok(lines.join("\n"))
    }

    /// A text with nothing drawn but its numbers, which must add up.
    fn fresh(&mut self) -> Text<'g> {
        let mut text = Text::new(self.grammar);
        let (few, more) = (2 + self.dice.below(6), 2 + self.dice.below(9));
        text.set("few", NUMBERS[few]);
        text.set("more", NUMBERS[more]);
        text.set("sum", NUMBERS[few + more]);
        text.set("many", NUMBERS[few + 5]);
        text
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// A flat object on one line, with a space behind each colon and comma, as Python's `json.dumps` writes it.
fn spaced(object: &Value) -> String {
    let fields = object.as_object().into_iter().flatten();
    let fields: Vec<String> = fields.map(|(key, value)| format!("{key:?}: {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}
