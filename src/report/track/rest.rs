//! JSON over HTTP to one server. No address, name or password reaches a message; credentials go no further than an
//! encrypted connection or this machine.

use super::Error;
use crate::report::base64::base64;
use crate::train::screen::visible;
use serde_json::Value;
use std::time::Duration;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body, SendBody};

/// Of an answer.
const MOST_BYTES: u64 = 16 << 20;
/// Of what a server says about an error.
const MOST_SAID: usize = 300;

/// A server that is spoken to.
pub(super) struct Rest {
    agent: Agent,
    base: String,
    authorization: Option<String>,
}

impl Rest {
    /// Speaks to the server at `base`, with the credentials of the environment where they may be shown to it.
    pub(super) fn new(base: &str) -> Self {
        let host = base.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        let is_here = ["127.0.0.1", "[::1]", "localhost"].contains(&host.as_str());
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(3)))
            .timeout_global(Some(Duration::from_secs(10)))
            .user_agent(concat!("fttrain/", env!("CARGO_PKG_VERSION")));
        let config = if is_here { config.proxy(None) } else { config };
        let is_private = is_here || base.starts_with("https://");
        Self {
            agent: config.build().into(),
            base: base.to_owned(),
            authorization: credentials().filter(|_| is_private),
        }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Error> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        answer(request.call())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let request = self.agent.post(format!("{}{path}", self.base));
        self.send(request, "application/json", body.to_string().as_bytes())
    }

    pub(super) fn put(&self, path: &str, bytes: &[u8]) -> Result<Value, Error> {
        self.send(self.agent.put(format!("{}{path}", self.base)), "application/octet-stream", bytes)
    }

    fn send(
        &self,
        mut request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        kind: &str,
        mut bytes: &[u8],
    ) -> Result<Value, Error> {
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.content_type(kind).header("content-length", bytes.len().to_string());
        answer(request.send(SendBody::from_reader(&mut bytes)))
    }
}

fn answer(outcome: Result<Response<Body>, ureq::Error>) -> Result<Value, Error> {
    let mut response = outcome.map_err(|cause| Error::Unreachable(words(&cause)))?;
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
    let text = text.map_err(|cause| Error::Unreachable(words(&cause)))?;
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if (200..300).contains(&status) {
        return Ok(value);
    }
    let said = value["message"].as_str().unwrap_or("without a word");
    Err(Error::Refused { status, said: visible(said).chars().take(MOST_SAID).collect() })
}

/// As MLflow's own client reads them.
fn credentials() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
        return Some(format!("Bearer {token}"));
    }
    let (user, password) = (variable("MLFLOW_TRACKING_USERNAME")?, variable("MLFLOW_TRACKING_PASSWORD")?);
    Some(format!("Basic {}", base64(format!("{user}:{password}").as_bytes())))
}

/// A cause in words that hold no address.
fn words(cause: &ureq::Error) -> String {
    match cause {
        ureq::Error::Io(cause) => cause.to_string(),
        ureq::Error::Timeout(_) => "timed out".into(),
        ureq::Error::HostNotFound => "host not found".into(),
        ureq::Error::Protocol(_) => "it does not speak HTTP".into(),
        _ => "the connection failed".into(),
    }
}
