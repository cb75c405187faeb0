//! The requests about one tag, with the credentials of one build. What was granted to them ends with them: another build of the same
//! repository may have fewer rights, and a token lives for a minute or less.
//!
//! ```text
//!  request ── 401, a challenge ──┬─ Basic: user name and password
//!     ▲                          └─ Bearer: the build's own token, or one from the registry's token server (a password, an
//!     └───── once more ◄────────┘          identity token by OAuth2's refresh grant, or nobody)
//! ```

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oci_client::Reference;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use url::Url;
use workflows::contract::Digest;

use super::Credential;
use super::error::Cause;
use crate::egress::{Answer, Egress, Limits, Request};
use crate::objects::retry::retry_after;

/// The longest manifest that is read, bytes; registries take no longer ones.
const LONGEST_MANIFEST: usize = 4 << 20;
/// How many redirects of one request are followed.
const REDIRECTS: u32 = 5;
/// A longer answer that says no is not read for its words, bytes.
const LONGEST_REFUSAL: usize = 16 << 10;
/// What a tag may point at.
pub(super) const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Requests to one repository.
pub(super) struct Requests<'a> {
    egress: &'a Egress,
    limits: Limits,
    /// `host[:port]`
    registry: String,
    /// `https://host/v2/repository/manifests/`
    manifests: String,
    /// What a token is asked for.
    scope: String,
    credential: Option<&'a Credential>,
    /// What the registry has accepted last.
    authorization: Option<HeaderValue>,
}

impl<'a> Requests<'a> {
    /// Each request has this deadline. `actions` are what a token is asked for: `pull`, or `pull,push`.
    pub(super) fn new(
        (egress, deadline): (&'a Egress, Duration),
        scheme: &str,
        reference: &Reference,
        actions: &str,
        credential: Option<&'a Credential>,
    ) -> Self {
        let (host, repository) = (reference.resolve_registry(), reference.repository());
        Self {
            egress,
            limits: Limits { bytes: LONGEST_MANIFEST, deadline, redirects: REDIRECTS },
            registry: host.to_owned(),
            manifests: format!("{scheme}://{host}/v2/{repository}/manifests/"),
            scope: format!("repository:{repository}:{actions}"),
            credential,
            authorization: None,
        }
    }

    /// Whether the repository has a manifest by this tag or digest.
    pub(super) async fn has(&mut self, name: &str) -> Result<bool, Cause> {
        let answer = self.send(self.request(Method::HEAD, name)?).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(refusal(&answer)),
        }
    }

    /// The digest that a tag points at; `None` when there is no such tag, or the registry does not say.
    pub(super) async fn digest(&mut self, tag: &str) -> Result<Option<String>, Cause> {
        let answer = self.send(self.request(Method::HEAD, tag)?).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                Ok(answer.headers.get("docker-content-digest").and_then(|d| d.to_str().ok()).map(str::to_owned))
            }
            _ => Err(refusal(&answer)),
        }
    }

    /// A manifest, which has the digest it is asked for by.
    pub(super) async fn manifest(&mut self, digest: &Digest) -> Result<Bytes, Cause> {
        let answer = self.send(self.request(Method::GET, digest.as_str())?).await?;
        if !answer.status.is_success() {
            return Err(refusal(&answer));
        }
        let hex: String = Sha256::digest(&answer.body).iter().map(|byte| format!("{byte:02x}")).collect();
        let actual = format!("sha256:{hex}");
        if actual == digest.as_str() { Ok(answer.body) } else { Err(Cause::Altered { actual }) }
    }

    /// Writes a manifest under a tag.
    pub(super) async fn write(&mut self, tag: &str, content: &Bytes, media_type: &str) -> Result<(), Cause> {
        let mut request = self.request(Method::PUT, tag)?;
        let media_type = HeaderValue::from_str(media_type).map_err(|_| Cause::MediaType)?;
        request.headers.insert(CONTENT_TYPE, media_type);
        request.body = Some(Bytes::clone(content));
        let answer = self.send(request).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refusal(&answer)) }
    }

    fn request(&self, method: Method, name: &str) -> Result<Request, Cause> {
        let url = Url::parse(&format!("{}{name}", self.manifests)).map_err(Cause::Url)?;
        let mut request = Request { registry: Some(self.registry.clone()), ..Request::new(method, url) };
        let accepted = HeaderValue::from_str(&ACCEPTED.join(", ")).map_err(|_| Cause::MediaType)?;
        request.headers.insert(ACCEPT, accepted);
        Ok(request)
    }

    /// Safe to send twice: a request that is answered by a challenge was not carried out.
    async fn send(&mut self, request: Request) -> Result<Answer, Cause> {
        let answer = self.once(&request).await?;
        if answer.status != StatusCode::UNAUTHORIZED || !self.authorize(&answer.headers).await? {
            return Ok(answer);
        }
        self.once(&request).await
    }

    async fn once(&self, request: &Request) -> Result<Answer, Cause> {
        let request = Request { authorization: self.authorization.clone(), ..request.clone() };
        self.egress.send(request, self.limits).await.map_err(Cause::Request)
    }

    /// Answers a challenge; whether there is an answer.
    async fn authorize(&mut self, headers: &HeaderMap) -> Result<bool, Cause> {
        self.authorization = match (challenge(headers), self.credential) {
            (Some(Challenge::Bearer { realm, service }), credential) => {
                let asked = (realm.as_str(), service.as_str(), self.scope.as_str());
                let token = buildkit::fetch_token(self.egress, &self.registry, asked, credential).await;
                let token = token.map_err(Cause::Token)?;
                hidden(&format!("Bearer {token}"))
            }
            (Some(Challenge::Basic), Some(Credential::Basic { username, password })) => {
                let pair = STANDARD.encode(format!("{username}:{password}"));
                hidden(&format!("Basic {pair}"))
            }
            _ => None,
        };
        Ok(self.authorization.is_some())
    }
}

