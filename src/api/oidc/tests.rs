//! The exchange against an issuer of the test's own: its documents, its keys, and what an attacker would send.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use std::sync::Mutex;
use url::Url;
use workflows::contract::Scope;

use super::verify::TOKEN_LIMIT;
use super::*;

const ISSUER: &str = "https://token.example/ci";

/// A key of an issuer, made for the test.
#[derive(Clone)]
struct Key {
    id: String,
    pkcs8: Vec<u8>,
}

impl Key {
    fn new(id: &str) -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ring::rand::SystemRandom::new());
        Self { id: id.into(), pkcs8: pkcs8.unwrap().as_ref().to_vec() }
    }

    fn public(&self) -> Value {
        let mut key = Jwk::from_encoding_key(&EncodingKey::from_ec_der(&self.pkcs8), Algorithm::ES256).unwrap();
        key.common.key_id = Some(self.id.clone());
        serde_json::to_value(key).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &EncodingKey::from_ec_der(&self.pkcs8)).unwrap()
    }
}

/// An issuer's two documents.
#[derive(Clone, Default)]
struct Site {
    keys: Arc<Mutex<Vec<Value>>>,
    away: Arc<AtomicBool>,
    key_sets_read: Arc<AtomicUsize>,
    names_another: Arc<AtomicBool>,
}

impl Site {
    fn with(keys: &[&Key]) -> Self {
        let site = Self::default();
        site.publish(keys);
        site
    }

    fn publish(&self, keys: &[&Key]) {
        *self.keys.lock().unwrap() = keys.iter().map(|key| key.public()).collect();
    }

    fn issuers(&self, pace: Pace) -> Issuers<Self> {
        Issuers::new(self.clone(), pace)
    }

    fn reads(&self) -> usize {
        self.key_sets_read.load(Ordering::Relaxed)
    }
}

impl Fetch for Site {
    async fn fetch(&self, url: Url, _: usize) -> Result<Vec<u8>, Unread> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Unread::for_now("connection refused"));
        }
        let issuer = if self.names_another.load(Ordering::Relaxed) { "https://other.example" } else { ISSUER };
        let answer = match url.as_str() {
            "https://token.example/ci/.well-known/openid-configuration" => {
                json!({"issuer": issuer, "jwks_uri": "https://token.example/keys", "token_endpoint": "…"})
            }
            "https://token.example/keys" => {
                self.key_sets_read.fetch_add(1, Ordering::Relaxed);
                json!({"keys": *self.keys.lock().unwrap()})
            }
            other => return Err(Unread::for_now(format!("{other} is not there"))),
        };
        Ok(answer.to_string().into_bytes())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(change: &[(&str, Value)]) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": "kiln", "sub": "repo:acme/shop:ref:refs/heads/main", "iat": now(), "nbf": now(),
        "exp": now() + 300, "repository": "acme/shop", "ref": "refs/heads/main",
    });
    for (name, value) in change {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(*name)),
            value => claims[*name] = value.clone(),
        }
    }
    claims
}

fn rules() -> Vec<TrustRule> {
    let rule = |pattern: &str, reference: &str, scope| TrustRule {
        issuer: ISSUER.into(),
        audience: "kiln".into(),
        claims: vec![
            ClaimRule { claim: "repository".into(), pattern: pattern.into() },
            ClaimRule { claim: "ref".into(), pattern: reference.into() },
        ],
        scope,
        ttl_s: SHORTEST_S,
    };
    vec![rule("acme/shop", "refs/heads/main", Scope::Build), rule("acme/*", "refs/heads/*", Scope::Read)]
}

/// What a fresh look at the token comes to.
async fn exchanged(site: &Site, token: &str) -> Result<Trusted, ExchangeError> {
    check(&site.issuers(Pace::default()), &rules(), token).await
}

