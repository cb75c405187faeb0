//! Every route of the OpenAPI document as every kind of principal: who may do what, as one committed table.

use std::fmt::Write as _;

use activities::store::NewToken;

use super::*;

/// Column, principal of the token.
const PRINCIPALS: [(&str, &str); 12] = [
    ("operator", "operator"),
    ("platform", "platform"),
    ("read", "project/hello:read"),
    ("build", "project/hello:build"),
    ("admin", "project/hello:admin"),
    ("other's", "project/other:admin"),
    ("one build", "build/hello/a"),
    ("another", "build/hello/z"),
    ("other's 1", "build/other/a"),
    ("cell", "cell/c-1"),
    ("cell 2", "cell/c-2"),
    ("host", "host/h-1"),
];

struct Column {
    heading: &'static str,
    token: Option<String>,
}

/// The settings' operator, each principal, and those without a valid token.
async fn columns(api: &Api) -> Vec<Column> {
    let mut columns = vec![Column { heading: "settings", token: Some(TOKEN.into()) }];
    for (heading, principal) in PRINCIPALS {
        columns.push(Column { heading, token: Some(api.token(principal).await) });
    }
    let principal = "operator".parse().unwrap();
    let past = NewToken { principal, name: "test".into(), issued_by: "test".into(), expires_ms: Some(1) };
    let expired = api.app.store.issue_token(&past).await.unwrap();
    columns.push(Column { heading: "expired", token: Some(expired.secret) });
    let revoked = api.app.store.issue_token(&NewToken { expires_ms: None, ..past }).await.unwrap();
    api.app.store.revoke_token(&revoked.row.id).await.unwrap();
    columns.push(Column { heading: "revoked", token: Some(revoked.secret) });
    columns.push(Column { heading: "wrong", token: Some("kiln_wrong".into()) });
    columns.push(Column { heading: "none", token: None });
    columns
}

/// What the paths name is there, so that a 404 is for what is hidden.
async fn furnish(api: &Api) {
    for project in ["hello", "other"] {
        api.app.store.create_project(&project.parse().unwrap()).await.unwrap();
    }
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    let view = json!({ "pool": "default", "version": 1, "members": [
        { "cell": "c-1", "platform": "linux/amd64", "slots": 4 }] });
    api.app.store.write_pool(&serde_json::from_value(view).unwrap()).await.unwrap();
    assert_eq!(api.report(hint()).await.0, StatusCode::NO_CONTENT);
}

fn hint() -> Value {
    json!({ "cell": "c-1", "pool": "default", "platform": "linux/amd64", "state": "ready", "slots": 4, "busy": 1,
        "epoch": 3, "generation": 2, "reported_ms": 1000 })
}

/// The path with what is there, and a body that gets as far as the handler.
async fn fill(api: &Api, method: &str, route: &str) -> (String, Value) {
    let id = match route {
        "/v1/tokens/{id}" => {
            let principal = "project/hello:read".parse().unwrap();
            let new = NewToken { principal, name: "to revoke".into(), issued_by: "test".into(), expires_ms: None };
            api.app.store.issue_token(&new).await.unwrap().row.id
        }
        _ => snapshot(),
    };
    let path = route.replace("{project}", "hello").replace("{build}", "hello%2Fa").replace("{id}", &id);
    let path = path.replace("{pool}", "default").replace("{cell}", "c-1");
    let path = match route.contains("{rule}") {
        true => {
            let rule = api.app.store.add_trust(&"hello".parse().unwrap(), "{}", "test", 1_000).await.unwrap().unwrap();
            path.replace("{rule}", &rule.id)
        }
        false => path,
    };
    let body = match (method, route) {
        ("post", "/v1/cells/hints") => hint(),
        ("post", "/v1/tokens") => {
            json!({ "name": "test", "principal": { "kind": "project", "project": "hello", "scope": "read" } })
        }
        _ => json!({}),
    };
    (path, body)
}

/// `ok` where the request got past the guard, whatever came of it.
async fn outcome(api: &Api, column: &Column, method: &str, route: &str) -> &'static str {
    let (path, body) = fill(api, method, route).await;
    let method: Method = method.to_uppercase().parse().unwrap();
    let mut request = api.client.request(method.clone(), format!("http://{}{path}", api.address));
    if let Some(token) = &column.token {
        request = request.bearer_auth(token);
    }
    if method != Method::GET {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    match response.status() {
        StatusCode::UNAUTHORIZED => "401",
        StatusCode::FORBIDDEN => "403",
        StatusCode::NOT_FOUND => {
            let body: Value = response.json().await.unwrap();
            // What an operator would not find either is not hidden.
            if message_of(&body).starts_with("there is no ") { "404" } else { "ok" }
        }
        _ => "ok",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_as_every_principal() {
    let api = Api::start(false).await;
    furnish(&api).await;
    let columns = columns(&api).await;
    let document = serde_json::to_value(crate::api::openapi::document()).unwrap();
    let documented = document["paths"].as_object().unwrap().iter();
    let mut routes: Vec<(String, String)> = documented
        .flat_map(|(route, methods)| methods.as_object().unwrap().keys().map(|method| (route.clone(), method.clone())))
        .collect();
    routes.extend([("/metrics", "get"), ("/openapi.json", "get")].map(|(r, m)| (r.to_owned(), m.to_owned())));
    routes.sort();

    let mut table = format!("{:<52}", "");
    columns.iter().for_each(|column| write!(table, "{:<11}", column.heading).unwrap());
    for (route, method) in &routes {
        write!(table, "\n{:<52}", format!("{} {route}", method.to_uppercase())).unwrap();
        for column in &columns {
            write!(table, "{:<11}", outcome(&api, column, method, route).await).unwrap();
        }
    }
    let table = table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(table);
    api.stop().await;
}
