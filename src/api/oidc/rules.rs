//! Whose tokens a project trusts: an issuer, an audience, and what the other claims must say.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;
use workflows::contract::Scope;

/// How long a token of the exchange may be valid, seconds.
pub const SHORTEST_S: u32 = 15 * 60;
pub const LONGEST_S: u32 = 60 * 60;
/// Rules of one project, claims of one rule, and bytes of each text of one.
pub const RULES: usize = 64;
const CLAIMS: usize = 16;
const TEXT: usize = 512;

/// Trust in the tokens of another issuer. A token fits when it fits every part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustRule {
    /// The issuer, exactly as its tokens name it (`iss`); its keys are found by its discovery document.
    #[schema(example = "https://token.actions.githubusercontent.com")]
    pub issuer: String,
    /// What the tokens must be made for (`aud`).
    #[schema(example = "kiln")]
    pub audience: String,
    /// Further claims and the patterns that their values must fit: `*` stands for any text.
    pub claims: Vec<ClaimRule>,
    /// What the project's token may do.
    pub scope: Scope,
    /// For how long, seconds: 900 to 3600.
    pub ttl_s: u32,
}

/// A claim and the pattern that its value must fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRule {
    #[schema(example = "repository")]
    pub claim: String,
    #[schema(example = "acme/*")]
    pub pattern: String,
}

/// Why a rule is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    #[error("the issuer {0:?} must be an https URL without query, fragment or user")]
    Issuer(String),
    #[error("the audience must not be empty")]
    Audience,
    #[error(
        "at least one claim must be given whose pattern does not begin with *: \
         an issuer signs tokens for everybody who has an account there"
    )]
    Everybody,
    #[error("{0:?} is given twice, or is checked anyway")]
    Claim(String),
    #[error("a token is valid for {SHORTEST_S} to {LONGEST_S} s, not for {0}")]
    Ttl(u32),
    #[error("a rule has at most {CLAIMS} claims, and texts of at most {TEXT} bytes")]
    Size,
}

impl TrustRule {
    /// # Errors
    /// When the rule is malformed, or would trust everybody who has an account at the issuer.
    pub fn check(&self) -> Result<(), BadRule> {
        let texts = self.claims.iter().flat_map(|rule| [&rule.claim, &rule.pattern]);
        let long = texts.chain([&self.issuer, &self.audience]).any(|text| text.len() > TEXT);
        if long || self.claims.len() > CLAIMS {
            return Err(BadRule::Size);
        }
        issuer_url(&self.issuer).ok_or_else(|| BadRule::Issuer(self.issuer.clone()))?;
        if self.audience.is_empty() {
            return Err(BadRule::Audience);
        }
        if !(SHORTEST_S..=LONGEST_S).contains(&self.ttl_s) {
            return Err(BadRule::Ttl(self.ttl_s));
        }
        for (at, ClaimRule { claim, .. }) in self.claims.iter().enumerate() {
            let twice = self.claims[..at].iter().any(|other| other.claim == *claim);
            if twice || claim.is_empty() || ["iss", "aud", "exp", "nbf", "iat"].contains(&claim.as_str()) {
                return Err(BadRule::Claim(claim.clone()));
            }
        }
        let names_somebody = |rule: &ClaimRule| !rule.pattern.is_empty() && !rule.pattern.starts_with('*');
        if self.claims.iter().any(names_somebody) { Ok(()) } else { Err(BadRule::Everybody) }
    }

    /// Whether verified claims of this rule's issuer fit it.
    pub fn fits(&self, claims: &Map<String, Value>) -> bool {
        let listed = claims.get("aud").is_some_and(|audience| any(audience, |text| text == self.audience));
        listed
            && self
                .claims
                .iter()
                .all(|rule| claims.get(&rule.claim).is_some_and(|value| any(value, |text| fits(&rule.pattern, text))))
    }
}

/// The URL of an issuer. Plain HTTP is for the loopback, which is where tests have theirs; whether that may be reached is
/// decided where it is fetched.
pub fn issuer_url(issuer: &str) -> Option<Url> {
    let url = Url::parse(issuer).ok()?;
    let safe = url.scheme() == "https" || (url.scheme() == "http" && crate::settings::is_loopback(url.host_str()?));
    let bare =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    (safe && bare && url.has_host()).then_some(url)
}

