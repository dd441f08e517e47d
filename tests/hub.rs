//! The hub's client against a loopback server that speaks the hub's routes: what is fetched, what is sent, what the
//! cache looks like afterwards, and that the token reaches the hub alone.

use fttrain::arch::hub::Hub;
use fttrain::arch::source::{Source, TokenizerSource};
use fttrain::config::Base;
use fttrain::error::{Error, Kind};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_never_shown";
const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 6, "hidden_size": 4, "intermediate_size": 3,
    "num_hidden_layers": 1, "num_attention_heads": 2}"#;

/// One answer, and how many bytes of its body are really sent.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    /// Whether a `Range` is honoured.
    ranges: bool,
}

impl Answer {
    fn file(body: &[u8]) -> Self {
        Self {
            status: 200,
            headers: vec![
                ("x-repo-commit".into(), COMMIT.into()),
                ("etag".into(), format!("\"{}\"", &sha256(body)[..40])),
            ],
            body: body.to_vec(),
            sent: body.len(),
            ranges: true,
        }
    }

    fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), ..Self::file(b"") }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|header| header.0 != name);
        self.headers.push((name.into(), value.into()));
        self
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |text, b| format!("{text}{b:02x}"))
}

/// A request line and its headers.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: String,
}

struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&stream.unwrap(), &answer, &log);
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, answer: &impl Fn(&str) -> Answer, log: &Mutex<Vec<Asked>>) {
    let mut request = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = request.next() else { return };
    let headers: Vec<String> = request.take_while(|line| !line.is_empty()).collect();
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = headers.join("\n").to_lowercase();
    log.lock().unwrap().push(Asked { path: path.clone(), headers: headers.clone() });
    let answer = answer(&path);
    let begin = headers
        .split_once("range: bytes=")
        .filter(|_| answer.ranges)
        .map_or(0, |(_, rest)| rest.split('-').next().unwrap().parse().unwrap());
    let status = if begin > 0 { 206 } else { answer.status };
    let mut lines = vec![format!("HTTP/1.1 {status} x"), "connection: close".into()];
    for (name, value) in &answer.headers {
        lines.push(format!("{name}: {value}"));
    }
    if begin > 0 {
        let len = answer.body.len();
        lines.push(format!("content-range: bytes {begin}-{}/{len}", len - 1));
    }
    lines.push(format!("content-length: {}", answer.body.len() - begin));
    let end = (begin + answer.sent).min(answer.body.len());
    let mut stream = stream;
    let _ = stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes());
    let _ = stream.write_all(&answer.body[begin..end]);
}

/// A model without weights: config and tokenizer alone.
fn model(path: &str) -> Answer {
    match path.rsplit('/').next().unwrap() {
        "config.json" => Answer::file(CONFIG.as_bytes()),
        "tokenizer.json" => Answer::file(b"{}"),
        _ => Answer::status(404).with("x-error-code", "EntryNotFound"),
    }
}

fn hub(server: &str, home: &Path, token: Option<&str>, offline: bool) -> Hub {
    Hub::new(server, home.to_path_buf(), token.map(str::to_owned), offline).unwrap()
}

fn locate(hub: Hub, revision: Option<&str>) -> Result<Source, Error> {
    let base = Base {
        model: "org/name".into(),
        revision: revision.map(str::to_owned),
        reinit_weights: false,
        bf16: None,
    };
    Source::locate_with(&base, || Ok(hub))
}

