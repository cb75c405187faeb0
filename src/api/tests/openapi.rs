//! The committed OpenAPI document is the served one.

use super::*;

#[test]
fn the_committed_document_is_the_served_one() {
    let served = crate::api::openapi::document().to_pretty_json().unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if std::env::var_os("KILN_UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == served,
        "docs/openapi.json is not what the api serves; run the tests with KILN_UPDATE_OPENAPI=1"
    );
}

/// Every route has a document, and every document a route that does not answer 404 or 405 to a bare request.
#[tokio::test(flavor = "multi_thread")]
async fn every_documented_path_is_served() {
    let api = Api::start(true).await;
    let document = serde_json::to_value(crate::api::openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12, "{}", paths.len());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{project}", "hello").replace("{build}", "hello%2Fa").replace("{id}", &snapshot());
            let path = path.replace("{pool}", "default").replace("{cell}", "c-1");
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, body) = answer(api.request(method.clone(), &path)).await;
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(!message_of(&body).contains("there is nothing here"), "{method} {path}");
        }
    }
    api.stop().await;
}
