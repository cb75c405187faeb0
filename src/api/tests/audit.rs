//! The audit log: what is recorded of writes, and who sees it.

use super::*;

impl Api {
    /// Who, what, on what, result, note of each entry.
    async fn audited(&self, token: &str, query: &str) -> Vec<[String; 5]> {
        let (status, listed) = answer(self.request_as(token, Method::GET, &format!("/v1/audit{query}"))).await;
        assert_eq!(status, StatusCode::OK, "{listed}");
        let field = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let entries = listed.as_array().unwrap().iter();
        entries
            .map(|entry| ["principal", "action", "subject", "result", "note"].map(|name| field(entry, name)))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_recorded_whatever_came_of_it() {
    let api = Api::start(false).await;
    api.post("/v1/projects", json!({ "name": "hello" })).await;
    api.get("/v1/projects").await;
    let build = api.token("project/hello:build").await;
    let admin = api.token("project/hello:admin").await;
    let other = api.token("project/other:admin").await;
    let drain = "/v1/cells/c-1/drain";
    assert_eq!(answer(api.request_as(&build, Method::POST, drain).json(&json!({}))).await.0, StatusCode::FORBIDDEN);
    assert_eq!(api.post(drain, json!({})).await.0, StatusCode::NOT_FOUND);
    let hidden = answer(api.request_as(&other, Method::POST, "/v1/builds/hello%2Fa/cancel")).await.0;
    assert_eq!(hidden, StatusCode::NOT_FOUND);
    assert_eq!(answer(api.request_as("wrong", Method::POST, "/v1/projects")).await.0, StatusCode::UNAUTHORIZED);
    let issue = json!({ "name": "ci", "principal": { "kind": "project", "project": "hello", "scope": "read" } });
    let issued = api.post("/v1/tokens", issue).await.1;

    let all = api.audited(TOKEN, "").await;
    let entry = |texts: [&str; 5]| texts.map(str::to_owned);
    let id = issued["id"].as_str().unwrap();
    let expected = [
        entry(["operator", "POST /v1/projects", "", "ok", "hello"]),
        entry([
            "project/hello:build",
            "POST /v1/cells/{cell}/drain",
            "c-1",
            "refused",
            "a token of project hello with scope build may not do this",
        ]),
        entry(["operator", "POST /v1/cells/{cell}/drain", "c-1", "usage", "there is no cell c-1; see `kiln cells ls`"]),
        entry([
            "project/other:admin",
            "POST /v1/builds/{build}/cancel",
            "hello/a",
            "usage",
            "there is no build hello/a",
        ]),
        entry(["operator", "POST /v1/tokens", "", "ok", &format!("{id} for project/hello:read: ci")]),
    ];
    assert_eq!(all, expected);
    assert!(!format!("{all:?}").contains(issued["token"].as_str().unwrap()), "and no secret");

    let own = api.audited(&admin, "").await;
    assert_eq!(own, [expected[0].clone(), expected[1].clone(), expected[4].clone()], "a project sees its own");
    assert_eq!(api.audited(&other, "").await, [expected[3].clone()], "and what its own tokens tried elsewhere");
    assert_eq!(api.audited(TOKEN, "?project=hello").await, own);
    assert_eq!(api.audited(&admin, "?project=other").await, [[""; 5]; 0]);
    assert_eq!(api.audited(TOKEN, "?limit=2").await, all[..2]);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_on_after_its_last_entry() {
    let api = Api::start(false).await;
    for n in 0..5 {
        api.post("/v1/projects", json!({ "name": format!("p{n}") })).await;
    }
    let (_, first) = api.get("/v1/audit?limit=3").await;
    let last = &first[2];
    let (at_ms, id) = (last["at_ms"].as_i64().unwrap(), last["id"].as_str().unwrap());
    let (_, rest) = api.get(&format!("/v1/audit?after_ms={at_ms}&after={id}")).await;
    let notes = |page: &Value| page.as_array().unwrap().iter().map(|entry| entry["note"].clone()).collect::<Vec<_>>();
    assert_eq!([notes(&first), notes(&rest)].concat(), ["p0", "p1", "p2", "p3", "p4"]);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_are_measurements_and_not_recorded() {
    let api = Api::start(false).await;
    let hint = json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4,
        "busy": 1, "epoch": 3, "reported_ms": 1000 });
    assert_eq!(api.report(hint).await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.audited(TOKEN, "").await, [[""; 5]; 0]);
    api.stop().await;
}
