//! The exchange over HTTP, with an issuer on the loopback that the test's settings list.

use axum::Router;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::*;
use crate::cli::{Client, ci};

/// An issuer with one key.
struct Issuer {
    url: String,
    key: EncodingKey,
}

impl Issuer {
    async fn start() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ring::rand::SystemRandom::new());
        let key = EncodingKey::from_ec_der(pkcs8.unwrap().as_ref());
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        public.common.key_id = Some("k1".into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (discovery, keys) = (json!({"issuer": url, "jwks_uri": format!("{url}/keys")}), json!({"keys": [public]}));
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(async move || axum::Json(discovery)))
            .route("/keys", get(async move || axum::Json(keys)));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, key }
    }

    fn token(&self, audience: &str, reference: &str) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({"iss": self.url, "aud": audience, "sub": "repo:acme/shop", "exp": now + 300,
            "repository": "acme/shop", "ref": reference});
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).unwrap()
    }

    fn rule(&self, scope: &str) -> Value {
        let claims = json!([{"claim": "repository", "pattern": "acme/*"}, {"claim": "ref", "pattern": "refs/heads/*"}]);
        json!({"issuer": self.url, "audience": "kiln", "claims": claims, "scope": scope, "ttl_s": 900})
    }
}

async fn exchanged(api: &Api, project: &str, token: &str) -> (StatusCode, Value) {
    let request = api.client.post(format!("http://{}/v1/oidc/token", api.address));
    answer(request.json(&json!({"project": project, "token": token}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_token_is_exchanged_for_one_of_the_project() {
    let (api, issuer) = (Api::start(false).await, Issuer::start().await);
    for project in ["shop", "other"] {
        api.post("/v1/projects", json!({"name": project})).await;
    }
    let token = issuer.token("kiln", "refs/heads/main");
    assert_eq!(exchanged(&api, "shop", &token).await.0, StatusCode::FORBIDDEN, "nobody is trusted yet");
    let (status, rule) = api.post("/v1/projects/shop/trust", issuer.rule("build")).await;
    assert_eq!(status, StatusCode::CREATED, "{rule}");

    let before_ms = jiff::Timestamp::now().as_millisecond();
    let (status, given) = exchanged(&api, "shop", &token).await;
    assert_eq!((status, &given["scope"]), (StatusCode::CREATED, &json!("build")), "{given}");
    let life_ms = given["expires_ms"].as_i64().unwrap() - before_ms;
    assert!((900_000..910_000).contains(&life_ms), "{life_ms}");
    let as_job = |path: &str| {
        let request = api.client.get(format!("http://{}{path}", api.address));
        answer(request.bearer_auth(given["token"].as_str().unwrap()))
    };
    let (_, principal) = as_job("/v1/principal").await;
    assert_eq!(principal["principal"], json!({"kind": "project", "project": "shop", "scope": "build"}));
    assert_eq!(as_job("/v1/projects/other").await.0, StatusCode::NOT_FOUND);

    for (project, token) in [
        ("other", token.clone()),
        ("absent", token.clone()),
        ("shop", issuer.token("other", "refs/heads/main")),
        ("shop", issuer.token("kiln", "refs/tags/v1")),
        ("shop", "no.token.atall".into()),
    ] {
        let (status, body) = exchanged(&api, project, &token).await;
        assert_eq!((status, class_of(&body)), (StatusCode::FORBIDDEN, "refused"), "{project} {body}");
    }
    let (_, log) = api.get("/v1/audit?project=shop").await;
    let recorded: Vec<_> =
        log.as_array().unwrap().iter().filter(|row| row["action"] == "POST /v1/oidc/token").collect();
    assert_eq!(recorded.len(), 1, "the one that was exchanged: {log}");
    let path = format!("/v1/projects/shop/trust/{}", rule["id"].as_str().unwrap());
    assert_eq!(answer(api.request(Method::DELETE, &path)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(exchanged(&api, "shop", &token).await.0, StatusCode::FORBIDDEN, "the rule is gone");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_on_an_address_that_is_not_listed_is_not_asked() {
    let api = Api::start(false).await;
    api.post("/v1/projects", json!({"name": "shop"})).await;
    let issuer = Issuer { url: "https://10.0.0.1".into(), ..Issuer::start().await };
    assert_eq!(api.post("/v1/projects/shop/trust", issuer.rule("build")).await.0, StatusCode::CREATED);
    let (status, body) = exchanged(&api, "shop", &issuer.token("kiln", "refs/heads/main")).await;
    assert_eq!((status, class_of(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "refused"), "{body}");
    assert!(message_of(&body).contains("egress.allow"), "{body}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_trusts_everybody_is_refused() {
    let (api, issuer) = (Api::start(false).await, Issuer::start().await);
    api.post("/v1/projects", json!({"name": "shop"})).await;
    let mut rule = issuer.rule("build");
    rule["claims"] = json!([{"claim": "repository", "pattern": "*"}]);
    let (status, body) = api.post("/v1/projects/shop/trust", rule).await;
    assert_eq!((status, class_of(&body)), (StatusCode::BAD_REQUEST, "usage"), "{body}");
    assert_eq!(api.get("/v1/projects/shop/trust").await, (StatusCode::OK, json!([])));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_ci_job_gets_a_token_by_itself() {
    let (api, issuer) = (Api::start(false).await, Issuer::start().await);
    let project = "shop".parse().unwrap();
    api.post("/v1/projects", json!({"name": "shop"})).await;
    api.post("/v1/projects/shop/trust", issuer.rule("build")).await;
    let job = |token: &str| {
        let token = token.to_owned();
        move |name: &str| (name == "KILN_ID_TOKEN").then(|| token.clone())
    };
    let mut settings = Settings::default();
    settings.api.url = format!("http://{}", api.address);
    let refused = ci::authenticate(&mut settings, &project, job(&issuer.token("kiln", "refs/tags/v1"))).await;
    assert_eq!(refused.unwrap_err().class, workflows::contract::FailureClass::Refused);
    ci::authenticate(&mut settings, &project, |_| None).await.unwrap();
    assert!(settings.api.token.is_empty(), "outside of a CI job");

    ci::authenticate(&mut settings, &project, job(&issuer.token("kiln", "refs/heads/main"))).await.unwrap();
    let who = Client::new(&settings).unwrap().whoami().await.unwrap();
    assert_eq!(who.principal.to_string(), "project/shop:build");
    let given = settings.api.token.reveal().to_owned();
    ci::authenticate(&mut settings, &project, job("another")).await.unwrap();
    assert_eq!(settings.api.token.reveal(), given, "a token that is set is kept");
    api.stop().await;
}