/// Every file under a folder, relative, links not followed.
fn files(folder: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, root: &Path, all: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), root, all);
            } else {
                all.push(entry.path().strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    let mut all = Vec::new();
    walk(folder, folder, &mut all);
    all.sort();
    all
}

fn refusal(answer: impl Fn(&str) -> Answer + Send + 'static) -> (Error, Vec<PathBuf>) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(answer);
    let error = locate(hub(&server.address, home.path(), Some(TOKEN), false), None).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
    assert!(error.problems[0].hint.is_some(), "{error}");
    (error, files(home.path()))
}

#[test]
fn a_model_is_fetched_once_and_then_read_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model);
    let online = hub(&server.address, home.path(), None, false);
    let source = locate(online.clone(), None).unwrap();
    assert_eq!(source.name(), "org/name");
    assert_eq!(source.arch().unwrap().hidden_size, 4);
    assert_eq!(server.asked().len(), 1, "config.json alone");
    assert_eq!(server.asked()[0].path, "/org/name/resolve/main/config.json");
    let TokenizerSource::Files { chat_template, .. } = source.tokenizer().unwrap() else {
        panic!("not files")
    };
    assert_eq!(chat_template, None);
    let asked = server.asked().len();
    // All files after the first come from the commit that the first belonged to.
    assert!(server.asked()[1..].iter().all(|asked| asked.path.contains(COMMIT)));

    let again = locate(online, None).unwrap();
    again.tokenizer().unwrap();
    assert_eq!(server.asked().len(), asked, "nothing is asked twice, not even for what is absent");
    let offline = locate(hub(&server.address, home.path(), None, true), None).unwrap();
    offline.tokenizer().unwrap();
    assert_eq!(server.asked().len(), asked);

    let repo = home.path().join("models--org--name");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let config = repo.join("snapshots").join(COMMIT).join("config.json");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), CONFIG);
    #[cfg(unix)]
    assert!(std::fs::read_link(&config).unwrap().starts_with("../../blobs"));
    assert!(files(home.path()).iter().all(|f| !f.to_str().unwrap().contains("incomplete")));
}

#[test]
fn offline_and_not_cached_says_so() {
    let home = tempfile::tempdir().unwrap();
    let error = locate(hub("http://127.0.0.1:9", home.path(), None, true), None).unwrap_err();
    assert_eq!(error.kind, Kind::Model);
    assert!(error.to_string().contains("HF_HUB_OFFLINE is set"), "{error}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_named_with_the_cause() {
    let home = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = locate(hub(&address, home.path(), Some(TOKEN), false), None).unwrap_err();
    assert_eq!(error.kind, Kind::Model);
    assert!(error.to_string().contains("cannot reach 127.0.0.1: "), "{error}");
    assert!(!format!("{error:?}").contains(TOKEN));
}

#[test]
fn every_refusal_has_its_own_words_and_writes_nothing() {
    for (status, code, words) in [
        (401, "RepoNotFound", "private or does not exist, or the token is not valid"),
        (403, "GatedRepo", "the model is gated and the token's account has no access"),
        (404, "RepoNotFound", "no such model on the hub (404)"),
        (404, "RevisionNotFound", "no revision `main` on the hub"),
        (404, "EntryNotFound", "no file `config.json` on the hub"),
        (429, "", "the hub refuses more requests for now (429); it says to wait 30 s"),
        (500, "", "the hub answers 500"),
    ] {
        let (error, files) =
            refusal(move |_| Answer::status(status).with("x-error-code", code).with("retry-after", "30"));
        assert_eq!(error.kind, Kind::Model);
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(files, Vec::<PathBuf>::new());
    }
}

#[test]
fn answers_that_could_leave_the_cache_are_refused() {
    for (name, value) in [
        ("etag", "\"../../x\""),
        ("etag", "\"a/b\""),
        ("etag", "\"\""),
        ("x-linked-etag", "\"..\""),
        ("x-repo-commit", "../../x"),
        ("x-repo-commit", "main"),
    ] {
        let (error, files) = refusal(move |_| Answer::file(CONFIG.as_bytes()).with(name, value));
        assert!(error.to_string().contains("is not a hub's"), "{name} {value}: {error}");
        assert_eq!(files, Vec::<PathBuf>::new());
    }
}

#[test]
fn a_download_that_breaks_off_leaves_nothing_half_written() {
    let (error, files) = refusal(|_| Answer { sent: 10, ranges: false, ..Answer::file(CONFIG.as_bytes()) });
    assert_eq!(error.kind, Kind::Model);
    let words = format!("config.json broke off at byte 10 of {}", CONFIG.len());
    assert!(error.to_string().contains(&words), "{error}");
    assert_eq!(files, Vec::<PathBuf>::new());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer { sent: CONFIG.len() / 2 + 1, ..Answer::file(CONFIG.as_bytes()) });
    let source = locate(hub(&server.address, home.path(), None, false), None).unwrap();
    assert_eq!(source.arch().unwrap().hidden_size, 4);
    assert_eq!(server.asked().len(), 2);
    assert!(server.asked()[1].headers.contains("range: bytes="));
}

