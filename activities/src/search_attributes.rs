//! The search attributes by which builds are found in Temporal. A namespace has to know them before the first build, or every build's
//! workflow task fails: control looks at its start.

use std::collections::BTreeMap;

use temporalio_client::Client;
use temporalio_client::grpc::OperatorService;
use temporalio_client::tonic::{Code, Request, Status};
use temporalio_common::protos::temporal::api::enums::v1::IndexedValueType;
use temporalio_common::protos::temporal::api::operatorservice::v1::{
    AddSearchAttributesRequest, ListSearchAttributesRequest,
};

/// All of them are of type Keyword.
pub const SEARCH_ATTRIBUTES: [&str; 3] = ["KilnProject", "KilnStatus", "KilnCell"];

#[derive(Debug, thiserror::Error)]
pub enum SearchAttributesError {
    #[error(
        "namespace {namespace} lacks the search attributes {} and they cannot be registered; have an administrator run: \
         temporal operator search-attribute create --namespace {namespace}{}",
        .missing.join(", "),
        .missing.iter().map(|name| format!(" --name {name} --type Keyword")).collect::<String>()
    )]
    Missing { namespace: String, missing: Vec<&'static str>, source: Status },
    #[error("search attribute {name} of namespace {namespace} is of type {is}, and has to be Keyword")]
    OtherType { namespace: String, name: &'static str, is: &'static str },
}

/// Registers those that the namespace lacks.
///
/// # Errors
/// When some are missing and cannot be registered, or one is there with another type.
pub async fn register(client: &Client, namespace: &str) -> Result<(), SearchAttributesError> {
    let there = list(client, namespace).await;
    let known = there.as_ref().map_or_else(|_| BTreeMap::new(), Clone::clone);
    for name in SEARCH_ATTRIBUTES {
        if let Some(is) = known.get(name).filter(|is| **is != IndexedValueType::Keyword) {
            let is = is.as_str_name().trim_start_matches("INDEXED_VALUE_TYPE_");
            return Err(SearchAttributesError::OtherType { namespace: namespace.to_owned(), name, is });
        }
    }
    let missing: Vec<&str> = SEARCH_ATTRIBUTES.into_iter().filter(|name| !known.contains_key(*name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    match add(client, namespace, &missing).await {
        Ok(()) => Ok(()),
        // Another control was quicker.
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(source) => Err(SearchAttributesError::Missing { namespace: namespace.to_owned(), missing, source }),
    }
}

async fn list(client: &Client, namespace: &str) -> Result<BTreeMap<String, IndexedValueType>, Status> {
    let request = ListSearchAttributesRequest { namespace: namespace.to_owned() };
    let answer = OperatorService::list_search_attributes(&mut client.clone(), Request::new(request)).await?;
    let typed = |(name, is)| (name, IndexedValueType::try_from(is).unwrap_or_default());
    Ok(answer.into_inner().custom_attributes.into_iter().map(typed).collect())
}

async fn add(client: &Client, namespace: &str, names: &[&str]) -> Result<(), Status> {
    let keyword = IndexedValueType::Keyword as i32;
    let request = AddSearchAttributesRequest {
        search_attributes: names.iter().map(|name| ((*name).to_owned(), keyword)).collect(),
        namespace: namespace.to_owned(),
    };
    OperatorService::add_search_attributes(&mut client.clone(), Request::new(request)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_the_command_that_helps() {
        let error = SearchAttributesError::Missing {
            namespace: "builds".into(),
            missing: vec!["KilnStatus", "KilnCell"],
            source: Status::permission_denied("no"),
        };
        assert_eq!(
            error.to_string(),
            "namespace builds lacks the search attributes KilnStatus, KilnCell and they cannot be registered; have an administrator run: \
             temporal operator search-attribute create --namespace builds --name KilnStatus --type Keyword --name KilnCell --type Keyword"
        );
    }
}