/// A header's value that is not shown.
fn hidden(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a registry wants to see, RFC 9110 section 11.6.1 and the distribution project's token specification.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

/// The best of the challenges: a token server is asked before a password is sent.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges = texts.filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
    let mut found = None;
    for challenge in challenges {
        let parameter = |name: &str| {
            let value = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameter("realm")
        {
            return Some(Challenge::Bearer { realm, service: parameter("service").unwrap_or_default() });
        }
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

/// An answer that says no, with the registry's own words.
fn refusal(answer: &Answer) -> Cause {
    let (status, wait) = (answer.status.as_u16(), retry_after(&answer.headers));
    let words = if answer.body.len() > LONGEST_REFUSAL { String::new() } else { words(&answer.body) };
    Cause::Answer { status, words, wait }
}

/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes>
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Told>,
    }
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Envelope { errors }) = serde_json::from_slice(body) else { return String::new() };
    let told = errors.iter().map(|Told { code, message }| format!("{code} {message}").trim().to_owned());
    told.take(3).collect::<Vec<_>>().join("; ").chars().take(500).collect()
}

/// For fuzzing: a challenge in each line, and a refusal's body.
#[cfg(any(test, fuzzing))]
pub(crate) fn exercise(data: &[u8]) {
    let lines = data.split(|&byte| byte == b'\n').take(8);
    let headers = lines.filter_map(|line| Some((WWW_AUTHENTICATE, HeaderValue::from_bytes(line).ok()?))).collect();
    std::hint::black_box(challenge(&headers));
    assert!(words(data).chars().count() <= 500);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenged(values: &[&str]) -> Option<Challenge> {
        challenge(&HeaderMap::from_iter(values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()))))
    }

    #[test]
    fn a_token_server_is_preferred_to_a_password() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull""#;
        let expected =
            Some(Challenge::Bearer { realm: "https://auth.example/token".into(), service: "r.example".into() });
        assert_eq!(challenged(&[bearer]), expected);
        assert_eq!(challenged(&[r#"Basic realm="r""#, bearer]), expected);
        assert_eq!(challenged(&[r#"Basic realm="r""#]), Some(Challenge::Basic));
        assert_eq!(challenged(&["Bearer", "Negotiate"]), None);
    }

    #[test]
    fn a_refusals_words_are_those_of_the_specification_or_none() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no push for you"},{"code":"UNKNOWN"}]}"#;
        assert_eq!(words(body), "DENIED no push for you; UNKNOWN");
        assert_eq!(words(b"<html>"), "");
    }
}
