//! What each wire is tried with, from the outside in; the first step that fails is the finding.

use activities::logs::ShipError;
use activities::objects::{ObjectError, Problem as ObjectProblem};
use activities::store::StoreProblem;
use activities::temporal::{self, ConnectError};
use reqwest::StatusCode;
use temporalio_client::errors::ClientConnectError;
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeNamespaceRequest;
use tonic::Code;
use url::Url;

use super::net::{answer, connect, connect_to, connect_url};
use super::{Kind, Problem, Tried};
use crate::cli::failure::chain;
use crate::listen::Identity;
use crate::settings::{Settings, is_loopback};

type Checked = Result<(), Problem>;

/// Tries one of them.
pub async fn check(tried: Tried, settings: &Settings) -> Checked {
    match tried {
        Tried::Temporal => temporal(settings).await,
        Tried::Store => store(settings).await,
        Tried::Storage { writes } => storage(settings, writes).await,
        Tried::Api => api(settings).await,
        Tried::Logs => logs(settings).await,
        Tried::Registry => registry(settings).await,
        Tried::Buildkitd => buildkitd(settings).await,
        Tried::Listeners => listeners(settings),
    }
}

/// The other end, for people.
pub fn target(tried: Tried, settings: &Settings) -> String {
    match tried {
        Tried::Temporal => format!("{}, namespace {}", settings.temporal.address, settings.temporal.namespace),
        Tried::Store => store_target(settings.store.url.reveal()),
        Tried::Storage { .. } => format!("{}/{}", settings.s3.endpoint.trim_end_matches('/'), settings.s3.bucket),
        Tried::Api => settings.api.url.clone(),
        Tried::Logs => settings.logs.address.clone(),
        Tried::Registry => settings.registry.address.clone(),
        Tried::Buildkitd => settings.cell.buildkit_socket.display().to_string(),
        Tried::Listeners => format!("{}, {}", settings.api.listen, settings.logs.listen),
    }
}

/// The database without user, password and parameters.
fn store_target(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) if url.has_host() => format!("{}://{}{}", url.scheme(), host_of(&url), url.path()),
        _ => url.split('?').next().unwrap_or_default().to_owned(),
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn temporal(settings: &Settings) -> Checked {
    let frontend = settings.frontend();
    connect_to(&frontend.address).await?;
    let tls = frontend.is_tls().map_err(|error| Problem::new(Kind::Setting, chain(&error)))?;
    let client = temporal::connect(&frontend, "kiln-doctor").await.map_err(|error| no_temporal(&error, tls))?;
    let request = DescribeNamespaceRequest { namespace: frontend.namespace.clone(), ..Default::default() };
    let described = client.connection().workflow_service().describe_namespace(tonic::Request::new(request)).await;
    described.map(drop).map_err(|status| {
        let kind = match status.code() {
            Code::NotFound => Kind::Namespace,
            Code::Unauthenticated => Kind::Credential,
            Code::PermissionDenied => Kind::Permission,
            _ => Kind::Answer,
        };
        Problem::new(kind, status.message())
    })
}

/// The port is open, so it is TLS or a credential that keeps them apart, or it is another server.
fn no_temporal(error: &ConnectError, tls: bool) -> Problem {
    let refused = match error {
        ConnectError::Connect { source: ClientConnectError::SystemInfoCallError(status), .. } => {
            matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
        }
        _ => false,
    };
    let kind = match error {
        ConnectError::Config(_) => Kind::Setting,
        _ if refused => Kind::Credential,
        _ if tls => Kind::Tls,
        _ => Kind::Answer,
    };
    let hint = if kind == Kind::Answer { "; does it want TLS (TEMPORAL_TLS)?" } else { "" };
    Problem::new(kind, format!("{}{hint}", chain(error)))
}

async fn store(settings: &Settings) -> Checked {
    let url = settings.store.url.reveal();
    if let Some((host, port)) = store_server(url) {
        connect(&host, port).await?;
    }
    activities::store::probe(url).await.map_err(|problem| {
        let kind = match &problem {
            StoreProblem::Url(_) => Kind::Setting,
            StoreProblem::Unreachable(_) => Kind::Port,
            StoreProblem::Tls(_) => Kind::Tls,
            StoreProblem::Credential(_) => Kind::Credential,
            StoreProblem::Absent(_) => Kind::Bucket,
            StoreProblem::Permission(_) => Kind::Permission,
            StoreProblem::Other(_) => Kind::Answer,
        };
        Problem::new(kind, problem.to_string())
    })
}

/// Host and port of a database that is reached by name.
fn store_server(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url).ok().filter(|url| url.scheme().starts_with("postgres"))?;
    let elsewhere = url.query_pairs().any(|(key, _)| key == "host");
    (!elsewhere).then(|| Some((url.host_str()?.to_owned(), url.port().unwrap_or(5432))))?
}

