//! Tokens: issued, listed, revoked, by whom; what lists show to whom; the one build of a one-time token; credentials of cells.

use std::time::Duration;

use super::*;
use crate::api::keyring::Keyring;

impl Api {
    async fn get_as(&self, token: &str, path: &str) -> (StatusCode, Value) {
        answer(self.request_as(token, Method::GET, path)).await
    }

    async fn post_as(&self, token: &str, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request_as(token, Method::POST, path).json(&body)).await
    }

    async fn delete_as(&self, token: &str, path: &str) -> (StatusCode, Value) {
        answer(self.request_as(token, Method::DELETE, path)).await
    }
}

fn wanted(principal: Value) -> Value {
    json!({ "name": "ci", "principal": principal })
}

fn project(name: &str, scope: &str) -> Value {
    json!({ "kind": "project", "project": name, "scope": scope })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_once_and_void_when_it_is_revoked() {
    let api = Api::start(true).await;
    let request = json!({ "name": "ci", "principal": project("hello", "read"), "expires_in_s": 60 });
    let (status, issued) = api.post("/v1/tokens", request).await;
    assert_eq!(status, StatusCode::CREATED);
    let (secret, id) = (issued["token"].as_str().unwrap(), issued["id"].as_str().unwrap());
    let who = api.get_as(secret, "/v1/principal").await;
    assert_eq!(who, (StatusCode::OK, json!({ "principal": project("hello", "read"), "token": id })));

    let (_, listed) = api.get("/v1/tokens").await;
    assert!(!listed.to_string().contains(secret), "its secret is shown once");
    assert_eq!((&listed[0]["id"], &listed[0]["issued_by"]), (&json!(id), &json!("operator (settings)")));
    let life_ms = listed[0]["expires_ms"].as_i64().unwrap() - listed[0]["created_ms"].as_i64().unwrap();
    assert!((59_000..=60_000).contains(&life_ms), "{life_ms}");
    api.app.keyring.write_uses().await;
    assert!(api.get("/v1/tokens").await.1[0]["used_ms"].is_i64(), "its last use is kept");

    assert_eq!(answer(api.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await.0, StatusCode::OK);
    assert_eq!(api.get_as(secret, "/v1/principal").await.0, StatusCode::UNAUTHORIZED, "void at once");
    assert_eq!(api.get("/v1/tokens").await.1, json!([]));
    assert_eq!(answer(api.request(Method::DELETE, "/v1/tokens/t-absent")).await.0, StatusCode::NOT_FOUND);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_another_api_revoked_is_void_within_two_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let new = NewToken {
        principal: "platform".parse().unwrap(),
        name: "ci".into(),
        issued_by: "test".into(),
        expires_ms: None,
    };
    let issued = store.issue_token(&new).await.unwrap();
    let other_api = Keyring::new(store.clone(), "");
    assert!(other_api.identify(&issued.secret).await.unwrap().is_some());
    store.revoke_token(&issued.row.id).await.unwrap();
    let void = async {
        while other_api.identify(&issued.secret).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), void).await.expect("it is void");
}

#[tokio::test]
async fn a_remembered_token_is_void_when_it_expires() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let soon_ms = jiff::Timestamp::now().as_millisecond() + 300;
    let new = NewToken {
        principal: "platform".parse().unwrap(),
        name: "ci".into(),
        issued_by: "test".into(),
        expires_ms: Some(soon_ms),
    };
    let issued = store.issue_token(&new).await.unwrap();
    let keyring = Keyring::new(store, "");
    while keyring.identify(&issued.secret).await.unwrap().is_some() {
        assert!(jiff::Timestamp::now().as_millisecond() <= soon_ms + 200, "it opens nothing after its time");
    }
    assert!(jiff::Timestamp::now().as_millisecond() >= soon_ms, "and everything before");
}

