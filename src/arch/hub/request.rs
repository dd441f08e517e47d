//! One file's request with its redirects, followed by hand: the token is sent to the hub's own origin only, and what
//! the hub says about the file is believed only from there.

use super::{Error, Hub};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

const MAX_REDIRECTS: usize = 8;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an address; `None` where it is not http(s) or has no host.
    pub(super) fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        Some(Self {
            https,
            host: host.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }

    fn is_loopback(&self) -> bool {
        ["127.0.0.1", "[::1]", "localhost"].contains(&self.host.as_str())
    }

    /// In the clear a token goes no further than this machine.
    fn may_see_token(&self) -> bool {
        self.https || self.is_loopback()
    }
}

/// What the hub's own origin says about a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Description {
    /// Content address: SHA-256 of large files, git's blob id of others.
    pub etag: Option<String>,
    /// Commit that the revision stands for.
    pub commit: Option<String>,
    /// Bytes of a large file.
    pub size: Option<u64>,
}

impl Description {
    /// The first word on each point counts: it comes before any redirect.
    fn learn(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.etag.is_none() {
            let redirected = headers.contains_key(header::LOCATION);
            self.etag = text("x-linked-etag")
                .or_else(|| text("etag").filter(|_| !redirected))
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        }
        if self.commit.is_none() {
            self.commit = text("x-repo-commit").map(str::to_owned);
        }
        if self.size.is_none() {
            self.size = text("x-linked-size").and_then(|size| size.parse().ok());
        }
    }
}

/// A file about to be asked for.
pub(super) struct Request<'a> {
    pub hub: &'a Hub,
    /// `org/name`
    pub repo: &'a str,
    /// Branch, tag or commit.
    pub revision: &'a str,
    pub file: &'a str,
}

impl Request<'_> {
    fn address(&self) -> String {
        let revision = self.revision.replace('/', "%2F");
        format!("{}/{}/resolve/{revision}/{}", self.hub.endpoint, self.repo, self.file)
    }

    /// Asks for the bytes from `begin` on, and returns the answer at the end of all redirects. 404 is an answer.
    pub(super) fn send(&self, begin: u64) -> Result<(Description, Response<Body>), Error> {
        let mut address = self.address();
        let home = Origin::of(&self.hub.endpoint).ok_or(Error::Endpoint)?;
        let agent = agent(&home);
        let mut description = Description::default();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&address).ok_or_else(|| self.bad("a redirect to no address"))?;
            if home.https && !origin.https {
                return Err(self.bad("a redirect from https to http"));
            }
            let at_home = origin == home;
            let mut request = agent.get(&address).header("accept-encoding", "identity");
            if begin > 0 {
                request = request.header("range", format!("bytes={begin}-"));
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| at_home && origin.may_see_token()) {
                request = request.header("authorization", format!("Bearer {}", token.0));
            }
            let response = request.call().map_err(|cause| Error::Unreachable {
                repo: self.repo.into(),
                host: origin.host.clone(),
                cause: words(&cause),
            })?;
            if at_home {
                description.learn(response.headers());
            }
            match response.headers().get(header::LOCATION) {
                Some(to) if response.status().is_redirection() => {
                    let to = to.to_str().map_err(|_| self.bad("a redirect to no address"))?;
                    address = join(&address, to);
                }
                _ => return self.judge(description, response),
            }
        }
        Err(self.bad("too many redirects"))
    }

    fn judge(
        &self,
        description: Description,
        response: Response<Body>,
    ) -> Result<(Description, Response<Body>), Error> {
        let repo = self.repo.to_owned();
        let file = self.file.to_owned();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let code = header("x-error-code");
        match response.status() {
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(Error::Denied {
                repo,
                file,
                status: status.as_u16(),
                gated: code == "GatedRepo",
                with_token: self.hub.token.is_some(),
            }),
            StatusCode::NOT_FOUND if ["RepoNotFound", "RevisionNotFound"].contains(&code) => {
                let what = match code {
                    "RepoNotFound" => "no such model".into(),
                    _ => format!("no revision `{}`", self.revision),
                };
                Err(Error::NotFound { repo, what })
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_FOUND => {
                Ok((description, response))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Err(Error::TooMany { repo, after: header("retry-after").parse().ok() })
            }
            status => Err(Error::Status { repo, file, status: status.as_u16() }),
        }
    }

    pub(super) fn bad(&self, rule: &'static str) -> Error {
        Error::Answer { repo: self.repo.into(), file: self.file.into(), rule }
    }
}

/// A redirect's target, which may lack the origin.
fn join(from: &str, to: &str) -> String {
    let path = from.find("://").map_or(0, |at| at + 3);
    let end = from[path..].find('/').map_or(from.len(), |at| path + at);
    if let Some(rest) = to.strip_prefix("//") {
        format!("{}{rest}", &from[..path])
    } else if to.starts_with('/') {
        format!("{}{to}", &from[..end])
    } else {
        to.to_owned()
    }
}

fn agent(home: &Origin) -> Agent {
    let config = Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("fttrain/", env!("CARGO_PKG_VERSION")));
    // A proxy is for the way out of this machine.
    let config = if home.is_loopback() { config.proxy(None) } else { config };
    config.build().into()
}

/// A cause in words that hold no address, header or password.
fn words(cause: &ureq::Error) -> String {
    match cause {
        ureq::Error::Io(cause) => cause.to_string(),
        ureq::Error::Timeout(_) => "timed out".into(),
        ureq::Error::HostNotFound => "host not found".into(),
        ureq::Error::Tls(cause) => (*cause).to_owned(),
        ureq::Error::Rustls(cause) => cause.to_string(),
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => {
            "the proxy refuses or is not valid".into()
        }
        ureq::Error::Protocol(_) => "it does not speak HTTP".into(),
        _ => "the connection failed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_to_where_they_come_from() {
        let from = "https://hub:8/a/b?c";
        assert_eq!(join(from, "/d/e"), "https://hub:8/d/e");
        assert_eq!(join(from, "//cdn/e"), "https://cdn/e");
        assert_eq!(join(from, "https://cdn/e"), "https://cdn/e");
        assert_eq!(join("https://hub", "/x"), "https://hub/x");
        assert!(Origin::of(&join(from, "e")).is_none());
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let of = |address| Origin::of(address).unwrap();
        assert_eq!(of("https://Hub/x"), of("https://hub:443/y"));
        assert_ne!(of("https://hub/x"), of("http://hub/x"));
        assert_ne!(of("https://hub/x"), of("https://hub:8/x"));
        assert_ne!(of("https://hub/x"), of("https://hub.evil/x"));
        assert_ne!(of("https://hub/x"), of("https://hub@evil/x"));
        assert!(of("http://127.0.0.1:9").may_see_token());
        assert!(!of("http://hub").may_see_token());
    }
}
