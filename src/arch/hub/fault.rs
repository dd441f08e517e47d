//! What can go wrong between this machine and the hub. No variant holds a token, a signed address or a proxy's
//! password: causes are the program's own words.

use crate::error::{Fault, Kind};
use std::io;
use std::path::PathBuf;

/// A fault of the hub, of the way to it, or of its cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that must not become part of an address or path.
    #[error("{what} {name:?} {rule}")]
    Name {
        /// Which name.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule: "must be …".
        rule: &'static str,
    },
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT must be an http:// or https:// address without user, query or fragment")]
    Endpoint,
    /// The token cannot stand in a header.
    #[error("the hub's token contains characters that no token has (it is not shown)")]
    Token,
    /// No folder for the cache is known.
    #[error("no folder for the hub's cache: neither HF_HOME nor HOME is set")]
    NoHome,
    /// 401 or 403.
    #[error("{repo}: the hub refuses access to {file} ({status}): {}", denied(*.gated, *.with_token))]
    Denied {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// HTTP status.
        status: u16,
        /// The hub said that the model is gated.
        gated: bool,
        /// A token was sent.
        with_token: bool,
    },
    /// 404.
    #[error("{repo}: {what} on the hub (404)")]
    NotFound {
        /// `org/name`
        repo: String,
        /// What is not there.
        what: String,
    },
    /// 429.
    #[error("{repo}: the hub refuses more requests for now (429){}", after.as_ref().map_or(String::new(), |s| format!("; it says to wait {s} s")))]
    TooMany {
        /// `org/name`
        repo: String,
        /// Seconds, where the hub says so.
        after: Option<u64>,
    },
    /// Any other status.
    #[error("{repo}: the hub answers {status} for {file}")]
    Status {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// HTTP status.
        status: u16,
    },
    /// No answer.
    #[error("{repo}: cannot reach {host}: {cause}")]
    Unreachable {
        /// `org/name`
        repo: String,
        /// Host that was asked.
        host: String,
        /// Why.
        cause: String,
    },
    /// Offline, and not cached.
    #[error("{repo}: {file} (revision {revision}) is not in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    Offline {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// Branch, tag or commit.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// An answer that no hub gives.
    #[error("{repo}: the answer for {file} is not a hub's: {rule}")]
    Answer {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// The connection ended too early, every time.
    #[error("{repo}: the download of {file} broke off at byte {got}{}", wanted.map_or(String::new(), |n| format!(" of {n}")))]
    Cut {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come, where known.
        wanted: Option<u64>,
    },
    /// The content is not what the hub promised.
    #[error("{repo}: {file} has SHA-256 {found}, the hub promised {promised}")]
    Hash {
        /// `org/name`
        repo: String,
        /// The file.
        file: String,
        /// Of what came.
        found: String,
        /// Of what should have come.
        promised: String,
    },
    /// The cache's disk.
    #[error("{}: cannot {doing}: {cause}", path.display())]
    Cache {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's words.
        cause: io::Error,
    },
}

fn denied(gated: bool, with_token: bool) -> &'static str {
    match (gated, with_token) {
        (true, true) => "the model is gated and the token's account has no access to it",
        (true, false) => "the model is gated and no token was sent",
        (false, true) => "the model is private or does not exist, or the token is not valid",
        (false, false) => "the model is private or does not exist, and no token was sent",
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } | Self::Endpoint | Self::Token | Self::NoHome => Kind::Usage,
            Self::Cache { cause, .. }
                if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Kind::Resource
            }
            _ => Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Name { what: "base_model", .. } => {
                    "give an existing folder, a .gguf file, or a model's name on the hub"
                }
                Self::Name { .. } => "correct the name",
                Self::Endpoint => "unset HF_ENDPOINT, or give for example https://host",
                Self::Token => "set HF_TOKEN to the token alone",
                Self::NoHome => "set HF_HOME",
                Self::Denied { .. } => {
                    "accept the model's terms on its page if it has any, and set HF_TOKEN to a token that may read it \
                     (sent over https and to this machine only)"
                }
                Self::NotFound { .. } => {
                    "check spelling and revision; a local folder would have to exist relative to the current folder"
                }
                Self::TooMany { .. } => "try again later, or set HF_TOKEN: known users may ask more often",
                Self::Status { .. } | Self::Answer { .. } => {
                    "try again later; with HF_ENDPOINT set, check that it is a hub"
                }
                Self::Unreachable { .. } => {
                    "check the network, or HF_ENDPOINT and HTTPS_PROXY; a model that is in the cache needs no network \
                     with HF_HUB_OFFLINE=1"
                }
                Self::Offline { .. } => {
                    "run once without HF_HUB_OFFLINE, or give a folder as `base_model`"
                }
                Self::Cut { .. } => "try again; nothing of the broken download was kept",
                Self::Hash { .. } => "try again; the file was not kept",
                Self::Cache { .. } => "free space or set HF_HOME to a disk with more",
            }
            .into(),
        )
    }
}
