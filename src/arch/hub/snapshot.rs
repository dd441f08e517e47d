//! One model at one commit in the cache: `models--org--name/{refs,blobs,snapshots}` as `huggingface_hub` lays it out.
//! The commit is settled by the first file, and every other file comes from it: two commits are never mixed.

use super::request::Request;
use super::{Error, Hub, download};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A model on the hub, at one commit once its first file is known.
#[derive(Debug, Clone)]
pub struct Snapshot {
    hub: Hub,
    repo: String,
    revision: String,
    commit: OnceLock<String>,
}

impl Snapshot {
    /// Names a model and a branch, tag or commit; asks for nothing yet.
    ///
    /// # Errors
    /// A name breaks a rule (exit code 2).
    pub fn new(hub: Hub, repo: &str, revision: Option<&str>) -> Result<Self, Error> {
        let revision = revision.unwrap_or("main");
        super::check_repo(repo)?;
        super::check_revision(revision)?;
        let snapshot = Self { hub, repo: repo.into(), revision: revision.into(), commit: OnceLock::new() };
        let known = if is_commit(revision) {
            Some(revision.to_owned())
        } else {
            std::fs::read_to_string(snapshot.ref_path())
                .ok()
                .map(|commit| commit.trim().to_owned())
                .filter(|commit| is_commit(commit))
        };
        if let Some(commit) = known {
            // The cell is empty: it was made above.
            let _ = snapshot.commit.set(commit);
        }
        Ok(snapshot)
    }

    /// `org/name`
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A file that must be there.
    ///
    /// # Errors
    /// Refused, not there, unreachable, or broken on the way.
    pub fn file(&self, name: &str) -> Result<PathBuf, Error> {
        self.optional_file(name)?.ok_or_else(|| {
            if self.hub.offline {
                Error::Offline {
                    repo: self.repo.clone(),
                    file: name.into(),
                    revision: self.revision.clone(),
                    cache: self.hub.cache.clone(),
                }
            } else {
                Error::NotFound { repo: self.repo.clone(), what: format!("no file `{name}`") }
            }
        })
    }

    /// A file that need not be there; `None` where the hub says that it is not, or, offline, where it is not cached.
    ///
    /// # Errors
    /// Refused, unreachable, or broken on the way.
    pub fn optional_file(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        super::check_file(name)?;
        if let Some(commit) = self.commit.get() {
            let path = self.pointer(commit, name);
            if path.is_file() {
                return Ok(Some(path));
            }
            if self.absence(commit, name).is_file() {
                return Ok(None);
            }
        }
        if self.hub.offline {
            return Ok(None);
        }
        self.fetch(name)
    }

    fn fetch(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let request = Request {
            hub: &self.hub,
            repo: &self.repo,
            revision: self.commit.get().map_or(&self.revision, |commit| commit),
            file: name,
        };
        let (description, response) = request.send(0)?;
        if response.status().as_u16() == 404 {
            if let Some(commit) = self.commit.get() {
                write_whole(&self.absence(commit, name), b"")?;
            }
            return Ok(None);
        }
        let commit = description
            .commit
            .as_deref()
            .filter(|commit| is_commit(commit))
            .ok_or_else(|| request.bad("no valid x-repo-commit header"))?;
        if self.commit.get().is_some_and(|known| known != commit) {
            return Err(request.bad("a file of another commit"));
        }
        let etag = description
            .etag
            .as_deref()
            .filter(|etag| is_etag(etag))
            .ok_or_else(|| request.bad("no valid etag header"))?;
        let blob = self.folder().join("blobs").join(etag);
        if !blob.is_file() {
            download::download(&request, &description, response, &blob)?;
        }
        let pointer = self.pointer(commit, name);
        point(&blob, etag, &pointer)?;
        if self.commit.get().is_none() {
            write_whole(&self.ref_path(), commit.as_bytes())?;
            let _ = self.commit.set(commit.to_owned());
        }
        Ok(Some(pointer))
    }

    fn folder(&self) -> PathBuf {
        let repo = hf_hub::Repo::new(self.repo.clone(), hf_hub::RepoType::Model);
        self.hub.cache.join(repo.folder_name())
    }

    fn ref_path(&self) -> PathBuf {
        self.folder().join("refs").join(&self.revision)
    }

    fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit).join(name)
    }

    /// `huggingface_hub`'s note that a commit does not have a file.
    fn absence(&self, commit: &str, name: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(name)
    }
}

/// Git's name of a commit.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A content address that is safe as a file name.
fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Makes a snapshot's file stand for a blob.
fn point(blob: &Path, etag: &str, pointer: &Path) -> Result<(), Error> {
    make_parent(pointer)?;
    #[cfg(unix)]
    let made = {
        let _ = blob;
        std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), pointer)
    };
    #[cfg(not(unix))]
    let made = {
        let _ = etag;
        std::fs::hard_link(blob, pointer)
    };
    match made {
        // Another process was faster, or a link without its blob was left: now it has one.
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && pointer.is_file() => Ok(()),
        other => other.map_err(|cause| Error::Cache { path: pointer.into(), doing: "link", cause }),
    }
}

pub(super) fn make_parent(path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(parent).map_err(|cause| Error::Cache {
        path: parent.into(),
        doing: "create",
        cause,
    })
}

/// Writes a small file so that it is seen whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    make_parent(path)?;
    let part = download::Part::beside(path);
    std::fs::write(&part.path, bytes)
        .and_then(|()| std::fs::rename(&part.path, path))
        .map_err(|cause| Error::Cache { path: path.into(), doing: "write", cause })
}
