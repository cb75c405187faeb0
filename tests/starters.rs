//! What starters and namespaces bring along that Kiln did not choose.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use activities::search_attributes;
use temporalio_client::tonic::Request;
use temporalio_client::{UntypedWorkflow, WorkflowExecutionStatus, WorkflowStartOptions};
use temporalio_common::data_converters::{PayloadConverter, RawValue};
use temporalio_common::protos::temporal::api::workflowservice::v1::RegisterNamespaceRequest;
use temporalio_workflow::RetryPolicy;
use workflows::contract::{BuildInput, BuildStatus, FailureClass};

use crate::harness::plane::{Act, Plane};
use crate::harness::{temporal, tool};
use crate::placement::eventually;
use crate::workflows::until;

/// A starter that brings a retry policy and time limits of its own changes neither how often a failed build is tried nor what comes
/// after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_starters_own_policies_do_no_harm() {
    let plane = Plane::start(1, 2, 0, |input| match input.input.args.keys().next().map(String::as_str) {
        Some("FAIL") => Act::Fail(FailureClass::UserError),
        Some("HANG") => Act::Hang,
        _ => Act::Push("image".into()),
    })
    .await;
    let with = |arg: &str| {
        let mut input = plane.input("v1");
        input.args.insert(arg.into(), String::new());
        input
    };
    let start = async |key: &str, input: &BuildInput, limit: Duration| {
        let raw = RawValue::from_value(input, &PayloadConverter::serde_json());
        let options = WorkflowStartOptions::new("control", format!("build/shop/{key}"))
            .retry_policy(RetryPolicy::builder().maximum_attempts(5).build())
            .execution_timeout(limit)
            .build();
        plane.client.start_workflow(UntypedWorkflow::new("Build"), raw, options).await.unwrap()
    };
    let failing = start("fails", &with("FAIL"), Duration::from_secs(60)).await;
    assert_eq!(plane.result(failing.info()).await.unwrap_err().class, "user_error");
    assert_eq!(plane.seen.attempts.load(Ordering::Relaxed), 1, "a build that failed is not run again by Temporal");

    let hanging = start("hangs", &with("HANG"), Duration::from_secs(3)).await;
    until(|| plane.seen.running() == 1).await;
    let closed = async || hanging.describe(Default::default()).await.unwrap().status();
    eventually("the server ends it", async || Some(closed().await).filter(|s| *s == WorkflowExecutionStatus::TimedOut))
        .await;
    let failure = plane.build("hangs", &plane.input("v1")).await.unwrap_err();
    assert!(failure.message.contains("these fields differ: args"), "the key keeps its input: {}", failure.message);
    assert_eq!(plane.build("after", &plane.input("v1")).await.unwrap().status, BuildStatus::Succeeded);
}

/// A namespace that knows none of the search attributes, one of them, and one by another type.
#[tokio::test(flavor = "multi_thread")]
async fn control_registers_its_search_attributes_or_says_what_is_wrong() {
    let client = temporal::client().await;
    let add = async |namespace: &str, name: &str, kind: &str| {
        let mut command = Command::new(tool("temporal"));
        command.args(["operator", "search-attribute", "create", "--address", temporal::address()]);
        let done = command.args(["--namespace", namespace, "--name", name, "--type", kind]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    for (namespace, there, expected) in [
        ("bare", None, None),
        ("partial", Some(("KilnStatus", "Keyword")), None),
        (
            "wrong",
            Some(("KilnCell", "Int")),
            Some("search attribute KilnCell of namespace wrong is of type INT, and has to be Keyword"),
        ),
    ] {
        let register = RegisterNamespaceRequest {
            namespace: namespace.into(),
            workflow_execution_retention_period: Some(Duration::from_secs(24 * 3600).try_into().unwrap()),
            ..Default::default()
        };
        client.connection().workflow_service().register_namespace(Request::new(register)).await.unwrap();
        if let Some((name, kind)) = there {
            add(namespace, name, kind).await;
        }
        let registered = eventually("the namespace is known", async || {
            match search_attributes::register(&client, namespace).await {
                Err(error) if error.to_string().contains("cannot be registered") => None,
                ended => Some(ended.map_err(|error| error.to_string()).err()),
            }
        });
        assert_eq!(registered.await.as_deref(), expected);
        if expected.is_none() {
            search_attributes::register(&client, namespace).await.expect("all of them are there");
        }
    }
}
