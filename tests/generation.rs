//! Text from a model with keys and values kept is the text that every step from scratch gives, and transformers'.

mod support;

use candle_core::Tensor;
use fttrain::data::{Batch, Sample};
use fttrain::model::Decoder;
use fttrain::model::cache::Caches;
use fttrain::model::generate::{Settings, generate};
use std::slice::from_ref;
use support::{cases, folders, golden, json, make, rows, tokens, values};

/// Of logits by another route: sums of up to 60 terms in another order, logits of a few units.
const TOLERANCE: f32 = 1e-4;

fn greedy(max_tokens: usize) -> Settings {
    Settings::greedy(max_tokens, Vec::new(), 128)
}

/// Logits `[T, V]` of a text, without a cache.
fn from_scratch(decoder: &Decoder, ids: &[u32]) -> Tensor {
    let sample = Sample { ids: ids.to_vec(), labels: vec![fttrain::data::IGNORE; ids.len()] };
    decoder.logits(&Batch::new([&sample], 0)).unwrap()
}

fn last_row(logits: &Tensor) -> Vec<f32> {
    values(&logits.narrow(0, logits.dim(0).unwrap() - 1, 1).unwrap())
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    u32::try_from(best.0).unwrap()
}

#[test]
fn greedy_text_of_every_base_is_transformers_and_that_of_every_step_from_scratch() {
    for case in cases() {
        let what = case.display();
        let decoder = make(&folders(&case, "run.toml")[0], false, &[]).decoder;
        let about = &json(&case.join("golden.json"))["generate"];
        let (prompt, theirs) = (tokens(&about["prompt"]), tokens(&about["continuation"]));
        let mut handed_over = Vec::new();
        let ours = generate(&decoder, from_ref(&prompt), &greedy(theirs.len()), |_, id| handed_over.push(id));
        assert_eq!(ours.unwrap(), from_ref(&theirs), "{what}");
        assert_eq!(handed_over, theirs, "{what}");
        let mut text = prompt.clone();
        for _ in 0..theirs.len() {
            text.push(argmax(&last_row(&from_scratch(&decoder, &text))));
        }
        assert_eq!(text[prompt.len()..], theirs, "{what}");
    }
}

#[test]
fn a_prompt_in_pieces_gives_the_logits_of_a_prompt_at_once() {
    // With an adapter, and with a window that a piece begins inside of.
    for run in ["llama/lora", "qwen2-window/lora", "qwen3/lora", "llama3-rope/rslora"] {
        let run = golden().join(run);
        let decoder = make(&run, true, &[]).decoder;
        let text: Vec<u32> =
            rows(run.parent().unwrap()).iter().flat_map(|row| row.ids.clone()).take(60).collect();
        let expected = values(&from_scratch(&decoder, &text));
        let vocabulary = expected.len() / text.len();
        for sizes in [&[60][..], &[1; 60], &[7, 1, 40, 12], &[33, 27]] {
            let mut caches = Caches::new(decoder.blocks.len(), 1, decoder.kv_width(), 60);
            let mut done = 0;
            for &size in sizes {
                let logits = values(&decoder.extend(&[&text[done..done + size]], &mut caches).unwrap());
                done += size;
                let expected = &expected[(done - 1) * vocabulary..][..vocabulary];
                let off = logits.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off < TOLERANCE, "{}: token {done} of {sizes:?} is off by {off}", run.display());
            }
        }
    }
}

#[test]
fn a_text_ends_at_a_stop_id_at_the_last_position_or_after_enough_tokens() {
    let case = golden().join("llama");
    let decoder = make(&case.join("lora"), false, &[]).decoder;
    let about = &json(&case.join("golden.json"))["generate"];
    let (prompt, all) = (tokens(&about["prompt"]), tokens(&about["continuation"]));
    let text = |how: &Settings| generate(&decoder, from_ref(&prompt), how, |_, _| ()).unwrap().remove(0);
    let stop = all[3];
    let first = all.iter().position(|&id| id == stop).unwrap();
    assert_eq!(
        text(&Settings { stop_ids: vec![stop], ..greedy(20) }),
        all[..first],
        "the stop id is not part of it"
    );
    assert_eq!(text(&Settings { longest: prompt.len() + 4, ..greedy(20) }), all[..4]);
    assert_eq!(text(&greedy(2)), all[..2]);
    assert!(text(&greedy(0)).is_empty());
    let nothing = generate(&decoder, &[Vec::new()], &greedy(20), |_, _| ()).unwrap();
    assert_eq!(nothing, [Vec::<u32>::new()], "nothing follows from nothing");
}

#[test]
fn texts_at_once_are_the_texts_one_by_one() {
    // Prompts of several lengths that begin alike, more of them than places, with and without a window.
    for run in ["llama/lora", "qwen2-window/lora", "qwen3/lora"] {
        let run = golden().join(run);
        let decoder = make(&run, true, &[]).decoder;
        let text: Vec<u32> =
            rows(run.parent().unwrap()).iter().flat_map(|row| row.ids.clone()).take(60).collect();
        let prompts: Vec<Vec<u32>> =
            (0..7).map(|i| [&text[..20], &text[20 + i..22 + 3 * i]].concat()).collect();
        let stop = generate(&decoder, &prompts[..1], &greedy(20), |_, _| ()).unwrap()[0][5];
        let alone = Settings { stop_ids: vec![stop], ..greedy(20) };
        let expected: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| generate(&decoder, from_ref(p), &alone, |_, _| ()).unwrap().remove(0))
            .collect();
        let lengths: std::collections::BTreeSet<usize> = expected.iter().map(Vec::len).collect();
        assert!(lengths.len() > 1, "{}: texts end together: {lengths:?}", run.display());
        for at_once in [2, 3, 7] {
            let mut handed_over = vec![Vec::new(); prompts.len()];
            let how = Settings { at_once, ..alone.clone() };
            let found = generate(&decoder, &prompts, &how, |text, id| handed_over[text].push(id)).unwrap();
            assert_eq!(found, expected, "{} {at_once}", run.display());
            assert_eq!(handed_over, expected);
        }
        // A sampled text does not depend on its neighbours either.
        let hot = Settings { temperature: 0.8, seed: 3, ..greedy(12) };
        let one = generate(&decoder, &prompts[..1], &hot, |_, _| ()).unwrap();
        let all = generate(&decoder, &prompts, &Settings { at_once: 4, ..hot }, |_, _| ()).unwrap();
        assert_eq!(all[0], one[0]);
    }
}