/// The settings' token was a row of the store once, and valid for ever.
#[tokio::test]
async fn the_settings_token_is_compared_and_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let former = Keyring::new(store.clone(), "the former token");
    assert!(former.identify("the former token").await.unwrap().is_some());
    assert_eq!(former.identify("the former toke").await.unwrap(), None);
    let changed = Keyring::new(store.clone(), "the new token");
    assert_eq!(changed.identify("the former token").await.unwrap(), None);
    let none = Keyring::new(store.clone(), "");
    assert_eq!(none.identify("").await.unwrap(), None, "an api without a token in its settings lets nobody in by none");
    assert_eq!(store.tokens(None).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_issues_more_than_it_has() {
    let api = Api::start(true).await;
    let platform = api.token("platform").await;
    let admin = api.token("project/hello:admin").await;
    let build = json!({ "kind": "build", "project": "hello", "key": "k1" });
    for (who, principal, expected) in [
        (&platform, json!({ "kind": "operator" }), StatusCode::FORBIDDEN),
        (&platform, json!({ "kind": "platform" }), StatusCode::FORBIDDEN),
        (&platform, json!({ "kind": "cell", "cell": "c-1" }), StatusCode::FORBIDDEN),
        (&platform, json!({ "kind": "host", "host": "h-1" }), StatusCode::FORBIDDEN),
        (&platform, project("any", "admin"), StatusCode::CREATED),
        (&admin, project("other", "read"), StatusCode::FORBIDDEN),
        (&admin, json!({ "kind": "operator" }), StatusCode::FORBIDDEN),
        (&admin, project("hello", "admin"), StatusCode::CREATED),
        (&admin, build.clone(), StatusCode::CREATED),
    ] {
        let (status, said) = api.post_as(who, "/v1/tokens", wanted(principal.clone())).await;
        assert_eq!(status, expected, "{principal}: {said}");
        let expires = said["expires_ms"].is_i64();
        assert_eq!(expires, principal == build, "only a build's token expires by itself");
    }
    let foreign = api.post("/v1/tokens", wanted(project("other", "read"))).await.1;
    let (path, listed) = (format!("/v1/tokens/{}", foreign["id"].as_str().unwrap()), api.get_as(&admin, "/v1/tokens"));
    assert!(!listed.await.1.to_string().contains("other"), "another project's tokens are not listed");
    assert_eq!(api.get_as(&admin, "/v1/tokens?project=other").await.1, json!([]));
    assert_eq!(api.delete_as(&admin, &path).await.0, StatusCode::NOT_FOUND);
    let operators =
        api.app.store.tokens(None).await.unwrap().into_iter().find(|row| row.principal.kind() == "platform");
    let path = format!("/v1/tokens/{}", operators.unwrap().id);
    assert_eq!(api.delete_as(&platform, &path).await.0, StatusCode::NOT_FOUND);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_request_is_checked() {
    let api = Api::start(true).await;
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("x".repeat(101))),
        ("name", json!("a\u{1b}[2J")),
        ("expires_in_s", json!(0)),
        ("expires_in_s", json!(u64::MAX)),
        ("principal", json!({ "kind": "project", "project": "hello" })),
        ("principal", json!({ "kind": "root" })),
        ("scopes", json!(["admin"])),
    ] {
        let mut request = wanted(project("hello", "read"));
        request[field] = value.clone();
        let (status, said) = api.post("/v1/tokens", request).await;
        assert_eq!((status, class_of(&said)), (StatusCode::BAD_REQUEST, "usage"), "{field} {value}: {said}");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_what_the_caller_may_see() {
    let api = Api::start(false).await;
    for name in ["hello", "other"] {
        api.app.store.create_project(&name.parse().unwrap()).await.unwrap();
    }
    let mut foreign = row("b", "run-2", 2);
    foreign.project = "other".parse().unwrap();
    foreign.workflow_id = "build/other/b".into();
    for row in [row("a", "run-1", 1), foreign] {
        api.app.store.record_start(&row).await.unwrap();
    }
    let token = api.token("project/hello:read").await;
    let names = |listed: &Value, field: &str| {
        let names: Vec<_> =
            listed.as_array().unwrap().iter().map(|one| one[field].as_str().unwrap().to_owned()).collect();
        names
    };
    for (path, field, own, all) in [
        ("/v1/builds", "build_id", vec!["hello/a"], vec!["other/b", "hello/a"]),
        ("/v1/builds?project=hello", "build_id", vec!["hello/a"], vec!["hello/a"]),
        ("/v1/builds?project=other", "build_id", vec![], vec!["other/b"]),
        ("/v1/projects", "name", vec!["hello"], vec!["hello", "other"]),
    ] {
        assert_eq!(names(&api.get_as(&token, path).await.1, field), own, "{path}");
        assert_eq!(names(&api.get(path).await.1, field), all, "{path}");
    }
    for (there, absent) in
        [("/v1/builds/other%2Fb", "/v1/builds/other%2Fx"), ("/v1/projects/other", "/v1/projects/none")]
    {
        let (status, said) = api.get_as(&token, there).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let name = |path: &str| path.rsplit('/').next().unwrap().replace("%2F", "/");
        let expected = message_of(&api.get_as(&token, absent).await.1).replace(&name(absent), &name(there));
        assert_eq!(message_of(&said), expected, "what is hidden reads as what is absent");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_token_starts_its_build_and_no_other() {
    let api = Api::start(true).await;
    let token = api.token("build/hello/a").await;
    let start = |key: Option<&str>| {
        let mut body = json!({ "input": { "snapshot": snapshot() } });
        if let Some(key) = key {
            body["key"] = json!(key);
        }
        api.post_as(&token, "/v1/projects/hello/builds", body)
    };
    assert_eq!(start(Some("b")).await.0, StatusCode::FORBIDDEN);
    for key in [None, Some("a")] {
        let (status, said) = start(key).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "there is no Temporal to start it: {said}");
    }
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    assert_eq!(start(None).await.0, StatusCode::SERVICE_UNAVAILABLE, "it may join its build");
    assert_eq!(api.get_as(&token, "/v1/builds/hello%2Fa").await.0, StatusCode::OK);
    let ended = BuildRow { status: BuildStatus::Failed, ended_ms: Some(2), ..row("a", "run-1", 1) };
    api.app.store.record_build(&ended).await.unwrap();
    let (status, said) = start(None).await;
    assert_eq!((status, class_of(&said)), (StatusCode::FORBIDDEN, "refused"), "the build has ended");
    assert_eq!(api.get_as(&token, "/v1/builds/hello%2Fa").await.0, StatusCode::OK, "and can be seen");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_does_not_raise_its_own_limits() {
    let api = Api::start(false).await;
    api.app.store.create_project(&"hello".parse().unwrap()).await.unwrap();
    let view = json!({ "pool": "default", "version": 1, "members": [] });
    api.app.store.write_pool(&serde_json::from_value(view).unwrap()).await.unwrap();
    let admin = api.token("project/hello:admin").await;
    let put = |token: &str, body: Value| {
        answer(api.request_as(token, Method::PUT, "/v1/projects/hello/settings").json(&body))
    };
    let limited = json!({ "max_concurrent_builds": 2 });
    assert_eq!(put(TOKEN, limited.clone()).await.0, StatusCode::OK);
    for raised in
        [json!({}), json!({ "max_concurrent_builds": 3 }), json!({ "max_concurrent_builds": 2, "pool": "default" })]
    {
        let (status, said) = put(&admin, raised.clone()).await;
        assert_eq!((status, class_of(&said)), (StatusCode::FORBIDDEN, "refused"), "{raised}");
    }
    let own = json!({ "max_concurrent_builds": 2, "provenance": "max" });
    assert_eq!(put(&admin, own).await.0, StatusCode::OK);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_credentials_for_its_own_cells() {
    let api = Api::start(false).await;
    let (one, two) = (api.token("host/h-1").await, api.token("host/h-2").await);
    let (status, first) = api.post_as(&one, "/v1/cells/c-1/credential", Value::Null).await;
    assert_eq!((status, &first["principal"]), (StatusCode::CREATED, &json!({ "kind": "cell", "cell": "c-1" })));
    let (status, second) = api.post_as(&one, "/v1/cells/c-1/credential", Value::Null).await;
    assert_eq!(status, StatusCode::CREATED);
    let valid = async |issued: &Value| {
        let keyring = Keyring::new(api.app.store.clone(), "");
        keyring.identify(issued["token"].as_str().unwrap()).await.unwrap().is_some()
    };
    assert_eq!(api.post_as(&two, "/v1/cells/c-1/credential", Value::Null).await.0, StatusCode::CONFLICT);
    assert!(!valid(&first).await && valid(&second).await, "the former one is revoked");
    api.stop().await;
}

/// What it costs to find out whom a token stands for, with 10,000 of them in the store: one that was used in the last second, and one that
/// is looked up. `cargo test -p kiln --bin kiln -- --ignored --nocapture cost_of` prints it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for docs/PERFORMANCE.md"]
async fn cost_of_authorising_a_request() {
    const TOKENS: usize = 10_000;
    const ROUNDS: usize = 2_000;
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = sqlite(directory.path()).await;
    let mut secrets = Vec::new();
    for n in 0..TOKENS {
        let principal = format!("project/p{}:build", n % 500).parse().unwrap();
        let new = NewToken { principal, name: "ci".into(), issued_by: "test".into(), expires_ms: None };
        secrets.push(store.issue_token(&new).await.unwrap().secret);
    }
    let keyring = Keyring::new(store, "the settings token");
    let measured = async |what: &str, secret: &dyn Fn(usize) -> String| {
        let mut times = Vec::new();
        for n in 0..ROUNDS {
            let secret = secret(n);
            let begun = std::time::Instant::now();
            assert!(keyring.identify(&secret).await.unwrap().is_some());
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        println!("{what}: median {:.1} µs, p99 {:.1} µs", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    };
    measured("the settings' token", &|_| "the settings token".into()).await;
    measured("looked up in the store", &|n| secrets[n].clone()).await;
    measured("remembered", &|n| secrets[n % 10].clone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_reports_for_itself_alone() {
    let api = Api::start(false).await;
    let hint = json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4,
        "busy": 1, "epoch": 3, "reported_ms": 1000 });
    for principal in ["cell/c-2", "host/h-1", "operator", "platform", "project/hello:admin"] {
        let token = api.token(principal).await;
        let (status, said) = api.post_as(&token, "/v1/cells/hints", hint.clone()).await;
        assert_eq!((status, class_of(&said)), (StatusCode::FORBIDDEN, "refused"), "{principal}");
    }
    assert_eq!(api.get("/v1/cells").await.1, json!([]));
    let own = api.token("cell/c-1").await;
    assert_eq!(api.post_as(&own, "/v1/cells/hints", hint).await.0, StatusCode::NO_CONTENT);
    api.stop().await;
}