/// Whether the value, or one of a list, passes. Only texts, numbers and booleans can.
fn any(value: &Value, passes: impl Fn(&str) -> bool) -> bool {
    let one = |value: &Value| match value {
        Value::String(text) => passes(text),
        Value::Number(_) | Value::Bool(_) => passes(&value.to_string()),
        _ => false,
    };
    value.as_array().map_or_else(|| one(value), |list| list.iter().any(one))
}

/// Whether a text fits a pattern in which `*` stands for any text, also none and also with slashes.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub fn rule(claims: &[(&str, &str)]) -> TrustRule {
        let claims =
            claims.iter().map(|(claim, pattern)| ClaimRule { claim: (*claim).into(), pattern: (*pattern).into() });
        TrustRule {
            issuer: "https://token.example".into(),
            audience: "kiln".into(),
            claims: claims.collect(),
            scope: Scope::Build,
            ttl_s: SHORTEST_S,
        }
    }

    #[test]
    fn patterns_fit_whole_texts() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "x/y"),
            ("a*", "a"),
            ("refs/heads/*", "refs/heads/f/1"),
            ("a*b*c", "a--b--b-c"),
            ("*ab", "aab"),
        ] {
            assert!(fits(pattern, text), "{pattern:?} {text:?}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("a", "xa"),
            ("", "a"),
            ("a*a", "a"),
            ("acme/*", "acme-evil/x"),
            ("a*b*c", "acb"),
            ("*ab", "abc"),
        ] {
            assert!(!fits(pattern, text), "{pattern:?} {text:?}");
        }
    }

    proptest! {
        /// The same as a regular expression would say.
        #[test]
        fn patterns_are_regular_expressions_of_a_kind(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            let parts: Vec<_> = pattern.split('*').map(regex::escape).collect();
            let expected = regex::Regex::new(&format!("^{}$", parts.join(".*"))).unwrap().is_match(&text);
            prop_assert_eq!(fits(&pattern, &text), expected);
        }
    }

    #[test]
    fn every_claim_of_a_rule_must_fit() {
        let rule = rule(&[("repository", "acme/shop"), ("ref", "refs/heads/*"), ("run", "7"), ("groups", "ci")]);
        let claims = |change: &[(&str, Value)]| {
            let mut claims = json!({"aud": ["other", "kiln"], "repository": "acme/shop", "ref": "refs/heads/main", "run": 7,
                "groups": ["dev", "ci"]});
            change.iter().for_each(|(name, value)| claims[*name] = value.clone());
            claims.as_object().unwrap().clone()
        };
        assert!(rule.fits(&claims(&[])));
        for (name, value) in [
            ("aud", json!("kiln2")),
            ("aud", json!([])),
            ("repository", json!("acme/shop2")),
            ("ref", json!("refs/tags/heads")),
            ("run", json!(8)),
            ("groups", json!(["dev"])),
            ("groups", json!({"ci": true})),
            ("groups", Value::Null),
        ] {
            assert!(!rule.fits(&claims(&[(name, value.clone())])), "{name} = {value}");
        }
        let mut absent = claims(&[]);
        absent.remove("run");
        assert!(!rule.fits(&absent));
    }

    #[test]
    fn a_rule_that_trusts_everybody_is_not_taken() {
        rule(&[("repository", "acme/*")]).check().unwrap();
        for claims in [&[][..], &[("repository", "*")], &[("repository", "*/shop"), ("ref", "")]] {
            assert_eq!(rule(claims).check(), Err(BadRule::Everybody));
        }
        assert_eq!(rule(&[("aud", "kiln")]).check(), Err(BadRule::Claim("aud".into())));
        assert_eq!(rule(&[("a", "x"), ("a", "y")]).check(), Err(BadRule::Claim("a".into())));
        for issuer in
            ["", "token.example", "http://token.example", "https://a:b@token.example", "https://token.example?x=1"]
        {
            let bad = TrustRule { issuer: issuer.into(), ..rule(&[("repository", "acme/*")]) };
            assert_eq!(bad.check(), Err(BadRule::Issuer(issuer.into())));
        }
        for ttl_s in [0, SHORTEST_S - 1, LONGEST_S + 1] {
            assert_eq!(TrustRule { ttl_s, ..rule(&[("repository", "acme/*")]) }.check(), Err(BadRule::Ttl(ttl_s)));
        }
        assert_eq!(rule(&[("repository", &"x".repeat(600))]).check(), Err(BadRule::Size));
    }
}
