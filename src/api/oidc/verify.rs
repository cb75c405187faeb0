//! Checks a token of another issuer with the keys of that issuer.
//!
//! Only signatures that need a private key count: `none` and the HMAC family, whose key would be public, are refused
//! before any key is looked at.

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

/// The most bytes a token may have.
pub const TOKEN_LIMIT: usize = 16 << 10;
/// How far the issuer's clock may be from this one's, seconds.
const LEEWAY_S: u64 = 30;
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What is wrong with a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is no JSON web token")]
    Malformed,
    #[error("it is longer than {TOKEN_LIMIT} bytes")]
    TooLong,
    #[error("it is not signed in a way that proves who signed it; use an RSA, EC or Ed25519 key")]
    Algorithm,
    #[error("its issuer has no key of this id")]
    UnknownKey,
    #[error("its signature is not its issuer's")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it was made for another audience")]
    Audience,
    #[error("it lacks a claim or has one that cannot be read: iss, aud or exp")]
    Claims,
}

/// The issuer that a token names, unchecked: only good for choosing whose keys to check it with.
pub fn named_issuer(token: &str) -> Result<String, TokenError> {
    if token.len() > TOKEN_LIMIT {
        return Err(TokenError::TooLong);
    }
    let claims: Map<String, Value> = insecure_decode_claims(token).map_err(|_| TokenError::Malformed)?;
    claims.get("iss").and_then(Value::as_str).map(ToOwned::to_owned).ok_or(TokenError::Claims)
}

/// The claims of a token that `issuer` has signed for one of `audiences` and that is valid now.
pub fn verify(token: &str, keys: &JwkSet, issuer: &str, audiences: &[&str]) -> Result<Map<String, Value>, TokenError> {
    if token.len() > TOKEN_LIMIT {
        return Err(TokenError::TooLong);
    }
    let header = decode_header(token).map_err(|error| match error.kind() {
        // An algorithm that the library does not know, `none` among them.
        ErrorKind::Json(_) => TokenError::Algorithm,
        _ => TokenError::Malformed,
    })?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(TokenError::Algorithm);
    }
    let key = key_for(keys, header.kid.as_deref(), header.alg).ok_or(TokenError::UnknownKey)?;
    let key = DecodingKey::from_jwk(key).map_err(|_| TokenError::UnknownKey)?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY_S;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    let decoded = decode::<Map<String, Value>>(token, &key, &validation);
    decoded.map(|token| token.claims).map_err(|error| match error.kind() {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYet,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::InvalidIssuer => {
            TokenError::Claims
        }
        ErrorKind::InvalidToken | ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => {
            TokenError::Malformed
        }
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        _ => TokenError::Signature,
    })
}

/// The key of this id, or the only one where the token names none.
fn key_for<'a>(keys: &'a JwkSet, id: Option<&str>, algorithm: Algorithm) -> Option<&'a Jwk> {
    let mut usable = keys.keys.iter().filter(|key| is_for(key, algorithm));
    match id {
        Some(id) => usable.find(|key| key.common.key_id.as_deref() == Some(id)),
        None => usable.next().filter(|_| usable.next().is_none()),
    }
}

/// Whether a key checks signatures of this algorithm.
fn is_for(key: &Jwk, algorithm: Algorithm) -> bool {
    let kind = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::EllipticCurve(_), Algorithm::ES256 | Algorithm::ES384) => true,
        (AlgorithmParameters::OctetKeyPair(_), Algorithm::EdDSA) => true,
        (AlgorithmParameters::RSA(_), other) => {
            !matches!(other, Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA)
        }
        _ => false,
    };
    let used = key.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    let named = key.common.key_algorithm.as_ref();
    kind && used && named.is_none_or(|named| named.to_string() == format!("{algorithm:?}"))
}
