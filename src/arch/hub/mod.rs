//! Models from the hub, in the cache that Python's `huggingface_hub` shares: what is there is used, what is missing is
//! fetched whole or not at all. The token goes to the hub's own host only and appears in no message.

mod download;
mod fault;
mod name;
mod request;
mod snapshot;

pub use fault::Error;
pub use name::{check_file, check_repo, check_revision};
pub use snapshot::Snapshot;

use std::fmt;
use std::path::PathBuf;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A token that no `{:?}` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the hub is, where its cache lies, and whether it may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<Secret>,
    offline: bool,
}

impl Hub {
    /// A hub by its parts; `cache` is the folder of the `models--…` folders.
    ///
    /// # Errors
    /// The endpoint is no `http(s)://` address, or the token could not stand in a header.
    pub fn new(
        endpoint: &str,
        cache: PathBuf,
        token: Option<String>,
        offline: bool,
    ) -> crate::error::Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if request::Origin::of(&endpoint).is_none() || endpoint.contains(['?', '#', '@']) {
            return Err(Error::Endpoint.into());
        }
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if let Some(token) = &token
            && !token.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Error::Token.into());
        }
        Ok(Self { endpoint, cache, token: token.map(Secret), offline })
    }

    /// The hub that the environment names, by the variables that `huggingface_hub` reads. The only place that reads
    /// them.
    pub fn from_env() -> crate::error::Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_lookup(var: impl Fn(&str) -> Option<String>) -> crate::error::Result<Self> {
        let is_on = |name: &str| {
            var(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let home = var("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| var("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface")))
            .or_else(|| {
                let home = var("HOME").or_else(|| var("USERPROFILE"))?;
                Some(PathBuf::from(home).join(".cache").join("huggingface"))
            })
            .ok_or(Error::NoHome)?;
        let cache = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), PathBuf::from);
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            std::fs::read_to_string(file).ok()
        });
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let offline = is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE");
        Self::new(&endpoint, cache, token, offline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(vars: &[(&str, &str)]) -> crate::error::Result<Hub> {
        Hub::from_lookup(|name| {
            let found = vars.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_as_the_hubs_own_client_reads_it() {
        let plain = hub(&[("HOME", "/home/a")]).unwrap();
        assert_eq!(plain.cache, PathBuf::from("/home/a/.cache/huggingface/hub"));
        assert_eq!(plain.endpoint, DEFAULT_ENDPOINT);
        assert!(!plain.offline && plain.token.is_none());
        let set = hub(&[
            ("HOME", "/home/a"),
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_OFFLINE", "True"),
        ])
        .unwrap();
        assert_eq!(set.cache, PathBuf::from("/hf/hub"));
        assert_eq!(set.endpoint, "http://127.0.0.1:9");
        assert_eq!(set.token, Some(Secret("hf_secret".into())));
        assert!(set.offline);
        let moved = hub(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/big")]).unwrap();
        assert_eq!(moved.cache, PathBuf::from("/big"));
        assert!(hub(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", "0")]).is_ok_and(|hub| !hub.offline));
    }

    #[test]
    fn the_token_file_is_the_last_place_where_a_token_is_looked_for() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let path = home.path().to_str().unwrap();
        let found = hub(&[("HF_HOME", path)]).unwrap();
        assert_eq!(found.token, Some(Secret("hf_file".into())));
        let found = hub(&[("HF_HOME", path), ("HF_TOKEN", "hf_env")]).unwrap();
        assert_eq!(found.token, Some(Secret("hf_env".into())));
    }

    #[test]
    fn no_debug_output_and_no_error_shows_the_token() {
        let good = hub(&[("HF_HOME", "/hf"), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{good:?}").contains("hf_secret"));
        let bad = hub(&[("HF_HOME", "/hf"), ("HF_TOKEN", "hf_sec\nret")]).unwrap_err();
        assert!(!format!("{bad} {bad:?}").contains("hf_sec"));
        assert_eq!(bad.kind as i32, 2);
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused() {
        for endpoint in ["hub", "ftp://hub", "http://", "https://user:pass@hub", "http://a b"] {
            let error = hub(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", endpoint)]).unwrap_err();
            assert_eq!(error.kind as i32, 2, "{endpoint}");
            assert!(!error.to_string().contains("pass"));
        }
    }
}
