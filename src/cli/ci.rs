//! In a CI job without a token: exchanges the token that the CI system gives to its jobs for one of the project.
//!
//! | CI system | where the job's token comes from | its audience |
//! |---|---|---|
//! | any | `KILN_ID_TOKEN`: GitLab's `id_tokens`, or what a step before has put there | as it was made for |
//! | GitHub Actions | a request to `ACTIONS_ID_TOKEN_REQUEST_URL` (needs `permissions: id-token: write`) | `api.audience` |
//! | CircleCI | `CIRCLE_OIDC_TOKEN_V2` | the organisation's id |
//! | Buildkite | `buildkite-agent oidc request-token` | `api.audience` |

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use url::Url;
use workflows::contract::{FailureClass, ProjectName};

use super::Failure;
use super::client::Client;
use crate::settings::{Secret, Settings};

/// For asking the CI system.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of its answer.
const ANSWER_LIMIT: usize = 64 << 10;

/// Where a job's token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// The token itself, and the variable it was in.
    Variable(&'static str, String),
    GitHub {
        url: String,
        bearer: String,
    },
    Buildkite,
}

/// Of these variables; `None` outside of a CI system that gives tokens.
fn source(variable: impl Fn(&str) -> Option<String>) -> Option<Source> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let held = |name: &'static str| variable(name).map(|token| Source::Variable(name, token));
    let github = || {
        let (url, bearer) = (variable("ACTIONS_ID_TOKEN_REQUEST_URL")?, variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?);
        Some(Source::GitHub { url, bearer })
    };
    let buildkite = || variable("BUILDKITE_JOB_ID").map(|_| Source::Buildkite);
    held("KILN_ID_TOKEN").or_else(github).or_else(|| held("CIRCLE_OIDC_TOKEN_V2")).or_else(buildkite)
}

/// Gives the settings a token for `project`, where they have none and these are the variables of a job of a CI system that
/// gives tokens.
///
/// # Errors
/// When the CI system gives no token after all, or the api does not take it.
pub async fn authenticate(
    settings: &mut Settings,
    project: &ProjectName,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    if !settings.api.token.is_empty() {
        return Ok(());
    }
    let Some(source) = source(variable) else { return Ok(()) };
    let token = token(&source, settings).await?;
    let exchanged = Client::new(settings)?.exchange(project, &token).await.map_err(|error| {
        let failure = Failure::from(error);
        let hint = format!("an admin of the project adds a rule with `kiln projects trust add {project}`");
        Failure { message: format!("the api does not take this job's token: {}", failure.message), ..failure }
            .hint(hint)
    })?;
    settings.api.token = Secret::new(exchanged.token);
    Ok(())
}

async fn token(source: &Source, settings: &Settings) -> Result<String, Failure> {
    let audience = &settings.api.audience;
    let asked = async {
        match source {
            Source::Variable(_, token) => Ok(token.clone()),
            Source::GitHub { url, bearer } => github(settings, url, bearer, audience).await,
            Source::Buildkite => buildkite(audience).await,
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs()))).map_err(|why| {
        Failure::new(FailureClass::Transient, format!("the CI system gives this job no token: {why}"))
            .hint("set KILN_API_TOKEN, or give the job the right to ask for one")
    })
}

/// <https://docs.github.com/en/actions/reference/security/oidc>
async fn github(settings: &Settings, url: &str, bearer: &str, audience: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Answer {
        value: String,
    }
    let mut url: Url = url.parse().map_err(|_| "ACTIONS_ID_TOKEN_REQUEST_URL is no URL".to_owned())?;
    url.query_pairs_mut().append_pair("audience", audience);
    let http = settings.http_client().map_err(|error| error.to_string())?;
    let answer = http.get(url).bearer_auth(bearer).send().await.map_err(|error| error.without_url().to_string())?;
    let status = answer.status();
    let body = activities::egress::body(answer, ANSWER_LIMIT).await.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(format!("GitHub answers {status}"));
    }
    serde_json::from_slice::<Answer>(&body)
        .map(|answer| answer.value)
        .map_err(|_| "GitHub's answer has no token".into())
}

/// <https://buildkite.com/docs/agent/v3/cli-oidc>
async fn buildkite(audience: &str) -> Result<String, String> {
    let mut agent = tokio::process::Command::new("buildkite-agent");
    agent.args(["oidc", "request-token", "--audience", audience]).stdin(Stdio::null()).kill_on_drop(true);
    let output = agent.output().await.map_err(|error| format!("buildkite-agent cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Source> {
        source(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn each_ci_system_is_known_by_its_variables() {
        let github = [("ACTIONS_ID_TOKEN_REQUEST_URL", "https://x"), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")];
        assert_eq!(of(&github), Some(Source::GitHub { url: "https://x".into(), bearer: "t".into() }));
        assert_eq!(of(&github[..1]), None, "a job without the right to ask");
        let circle = Source::Variable("CIRCLE_OIDC_TOKEN_V2", "c".into());
        assert_eq!(of(&[("CIRCLE_OIDC_TOKEN_V2", "c")]), Some(circle));
        assert_eq!(of(&[("BUILDKITE_JOB_ID", "j")]), Some(Source::Buildkite));
        let own = Source::Variable("KILN_ID_TOKEN", "g".into());
        assert_eq!(of(&[("KILN_ID_TOKEN", "g"), ("BUILDKITE_JOB_ID", "j")]), Some(own));
        assert_eq!(of(&[("KILN_ID_TOKEN", ""), ("CI", "true")]), None);
    }

    #[tokio::test]
    async fn github_is_asked_for_a_token_for_the_audience() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let asked = async |uri: axum::http::Uri, headers: axum::http::HeaderMap| {
            let bearer = headers["authorization"].to_str().unwrap().to_owned();
            axum::Json(serde_json::json!({"value": format!("{bearer} {}", uri.query().unwrap())}))
        };
        let app = axum::Router::new().route("/token", axum::routing::get(asked));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let source = |path: &str| Source::GitHub {
            url: format!("http://{address}/{path}?api-version=2.0"),
            bearer: "secret".into(),
        };
        let settings = Settings::default();
        let given = token(&source("token"), &settings).await.unwrap();
        assert_eq!(given, "Bearer secret api-version=2.0&audience=kiln");
        let refused = token(&source("absent"), &settings).await.unwrap_err();
        assert_eq!(refused.class, FailureClass::Transient);
        let held = Source::Variable("KILN_ID_TOKEN", "t".into());
        assert_eq!(token(&held, &settings).await.unwrap(), "t");
    }
}
