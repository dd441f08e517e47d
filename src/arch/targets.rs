//! Which modules an adapter touches: `lora_target_modules` and `lora_modules_to_save`, matched as PEFT matches them: the
//! first by the end of a name behind a dot, the second by any end of it.

use super::{Arch, Error, Linear, Proj};
use crate::config::Targets;
use regex::Regex;

/// The linears that get an adapter, in the order of the model.
///
/// # Errors
/// Nothing matches, or an entry of a list matches nothing: with the names that exist.
pub fn select(arch: &Arch, targets: &Targets) -> crate::error::Result<Vec<Linear>> {
    let chosen: Vec<Linear> = match targets {
        Targets::AllLinear => arch.linears().collect(),
        Targets::Names(keys) => {
            let unmatched: Vec<String> = keys
                .iter()
                .filter(|key| !arch.linears().any(|linear| is_named(&linear.name, key)))
                .cloned()
                .collect();
            if !unmatched.is_empty() {
                return Err(no_linear(unmatched).into());
            }
            arch.linears().filter(|linear| keys.iter().any(|key| is_named(&linear.name, key))).collect()
        }
        Targets::Regex(pattern) => {
            // By itself first: `a)|(b` would compile inside the anchors and escape them.
            let whole = Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$"))).map_err(
                |cause| Error::Pattern { pattern: pattern.clone(), cause: last_line(&cause.to_string()) },
            )?;
            arch.linears().filter(|linear| whole.is_match(&linear.name)).collect()
        }
    };
    if chosen.is_empty() {
        let written = match targets {
            Targets::Regex(pattern) => vec![pattern.clone()],
            _ => vec!["[]".into()],
        };
        return Err(no_linear(written).into());
    }
    Ok(chosen)
}

/// Full names of the modules that are trained whole, in the order of the model, each once: those whose names end so.
///
/// # Errors
/// An entry matches nothing: with the names that exist.
pub fn modules_to_save(arch: &Arch, keys: &[String]) -> crate::error::Result<Vec<String>> {
    let modules = modules(arch);
    let ends = |module: &str, key: &str| !key.is_empty() && module.ends_with(key);
    let unmatched: Vec<String> =
        keys.iter().filter(|key| !modules.iter().any(|module| ends(module, key))).cloned().collect();
    if !unmatched.is_empty() {
        let mut exist: Vec<String> = Vec::new();
        for module in &modules {
            let suffix = module.rsplit('.').next().unwrap_or(module).to_owned();
            if !exist.contains(&suffix) {
                exist.push(suffix);
            }
        }
        return Err(Error::NoModule { key: "lora_modules_to_save", names: unmatched, exist }.into());
    }
    Ok(modules.into_iter().filter(|module| keys.iter().any(|key| ends(module, key))).collect())
}

/// The value of the first pattern that a module matches: PEFT's rule for `rank_pattern` and `alpha_pattern`, a regular
/// expression for the whole name or its end behind a dot.
pub fn matching<'a, T>(patterns: &'a [(String, T)], module: &str) -> Option<&'a T> {
    let matches = |pattern: &str| {
        Regex::new(&format!(r"^(?:(?:.*\.)?(?:{pattern}))$")).is_ok_and(|regex| regex.is_match(module))
    };
    patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, value)| value)
}

/// PEFT's rule: the whole name, or its end behind a dot.
fn is_named(name: &str, key: &str) -> bool {
    name == key || name.strip_suffix(key).is_some_and(|rest| !key.is_empty() && rest.ends_with('.'))
}

fn no_linear(names: Vec<String>) -> Error {
    let exist = Proj::ALL.map(|proj| {
        let name = proj.name();
        name.rsplit('.').next().unwrap_or(name).to_owned()
    });
    Error::NoModule { key: "lora_target_modules", names, exist: exist.to_vec() }
}

/// Every module with a parameter of its own; the head is one even where it is tied.
fn modules(arch: &Arch) -> Vec<String> {
    let mut modules: Vec<String> = Vec::new();
    for parameter in arch.parameters() {
        if let Some((module, _)) = parameter.name.rsplit_once('.')
            && modules.last().is_none_or(|last| last != module)
        {
            modules.push(module.to_owned());
        }
    }
    if arch.tie_word_embeddings {
        modules.push("lm_head".into());
    }
    modules
}

