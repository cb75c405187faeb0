//! Builds: what is refused before anything starts, lists, what is shown.

use super::*;

fn build(input: Value) -> Value {
    let mut whole = json!({ "snapshot": snapshot() });
    whole.as_object_mut().unwrap().extend(input.as_object().unwrap().clone());
    json!({ "key": "k1", "input": whole })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_build_is_refused_before_it_starts() {
    let api = Api::start(true).await;
    let cases = [
        (json!({ "tags": ["registry/name:a b"] }), "invalid tag"),
        (json!({ "platforms": ["linux/arm64"] }), "linux/arm64 cannot be built here: the cells are linux/amd64"),
        (json!({ "platforms": ["linux/amd64", "linux/amd64"] }), "one platform"),
        (json!({ "provenance": "everything" }), "must be min, max or none"),
        (json!({ "snapshot": "short" }), "must be 64 lower-case hex digits"),
        (json!({ "no_cache": "yes" }), "expected a boolean"),
    ];
    for (input, expected) in cases {
        let (status, body) = api.post("/v1/projects/hello/builds", build(input.clone())).await;
        assert_eq!((status, class_of(&body)), (StatusCode::BAD_REQUEST, "usage"), "{input}: {body}");
        assert!(message_of(&body).contains(expected), "{input}: {body}");
    }
    let (status, body) = api.post("/v1/projects/hello/builds", json!({ "key": "a b", "input": {} })).await;
    assert_eq!((status, class_of(&body)), (StatusCode::BAD_REQUEST, "usage"));
    let large = build(json!({ "args": { "A": "x".repeat(300 << 10) } }));
    assert_eq!(api.post("/v1/projects/hello/builds", large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_project_is_refused_where_projects_are_made_by_hand() {
    let api = Api::start(false).await;
    let (status, body) = api.post("/v1/projects/hello/builds", build(json!({}))).await;
    assert_eq!((status, class_of(&body)), (StatusCode::NOT_FOUND, "usage"));
    assert!(message_of(&body).contains("kiln projects create hello"), "{body}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_temporal_is_transient() {
    let api = Api::start(true).await;
    let (status, body) = api.post("/v1/projects/hello/builds", build(json!({}))).await;
    assert_eq!((status, class_of(&body)), (StatusCode::SERVICE_UNAVAILABLE, "transient"), "{body}");
    assert_eq!(api.get("/v1/builds").await, (StatusCode::OK, json!([])), "nothing is listed that did not start");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_listed_and_shown() {
    let api = Api::start(false).await;
    for row in [row("a", "run-1", 1), row("b/c", "run-2", 2)] {
        api.app.store.record_start(&row).await.unwrap();
    }
    let (_, listed) = api.get("/v1/builds?project=hello&status=running&limit=10").await;
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|build| build["build_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["hello/b/c", "hello/a"]);
    assert_eq!(api.get("/v1/builds?status=failed").await.1, json!([]));
    assert_eq!(api.get("/v1/builds?status=odd").await.0, StatusCode::BAD_REQUEST);

    let (status, shown) = api.get("/v1/builds/hello%2Fb%2Fc").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&shown["run_id"], &shown["input"]["snapshot"]), (&json!("run-2"), &json!(snapshot())));
    assert_eq!((&shown["steps"], &shown["runs"][0]["status"]), (&json!([]), &json!("running")));
    let (status, body) = api.get("/v1/builds/hello%2Fabsent").await;
    assert_eq!((status, message_of(&body)), (StatusCode::NOT_FOUND, "there is no build hello/absent"));
    assert_eq!(api.get("/v1/builds/hello").await.0, StatusCode::BAD_REQUEST);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_build_is_not_cancelled() {
    let api = Api::start(false).await;
    let ended = BuildRow { status: BuildStatus::Failed, ..row("a", "run-1", 1) };
    api.app.store.record_build(&ended).await.unwrap();
    let cancelled = api.post("/v1/builds/hello%2Fa/cancel", json!({})).await;
    assert_eq!(cancelled, (StatusCode::OK, json!({ "status": "failed" })));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_without_its_credentials_names_what_to_send() {
    let api = Api::start(false).await;
    let mut ended = BuildRow { status: BuildStatus::Failed, ..row("a", "run-1", 1) };
    ended.input.secrets_ref = Some("gone".parse().unwrap());
    ended.input.secret_ids = vec!["npm".into()];
    api.app.store.record_build(&ended).await.unwrap();
    let (status, body) = answer(api.request(Method::POST, "/v1/builds/hello%2Fa/retry")).await;
    assert_eq!((status, class_of(&body)), (StatusCode::CONFLICT, "refused"));
    assert!(message_of(&body).contains("the secrets npm"), "{body}");
    api.stop().await;
}