#[test]
fn a_file_of_another_hash_is_not_kept() {
    let promised = sha256(b"something else");
    let linked = format!("\"{promised}\"");
    let (error, files) = refusal(move |_| Answer::file(CONFIG.as_bytes()).with("x-linked-etag", &linked));
    assert!(error.to_string().contains(&format!("the hub promised {promised}")), "{error}");
    assert_eq!(files, Vec::<PathBuf>::new());
}

#[test]
fn the_token_goes_to_the_hub_and_not_along_a_redirect_to_another_host() {
    let home = tempfile::tempdir().unwrap();
    // Another port is another origin.
    let store = Server::start(|_| Answer { headers: Vec::new(), ..Answer::file(CONFIG.as_bytes()) });
    let to = format!("{}/signed?secret=1", store.address);
    let linked = format!("\"{}\"", sha256(CONFIG.as_bytes()));
    let server = Server::start(move |path| {
        if path.starts_with("/org") {
            Answer::status(307).with("location", "/moved/config.json").with("x-repo-commit", COMMIT)
        } else {
            Answer::status(302)
                .with("location", &to)
                .with("x-repo-commit", COMMIT)
                .with("x-linked-etag", &linked)
                .with("x-linked-size", &CONFIG.len().to_string())
        }
    });
    let source = locate(hub(&server.address, home.path(), Some(TOKEN), false), None).unwrap();
    assert_eq!(source.arch().unwrap().hidden_size, 4);
    let bearer = format!("authorization: bearer {TOKEN}");
    assert_eq!(server.asked().len(), 2);
    assert!(server.asked().iter().all(|asked| asked.headers.contains(&bearer)));
    assert_eq!(store.asked().len(), 1);
    assert!(!store.asked()[0].headers.contains("authorization"));
    assert!(!format!("{source:?}").contains(TOKEN));
}

#[test]
fn redirects_without_end_or_without_a_hub_behind_them_are_refused() {
    let (error, _) = refusal(|_| Answer::status(302).with("location", "/again"));
    assert!(error.to_string().contains("too many redirects"), "{error}");
    let (error, _) = refusal(|_| Answer::status(302).with("location", "file:///etc/passwd"));
    assert!(error.to_string().contains("a redirect to no address"), "{error}");
    let (error, _) = refusal(|_| Answer::status(304));
    assert!(error.to_string().contains("answers 304"), "{error}");
}

#[test]
fn a_commit_never_mixes_with_another() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|path| {
        let other = "f".repeat(40);
        match path.rsplit('/').next().unwrap() {
            "tokenizer.json" => Answer::file(b"{}").with("x-repo-commit", &other),
            _ => model(path),
        }
    });
    let source = locate(hub(&server.address, home.path(), None, false), Some("v1")).unwrap();
    assert_eq!(server.asked()[0].path, "/org/name/resolve/v1/config.json");
    let error = source.tokenizer().unwrap_err();
    assert!(error.to_string().contains("a file of another commit"), "{error}");
}

fn shard(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.push(7);
    bytes
}

#[test]
fn shards_are_fetched_by_their_index_and_a_path_in_it_is_refused_unasked() {
    let fetch = |second: &'static str| {
        let home: TempDir = tempfile::tempdir().unwrap();
        let server = Server::start(move |path| match path.rsplit('/').next().unwrap() {
            "model.safetensors.index.json" => {
                let text = format!(r#"{{"weight_map": {{"a": "1.safetensors", "b": "{second}"}}}}"#);
                Answer::file(text.as_bytes())
            }
            "1.safetensors" => Answer::file(&shard("a")),
            "2.safetensors" => Answer::file(&shard("b")),
            _ => model(path),
        });
        let source = locate(hub(&server.address, home.path(), None, false), None).unwrap();
        let print = source.fingerprint();
        (source.weights(), print, server.asked(), home)
    };
    let (weights, print, _, _home) = fetch("2.safetensors");
    assert!(format!("{:?}", weights.unwrap()).contains("2.safetensors"));
    assert_eq!(print.unwrap().len(), 64);
    let (weights, _, asked, _home) = fetch("../2.safetensors");
    let error = weights.unwrap_err();
    assert!(error.to_string().contains("not a plain name"), "{error}");
    assert!(asked.iter().all(|asked| !asked.path.contains("2.safetensors")));
}