fn refused(exchanged: Result<Trusted, ExchangeError>) -> TokenError {
    match exchanged {
        Err(ExchangeError::Token(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_jobs_token_gets_what_the_first_rule_that_fits_gives() {
    let key = Key::new("k1");
    let site = Site::with(&[&key]);
    let trusted = exchanged(&site, &key.sign(&claims(&[]))).await.unwrap();
    assert_eq!((trusted.rule.scope, trusted.subject.as_str()), (Scope::Build, "repo:acme/shop:ref:refs/heads/main"));
    let branch = exchanged(&site, &key.sign(&claims(&[("ref", json!("refs/heads/f/1"))]))).await.unwrap();
    assert_eq!(branch.rule.scope, Scope::Read);
    for other in [("repository", json!("acme-evil/shop")), ("ref", json!("refs/tags/v1")), ("ref", Value::Null)] {
        let refused = exchanged(&site, &key.sign(&claims(&[other]))).await;
        assert!(matches!(refused, Err(ExchangeError::NoRule)), "{refused:?}");
    }
}

#[tokio::test]
async fn what_an_attacker_can_make_is_refused() {
    let (key, wrong) = (Key::new("k1"), Key::new("k1"));
    let site = Site::with(&[&key]);
    assert_eq!(refused(exchanged(&site, &wrong.sign(&claims(&[]))).await), TokenError::Signature);

    let part = |value: &Value| B64.encode(value.to_string());
    for alg in ["none", "None", "NONE"] {
        let token = format!("{}.{}.", part(&json!({"alg": alg, "kid": "k1"})), part(&claims(&[])));
        assert_eq!(refused(exchanged(&site, &token).await), TokenError::Algorithm, "{alg}");
    }
    // The public key as a shared one, in the forms that an attacker has it in.
    let public = serde_json::to_vec(&key.public()).unwrap();
    for secret in [public.as_slice(), key.public()["x"].as_str().unwrap().as_bytes()] {
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &claims(&[]), &EncodingKey::from_secret(secret).unwrap()).unwrap();
        assert_eq!(refused(exchanged(&site, &token).await), TokenError::Algorithm);
    }
    // A shared key among the issuer's, by mistake.
    let mut shared = key.public();
    shared = json!({"kty": "oct", "kid": "s1", "k": B64.encode(b"secret"), "x": shared["x"]});
    site.keys.lock().unwrap().push(shared);
    let header = Header { kid: Some("s1".into()), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims(&[]), &EncodingKey::from_secret(b"secret").unwrap()).unwrap();
    assert_eq!(refused(exchanged(&site, &token).await), TokenError::Algorithm);

    let genuine = key.sign(&claims(&[]));
    let (head, signature) = genuine.rsplit_once('.').unwrap();
    let changed = format!("{}.{}.{signature}", head.split('.').next().unwrap(), part(&claims(&[("ref", json!("x"))])));
    assert_eq!(refused(exchanged(&site, &changed).await), TokenError::Signature);
    for garbage in ["", ".", "..", "a.b.c", head, &"x".repeat(TOKEN_LIMIT + 1)] {
        let error = refused(exchanged(&site, garbage).await);
        assert!(matches!(error, TokenError::Malformed | TokenError::TooLong), "{garbage:.20}: {error:?}");
    }
}

#[tokio::test]
async fn a_token_is_for_this_audience_and_this_moment() {
    let key = Key::new("k1");
    let site = Site::with(&[&key]);
    for (name, value, expected) in [
        ("aud", json!("other"), TokenError::Audience),
        ("aud", json!([]), TokenError::Audience),
        ("aud", Value::Null, TokenError::Claims),
        ("exp", json!(now() - 120), TokenError::Expired),
        ("exp", Value::Null, TokenError::Claims),
        ("exp", json!("tomorrow"), TokenError::Claims),
        ("nbf", json!(now() + 120), TokenError::NotYet),
        ("iss", Value::Null, TokenError::Claims),
        ("iss", json!([ISSUER]), TokenError::Claims),
    ] {
        assert_eq!(
            refused(exchanged(&site, &key.sign(&claims(&[(name, value.clone())]))).await),
            expected,
            "{name} = {value}"
        );
    }
}

#[tokio::test]
async fn an_issuer_that_no_rule_names_is_not_even_asked() {
    let key = Key::new("k1");
    let site = Site::with(&[&key]);
    for issuer in ["https://evil.example", "https://token.example/ci/", "https://token.example"] {
        let refused = exchanged(&site, &key.sign(&claims(&[("iss", json!(issuer))]))).await;
        assert!(matches!(refused, Err(ExchangeError::NotTrusted(_))), "{refused:?}");
    }
    assert_eq!(site.reads(), 0);
    site.names_another.store(true, Ordering::Relaxed);
    let misled = exchanged(&site, &key.sign(&claims(&[]))).await;
    assert!(matches!(misled, Err(ExchangeError::Away(_))), "{misled:?}");
}

#[tokio::test]
async fn a_rotated_key_is_fetched_once_and_not_for_each_stranger() {
    let (old, new, unknown) = (Key::new("old"), Key::new("new"), Key::new("unknown"));
    let site = Site::with(&[&old]);
    let issuers = site.issuers(Pace { renew_every: Duration::from_millis(200), ..Pace::default() });
    let check = async |key: &Key| check(&issuers, &rules(), &key.sign(&claims(&[]))).await;
    check(&old).await.unwrap();
    check(&old).await.unwrap();
    assert_eq!(site.reads(), 1);
    site.publish(&[&new]);
    tokio::time::sleep(Duration::from_millis(250)).await;
    check(&new).await.unwrap();
    assert_eq!(site.reads(), 2);
    for _ in 0..20 {
        assert_eq!(refused(check(&unknown).await), TokenError::UnknownKey);
    }
    assert_eq!(site.reads(), 2, "unknown keys do not make an issuer be asked again and again");
    assert_eq!(refused(check(&old).await), TokenError::UnknownKey, "a withdrawn key is void");
}

#[tokio::test]
async fn an_issuer_that_is_away_is_a_passing_fault() {
    let key = Key::new("k1");
    let site = Site::with(&[&key]);
    site.away.store(true, Ordering::Relaxed);
    let pace = Pace {
        fresh: Duration::from_millis(20),
        retry_every: Duration::ZERO,
        renew_every: Duration::ZERO,
        ..Pace::default()
    };
    let issuers = site.issuers(pace);
    let token = key.sign(&claims(&[]));
    let away = check(&issuers, &rules(), &token).await;
    assert!(matches!(away, Err(ExchangeError::Away(_))), "{away:?}");
    site.away.store(false, Ordering::Relaxed);
    check(&issuers, &rules(), &token).await.unwrap();
    // Away again: the keys that are kept do for a while.
    site.away.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(30)).await;
    check(&issuers, &rules(), &token).await.unwrap();
    let impatient = site.issuers(Pace { stale: Duration::ZERO, ..pace });
    assert!(matches!(check(&impatient, &rules(), &token).await, Err(ExchangeError::Away(_))));
}

#[tokio::test]
async fn a_token_without_a_key_id_is_checked_with_the_only_key() {
    let (key, other) = (Key::new("k1"), Key::new("k2"));
    let site = Site::with(&[&key]);
    let token = encode(&Header::new(Algorithm::ES256), &claims(&[]), &EncodingKey::from_ec_der(&key.pkcs8)).unwrap();
    exchanged(&site, &token).await.unwrap();
    site.publish(&[&key, &other]);
    assert_eq!(refused(exchanged(&site, &token).await), TokenError::UnknownKey);
}
