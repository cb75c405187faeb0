//! Who gets in, and what is said to requests that make no sense.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_token_there_is_nothing() {
    let api = Api::start(true).await;
    let paths = ["/v1/projects", "/v1/builds", "/v1/builds/hello%2Fx/events", "/v1/cells", "/metrics", "/nothing/here"];
    for path in paths {
        for authorization in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic abc"), Some(TOKEN)] {
            let mut request = api.client.get(format!("http://{}{path}", api.address));
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            let (status, body) = answer(request).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} with {authorization:?}");
            let expected = json!({ "error": { "class": "refused", "message": "a valid bearer token is needed" } });
            assert_eq!(body, expected);
        }
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_document_need_no_token() {
    let api = Api::start(false).await;
    for path in ["/healthz", "/openapi.json"] {
        let response = api.client.get(format!("http://{}{path}", api.address)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    let metrics = api.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains(r#"kiln_http_request_seconds_count{method="GET",route="/healthz",status="200"}"#),
        "{metrics}"
    );
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_kept_as_hashes() {
    let api = Api::start(false).await;
    let files = std::fs::read_dir(api._directory.path()).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(
            !bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()),
            "{} holds the token",
            file.display()
        );
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_as_json() {
    let api = Api::start(false).await;
    let (status, body) = api.get("/v1/nothing").await;
    assert_eq!((status, class_of(&body)), (StatusCode::NOT_FOUND, "usage"));
    let (status, body) = answer(api.request(Method::DELETE, "/v1/projects")).await;
    assert_eq!((status, class_of(&body)), (StatusCode::METHOD_NOT_ALLOWED, "usage"));
    let (status, body) = answer(api.request(Method::POST, "/v1/projects").body("{")).await;
    assert_eq!((status, class_of(&body)), (StatusCode::BAD_REQUEST, "usage"));
    let (status, body) = answer(api.request(Method::POST, "/v1/projects").body(vec![b' '; 1 << 20])).await;
    assert_eq!((status, class_of(&body)), (StatusCode::PAYLOAD_TOO_LARGE, "refused"));
    let (status, body) = api.post("/v1/projects", json!({ "name": "Not A Name" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message_of(&body).contains("[a-z0-9][a-z0-9-]{0,62}"), "{body}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_made_once() {
    let api = Api::start(false).await;
    assert_eq!(api.get("/v1/projects/hello").await.0, StatusCode::NOT_FOUND);
    let (status, made) = api.post("/v1/projects", json!({ "name": "hello" })).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, again) = api.post("/v1/projects", json!({ "name": "hello" })).await;
    assert_eq!((status, &again), (StatusCode::OK, &made));
    assert_eq!(api.get("/v1/projects/hello").await, (StatusCode::OK, made.clone()));
    assert_eq!(api.get("/v1/projects").await, (StatusCode::OK, json!([made])));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_report_their_hints() {
    let api = Api::start(false).await;
    let hint = json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4,
        "busy": 1, "epoch": 3, "generation": 2, "sequence": 7 });
    assert_eq!(api.report(hint.clone()).await.0, StatusCode::NO_CONTENT);
    let mut older = hint.clone();
    (older["sequence"], older["busy"]) = (json!(6), json!(0));
    // No clock of a cell's counts.
    older["reported_ms"] = json!(253_402_300_799_999_u64);
    assert_eq!(api.report(older).await.0, StatusCode::NO_CONTENT);
    let (status, listed) = api.get("/v1/cells").await;
    assert_eq!((status, listed.as_array().unwrap().len()), (StatusCode::OK, 1));
    let told = hint.as_object().unwrap().iter().all(|(key, value)| listed[0][key] == *value);
    assert!(told, "{listed}");
    let age_ms = jiff::Timestamp::now().as_millisecond() - listed[0]["reported_ms"].as_i64().unwrap();
    assert!((0..60_000).contains(&age_ms), "the api's own time: {listed}");
    let mut with_facts = hint.clone();
    with_facts["facts"] = json!({ "version": "1.2", "steps": 4, "cached_steps": 3 });
    assert_eq!(api.report(with_facts).await.0, StatusCode::NO_CONTENT);
    let (_, shown) = api.get("/v1/cells/c-1").await;
    assert_eq!((&shown["facts"]["cached_steps"], &shown["builds"]), (&json!(3), &json!([])), "{shown}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_to_cells_are_checked_before_anything_is_asked() {
    let api = Api::start(false).await;
    assert_eq!(api.post("/v1/cells/nobody/drain", json!({})).await.0, StatusCode::NOT_FOUND);
    let hint = json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4,
        "busy": 1, "epoch": 3, "reported_ms": 1000 });
    api.report(hint).await;
    let (status, said) = api.post("/v1/cells/c-1/drain", json!({})).await;
    assert_eq!((status, class_of(&said)), (StatusCode::UNPROCESSABLE_ENTITY, "refused"));
    assert!(message_of(&said).contains("the last of pool default"), "{said}");
    let past = json!({ "force": true, "deadline": "2020-01-01T00:00:00Z" });
    let (status, said) = api.post("/v1/cells/c-1/drain", past).await;
    assert_eq!(
        (status, message_of(&said)),
        (StatusCode::BAD_REQUEST, "the deadline 2020-01-01T00:00:00Z is in the past")
    );
    let view = json!({ "pool": "default", "version": 1, "members": [
        { "cell": "c-1", "platform": "linux/amd64", "slots": 4 }, { "cell": "c-2", "platform": "linux/amd64", "slots": 4 }] });
    api.app.store.write_pool(&serde_json::from_value(view).unwrap()).await.unwrap();
    let now_ms = jiff::Timestamp::now().as_millisecond();
    for (what, cell, reported_ms, expected) in [
        ("a cell that fell silent", "c-2", now_ms - 60_000, StatusCode::UNPROCESSABLE_ENTITY),
        ("a cell that left the pool", "c-3", now_ms, StatusCode::UNPROCESSABLE_ENTITY),
        ("another cell; there is no Temporal", "c-2", now_ms, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let hint = json!({ "cell": cell, "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4,
            "busy": 0, "epoch": 1, "reported_ms": reported_ms });
        api.app.store.report_cell(&serde_json::from_value(hint).unwrap()).await.unwrap();
        assert_eq!(api.post("/v1/cells/c-1/drain", json!({})).await.0, expected, "{what}");
    }
    let (status, said) = api.post("/v1/cells/c-1/drain", json!({ "force": true })).await;
    assert_eq!(
        (status, class_of(&said)),
        (StatusCode::SERVICE_UNAVAILABLE, "transient"),
        "there is no Temporal: {said}"
    );
    assert_eq!(api.post("/v1/cells/c-1/update", json!({})).await.0, StatusCode::BAD_REQUEST);
    let digest = "0".repeat(64);
    for image in
        ["/var/lib/kiln/image".into(), format!("/image@sha256:{digest}"), format!("../v2@sha256:{digest}"), "v2".into()]
    {
        let (status, said) = api.post("/v1/cells/c-1/update", json!({ "image": image, "force": true })).await;
        assert_eq!((status, class_of(&said)), (StatusCode::BAD_REQUEST, "usage"), "{image}: {said}");
    }
    for (body, status, expected) in [
        (json!({}), StatusCode::BAD_REQUEST, "missing field `as`"),
        (json!({ "as": "No Cell" }), StatusCode::BAD_REQUEST, "must match [a-z0-9][a-z0-9-]{0,62}"),
        (
            json!({ "as": "c-2" }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "there is a cell c-2 already, it is ready: name the clone otherwise",
        ),
        (json!({ "as": "c-9" }), StatusCode::SERVICE_UNAVAILABLE, ""),
    ] {
        let (answered, said) = api.post("/v1/cells/c-1/clone", body).await;
        assert!(answered == status && message_of(&said).contains(expected), "{answered}: {said}");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_shown_with_what_their_cells_said_and_unknown_ones_are_refused() {
    let api = Api::start(false).await;
    let (status, body) = api.get("/v1/pools/absent").await;
    assert_eq!((status, message_of(&body)), (StatusCode::NOT_FOUND, "there is no pool absent; there are none yet"));
    let view = json!({ "pool": "default", "version": 2, "members": [
        { "cell": "c-1", "platform": "linux/amd64", "slots": 4 }, { "cell": "c-2", "platform": "linux/amd64", "slots": 2 }] });
    api.app.store.write_pool(&serde_json::from_value(view).unwrap()).await.unwrap();
    let hint = json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "draining", "slots": 4,
        "busy": 3, "epoch": 1, "reported_ms": 1000 });
    assert_eq!(api.report(hint).await.0, StatusCode::NO_CONTENT);
    let (status, pool) = api.get("/v1/pools/default").await;
    assert_eq!((status, &pool["version"], &pool["settings"]["homes"]), (StatusCode::OK, &json!(2), &json!(3)));
    let cells: Vec<_> = (0..2).map(|n| (&pool["cells"][n]["state"], &pool["cells"][n]["busy"])).collect();
    assert_eq!(cells, [(&json!("draining"), &json!(3)), (&json!("ready"), &Value::Null)]);
    assert_eq!(api.get("/v1/pools").await, (StatusCode::OK, json!([pool])));

    let put = async |path: &str, body: Value| answer(api.request(Method::PUT, path).json(&body)).await;
    for (body, status, expected) in [
        (json!({ "homes": 9 }), StatusCode::UNPROCESSABLE_ENTITY, "homes is 9: must be 1 to 8"),
        (json!({ "overflow": ["absent"] }), StatusCode::NOT_FOUND, "there is no pool absent; there are: default"),
        (
            json!({ "tenancy": "project" }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "no cell of pool default belongs to a project",
        ),
        (json!({ "home": 2 }), StatusCode::BAD_REQUEST, "unknown field `home`"),
        (json!({ "homes": 2 }), StatusCode::SERVICE_UNAVAILABLE, "Temporal did not do what was asked"),
    ] {
        let (answered, body) = put("/v1/pools/default/settings", body).await;
        assert!(answered == status && message_of(&body).contains(expected), "{answered} {body}");
    }
    let (status, body) = answer(api.request(Method::DELETE, "/v1/pools/default/cells/c-9")).await;
    assert_eq!((status, message_of(&body)), (StatusCode::NOT_FOUND, "pool default has no cell c-9"));

    api.post("/v1/projects", json!({ "name": "hello" })).await;
    let (status, body) = put("/v1/projects/hello/settings", json!({ "max_concurrent_builds": 0 })).await;
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && message_of(&body).contains("must be 1 or more"), "{body}");
    let (status, body) = put("/v1/projects/hello/settings", json!({ "pool": "absent" })).await;
    assert!(status == StatusCode::NOT_FOUND && message_of(&body).contains("there are: default"), "{body}");
    let settings = json!({ "pool": "default", "max_concurrent_builds": 2 });
    let (status, body) = put("/v1/projects/hello/settings", settings.clone()).await;
    assert_eq!((status, &body["settings"]), (StatusCode::OK, &settings));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_set_shown_and_kept_to() {
    let api = Api::start(false).await;
    api.post("/v1/projects", json!({ "name": "hello" })).await;
    let set =
        async |settings: Value| answer(api.request(Method::PUT, "/v1/projects/hello/settings").json(&settings)).await;
    for (field, value) in [("builds_per_minute", json!(0)), ("tags_per_build", json!(101)), ("open_builds", json!(-1))]
    {
        assert_eq!(set(json!({ field: value })).await.0, StatusCode::BAD_REQUEST, "{field}");
    }
    let quotas = json!({ "builds_per_minute": 2, "open_builds": 50, "tags_per_build": 1, "snapshot_bytes": 10,
        "event_streams": 1 });
    let (status, body) = set(quotas.clone()).await;
    assert_eq!((status, &body["settings"]), (StatusCode::OK, &quotas));

    let start = async |tags: Value| {
        let body = json!({ "input": { "snapshot": super::snapshot(), "tags": tags } });
        let response = api.request(Method::POST, "/v1/projects/hello/builds").json(&body).send().await.unwrap();
        let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().parse::<u64>().unwrap());
        (response.status(), after)
    };
    assert_eq!(
        start(json!(["127.0.0.1:5000/hello:1", "127.0.0.1:5000/hello:2"])).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    // There is no Temporal here: what passes the quotas fails there.
    let mut over = None;
    for _ in 0..5 {
        match start(json!(["127.0.0.1:5000/hello:1"])).await {
            (StatusCode::TOO_MANY_REQUESTS, after) => over = Some(after.unwrap()),
            (status, _) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
        }
    }
    assert!((1..=60).contains(&over.unwrap()), "within five there is one over two a minute, and it says when");

    for n in 0..50 {
        api.app.store.record_build(&super::row(&format!("k{n}"), &format!("run-{n}"), n)).await.unwrap();
    }
    assert_eq!(start(json!(["127.0.0.1:5000/hello:1"])).await.0, StatusCode::TOO_MANY_REQUESTS, "50 open builds");
    let follow = async || api.request(Method::GET, "/v1/builds/hello%2Fk1/events").send().await.unwrap();
    let one = follow().await;
    assert_eq!((one.status(), follow().await.status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
    drop(one);
    let freed = async {
        while follow().await.status() != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), freed).await.expect("a closed stream counts no more");
    api.stop().await;
}
