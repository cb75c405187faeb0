//! Credentials: sealed on arrival, nowhere in the clear, deleted in time.

use super::*;
use crate::api::{secrets, sweep};
use activities::sealed;

const CANARY: &str = "canary-4f1c9a";

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sealed_and_deleted() {
    let api = Api::start(true).await;
    let body = json!({ "registry_auth": { "registry:5000": { "username": "u", "password": CANARY } }, "secrets": { "npm": "Y2FuYXJ5" } });
    let (status, answer) = api.post("/v1/projects/hello/secrets", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let reference: workflows::contract::SecretsRef = serde_json::from_value(answer["secrets_ref"].clone()).unwrap();

    let project = api.app.store.project(&"hello".parse().unwrap()).await.unwrap().unwrap();
    let key = secrets::object_key(&project.id, &reference);
    let object = std::fs::read(api.s3.path(&key)).unwrap();
    assert!(!object.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()));
    let owner = sealed::SealedFor { project: project.id.clone(), reference: reference.clone() };
    let opened = sealed::open(&api.identity, &owner, &object).unwrap();
    assert_eq!(opened.secrets["npm"].reveal(), b"canary");

    let now = jiff::Timestamp::now().as_millisecond();
    sweep::sweep(&api.app.store, &api.app.objects, now).await.unwrap();
    assert!(api.s3.path(&key).exists(), "a build may still be about to start");
    let mut won = BuildRow { status: BuildStatus::Succeeded, ..row("a", "run-1", 1) };
    won.input.secrets_ref = Some(reference.clone());
    // Another project's build that names the reference changes nothing, nor does a success while another build is open.
    let thief = BuildRow { project: "thief".parse().unwrap(), workflow_id: "build/thief/a".into(), ..won.clone() };
    api.app.store.create_project(&thief.project).await.unwrap();
    api.app.store.record_build(&thief).await.unwrap();
    let mut open = BuildRow { status: BuildStatus::Running, ..row("b", "run-2", 1) };
    open.input.secrets_ref = Some(reference);
    api.app.store.record_build(&open).await.unwrap();
    sweep::sweep(&api.app.store, &api.app.objects, now).await.unwrap();
    assert!(api.s3.path(&key).exists(), "a build of another project named them");
    api.app.store.record_build(&won).await.unwrap();
    sweep::sweep(&api.app.store, &api.app.objects, now).await.unwrap();
    assert!(api.s3.path(&key).exists(), "another build still uses them");
    open.status = BuildStatus::Failed;
    api.app.store.record_build(&open).await.unwrap();
    sweep::sweep(&api.app.store, &api.app.objects, now).await.unwrap();
    assert!(!api.s3.path(&key).exists(), "deleted once no open build uses them");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_credentials_is_told_without_quoting_them() {
    let api = Api::start(true).await;
    for body in [
        json!({ "secrets": { "npm": format!("{CANARY} is no base64!") } }),
        json!({ "secrets": CANARY }),
        json!({ "registry_auth": { "host": { "pasword": CANARY } } }),
        json!({ CANARY: 1 }),
    ] {
        let (status, answer) = api.post("/v1/projects/hello/secrets", body).await;
        assert_eq!((status, class_of(&answer)), (StatusCode::BAD_REQUEST, "usage"));
        assert!(!answer.to_string().contains(CANARY), "{answer}");
    }
    api.stop().await;
}