async fn storage(settings: &Settings, writes: bool) -> Checked {
    connect_url(&url(&settings.s3.endpoint)?, settings).await?;
    let objects = settings.objects().map_err(|error| Problem::new(Kind::Setting, chain(&error)))?;
    if !writes {
        return match objects.list("doctor/").await {
            // A builder reads by name, and need not be allowed more.
            Err(ObjectError { problem: ObjectProblem::Refused { status: 403, code }, .. })
                if code == "AccessDenied" =>
            {
                Ok(())
            }
            listed => listed.map(drop).map_err(|error| no_object(&error)),
        };
    }
    let key = format!("doctor/{}", uuid::Uuid::new_v4());
    let body = bytes::Bytes::from_static(b"written by kiln doctor");
    objects.put(&key, body).await.map_err(|error| no_object(&error))?;
    let read = objects.get(&key, 1 << 10).await;
    objects.delete(&key).await.map_err(|error| no_object(&error))?;
    read.map(drop).map_err(|error| no_object(&error))
}

fn no_object(error: &ObjectError) -> Problem {
    let kind = match &error.problem {
        ObjectProblem::Settings(_) => Kind::Setting,
        ObjectProblem::NoCredentials => Kind::Credential,
        ObjectProblem::NotFound => Kind::Bucket,
        ObjectProblem::Refused { code, .. } | ObjectProblem::Busy { code, .. } => match code.as_str() {
            "NoSuchBucket" => Kind::Bucket,
            "RequestTimeTooSkewed" => Kind::Clock,
            "AccessDenied" | "AllAccessDisabled" => Kind::Permission,
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" => Kind::Credential,
            _ => Kind::Answer,
        },
        _ => Kind::Answer,
    };
    Problem::new(kind, chain(error))
}

async fn api(settings: &Settings) -> Checked {
    let base = url(&settings.api.url)?;
    connect_url(&base, settings).await?;
    let http = settings.http_client().map_err(|error| Problem::new(Kind::Setting, chain(&error)))?;
    let at = |path: &str| format!("{}/{path}", base.as_str().trim_end_matches('/'));
    let health = answer(http.get(at("healthz"))).await?;
    if !health.status().is_success() {
        return Err(Problem::new(Kind::Answer, format!("GET {} answers {}", at("healthz"), health.status())));
    }
    let token = settings.api.token.reveal();
    let authorised = answer(http.get(at("v1/principal")).bearer_auth(token)).await?;
    match authorised.status() {
        StatusCode::UNAUTHORIZED if token.is_empty() => Err(Problem::new(Kind::Credential, "no token is set")),
        StatusCode::UNAUTHORIZED => Err(Problem::new(Kind::Credential, "the token is not valid")),
        StatusCode::OK => Ok(()),
        status => Err(Problem::new(Kind::Answer, format!("GET {} answers {status}", at("v1/principal")))),
    }
}

async fn logs(settings: &Settings) -> Checked {
    connect_to(&settings.logs.address).await?;
    let receiver = settings.log_receiver().map_err(|error| Problem::new(Kind::Setting, chain(&error)))?;
    receiver.probe(settings.api.token.reveal()).await.map_err(|error| {
        let kind = match &error {
            ShipError::Connect(_) => Kind::Port,
            ShipError::Tls(_) | ShipError::Name(_) => Kind::Tls,
            ShipError::Refused(_) => Kind::Credential,
            _ => Kind::Answer,
        };
        Problem::new(kind, chain(&error))
    })
}

/// Whether it is a registry; what its users may do is each build's own question.
async fn registry(settings: &Settings) -> Checked {
    let address = &settings.registry.address;
    if address.is_empty() {
        return Ok(());
    }
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    let plain = is_loopback(host) || settings.registry.plain_http.contains(address);
    let base = url(&format!("{}://{address}/v2/", if plain { "http" } else { "https" }))?;
    connect_url(&base, &Settings::default()).await?;
    let http = activities::objects::http_client().map_err(|error| Problem::new(Kind::Tls, error.to_string()))?;
    match answer(http.get(base)).await?.status() {
        StatusCode::OK | StatusCode::UNAUTHORIZED => Ok(()),
        status => Err(Problem::new(Kind::Answer, format!("GET /v2/ answers {status}; is it a registry?"))),
    }
}

async fn buildkitd(settings: &Settings) -> Checked {
    let socket = &settings.cell.buildkit_socket;
    let client = buildkit::Client::connect_unix(socket).await;
    let client = client.map_err(|error| Problem::new(Kind::Port, chain(&error)))?;
    client.info().await.map(drop).map_err(|error| Problem::new(Kind::Answer, chain(&error)))
}

fn listeners(settings: &Settings) -> Checked {
    let (api, logs) = (&settings.api, &settings.logs);
    for (cert, key) in [(&api.tls_cert, &api.tls_key), (&logs.tls_cert, &logs.tls_key)] {
        Identity::of(cert, key).map_err(|error| Problem::new(Kind::Tls, chain(&error)))?;
    }
    Ok(())
}

fn url(text: &str) -> Result<Url, Problem> {
    Url::parse(text).map_err(|error| Problem::new(Kind::Setting, format!("{text:?}: {error}")))
}