/// The regex crate draws its errors over several lines; the last says what is wrong.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or(text).trim();
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::config_json;

    fn arch(tied: bool) -> Arch {
        let json = format!(
            r#"{{"model_type": "qwen3", "vocab_size": 32, "hidden_size": 16,
            "intermediate_size": 40, "num_hidden_layers": 11, "num_attention_heads": 4,
            "head_dim": 8, "tie_word_embeddings": {tied}}}"#
        );
        config_json::parse(json.as_bytes(), "config.json").unwrap()
    }

    fn names(targets: &Targets) -> Vec<String> {
        let chosen = select(&arch(true), targets).unwrap();
        chosen.into_iter().map(|linear| linear.name).collect()
    }

    fn list(keys: &[&str]) -> Targets {
        Targets::Names(keys.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_linear_is_every_linear_of_every_block_and_not_the_head() {
        let all = names(&Targets::AllLinear);
        assert_eq!(all.len(), 11 * 7);
        assert!(!all.contains(&"lm_head".to_owned()));
    }

    #[test]
    fn a_list_matches_whole_names_and_suffixes_behind_a_dot_only() {
        assert_eq!(names(&list(&["q_proj", "down_proj"])).len(), 22);
        assert_eq!(names(&list(&["self_attn.v_proj"])).len(), 11);
        // `1.mlp.up_proj` is layer 1's alone, not layer 11's or 10's.
        assert_eq!(names(&list(&["1.mlp.up_proj"])), ["model.layers.1.mlp.up_proj"]);
        assert_eq!(names(&list(&["model.layers.10.mlp.up_proj"])).len(), 1);
    }

    #[test]
    fn a_pattern_must_match_the_whole_name() {
        let pattern = |p: &str| Targets::Regex(p.into());
        assert_eq!(names(&pattern(r".*\.(q|v)_proj")).len(), 22);
        assert_eq!(names(&pattern(r"model\.layers\.[0-4]\.mlp\..*")).len(), 15);
        assert!(select(&arch(true), &pattern("q_proj")).is_err());
        // An alternative at the top level stays inside the anchors.
        assert!(select(&arch(true), &pattern("q_proj|model")).is_err());
    }

    #[test]
    fn the_first_pattern_that_fits_the_end_of_a_name_holds() {
        let patterns: Vec<(String, u8)> =
            [("layers.0.*q_proj", 1), ("q_proj", 2), (r"mlp\..*", 3)].map(|(p, n)| (p.into(), n)).to_vec();
        let of = |module| matching(&patterns, module).copied();
        assert_eq!(of("model.layers.0.self_attn.q_proj"), Some(1));
        assert_eq!(of("model.layers.10.self_attn.q_proj"), Some(2));
        assert_eq!(of("model.layers.0.mlp.up_proj"), Some(3));
        assert_eq!(of("model.layers.0.self_attn.k_proj"), None);
        assert_eq!(of("model.layers.1.self_attn.q_proj_old"), None);
    }

    #[test]
    fn what_matches_nothing_is_named_with_the_names_that_exist() {
        for (targets, part) in [
            (list(&["q_proj", "query_key_value"]), "`query_key_value` matches no module"),
            (list(&["a", "b"]), "`a`, `b` match no module"),
            (list(&["proj"]), "`proj` matches"),
            (list(&[""]), "`` matches"),
            (list(&["lm_head"]), "`lm_head` matches"),
            (list(&[]), "`[]` matches"),
            (Targets::Regex("(".into()), "is not a regular expression"),
            (Targets::Regex("(?!x)".into()), "look-around"),
            (Targets::Regex("x)|(.*".into()), "is not a regular expression"),
            (Targets::Regex("a{1000}{1000}{1000}".into()), "is not a regular expression"),
        ] {
            let error = select(&arch(true), &targets).unwrap_err();
            assert_eq!(error.kind as i32, 2);
            assert!(error.to_string().contains(part), "{error}");
            if !matches!(targets, Targets::Regex(_)) {
                assert!(error.to_string().contains("q_proj, k_proj"), "{error}");
            }
        }
    }

    #[test]
    fn modules_to_save_finds_heads_embeddings_and_norms() {
        let find = |tied, keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            modules_to_save(&arch(tied), &keys)
        };
        assert_eq!(find(true, &["lm_head", "embed_tokens"]).unwrap(), ["model.embed_tokens", "lm_head"]);
        assert_eq!(find(false, &["lm_head"]).unwrap(), ["lm_head"]);
        assert_eq!(find(false, &["q_norm"]).unwrap().len(), 11);
        assert_eq!(find(false, &["model.norm"]).unwrap(), ["model.norm"]);
        // Four of each block, and the last.
        assert_eq!(find(false, &["norm"]).unwrap().len(), 4 * 11 + 1);
        let error = find(true, &["wte"]).unwrap_err().to_string();
        assert!(error.contains("`lora_modules_to_save`: `wte` matches no module"));
        assert!(error.contains("embed_tokens, input_layernorm, q_proj"), "{error}");
    }
}
