//! The connection to Temporal, the same way in every role.
//!
//! TLS, client certificate, API key and headers come from Temporal's own client configuration
//! (`TEMPORAL_*` variables, profiles of `temporal.toml`), read again for each new connection.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use temporalio_client::envconfig::{ClientConfigProfile, ConfigError, DataSource, LoadClientConfigProfileOptions};
use temporalio_client::errors::ClientConnectError;
use temporalio_client::grpc::WorkflowService as _;
use temporalio_client::tonic::{Code, Request};
use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, GrpcCompression};
use temporalio_common::envconfig::{ClientConfig as ConfigFile, load_client_config_profile};
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::enums::v1::PendingActivityState;
use temporalio_common::protos::temporal::api::workflow::v1::PendingActivityInfo;
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeWorkflowExecutionRequest;
use workflows::contract::CellId;

use crate::failure::with_source;

/// The beginning of the names of Temporal's own variables.
const PREFIX: &str = "TEMPORAL_";
/// The variable that names Temporal's configuration file.
const CONFIG_FILE_VARIABLE: &str = "TEMPORAL_CONFIG_FILE";

/// Why there is no connection to Temporal.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("Temporal's client configuration cannot be used: {0}")]
    Config(String),
    #[error("cannot connect to Temporal at {address}")]
    Connect { address: String, source: ClientConnectError },
    #[error("Temporal's client cannot be made")]
    Client(#[source] temporalio_client::errors::ClientNewError),
}

impl ConnectError {
    /// Whether the same connection may succeed later. A refused credential or a broken
    /// configuration stays as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { source: ClientConnectError::SystemInfoCallError(status), .. } => {
                !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
            }
            Self::Connect { source, .. } => matches!(
                source,
                ClientConnectError::TonicTransportError(_) | ClientConnectError::DnsResolutionError { .. }
            ),
            Self::Config(_) | Self::Client(_) => false,
        }
    }
}

/// Where Temporal's frontend is, and where it is written how to talk to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// `host:port`.
    pub address: String,
    pub namespace: String,
    pub config: ClientConfig,
}

impl Frontend {
    /// A frontend that is spoken to without TLS or credentials, whatever the environment says.
    pub fn plain(address: &str, namespace: &str) -> Self {
        Self { address: address.to_owned(), namespace: namespace.to_owned(), config: ClientConfig::Unused }
    }

    /// How a connection to it is made.
    ///
    /// # Errors
    /// When Temporal's client configuration, or a certificate it names, cannot be read.
    pub fn options(&self, identity: &str) -> Result<ConnectionOptions, ConnectError> {
        let mut profile = self.config.profile().map_err(unusable)?;
        profile.address = Some(self.address.clone());
        if profile.tls.as_ref().is_some_and(|tls| tls.disable_host_verification) {
            let why = "it turns host verification off, which the Rust SDK cannot do; \
                       name the server's certificate authority (server_ca_cert_path) and its name (server_name) instead";
            return Err(ConnectError::Config(why.into()));
        }
        let mut options = ConnectionOptions::try_from(profile).map_err(unusable)?;
        options.identity = identity.to_owned();
        options.connect_timeout = Some(CONNECT_TIMEOUT);
        // The SDK's default, gzip, costs more than it saves within a data centre.
        options.grpc_compression = GrpcCompression::None;
        Ok(options)
    }

    /// Whether the wire is encrypted.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub fn is_tls(&self) -> Result<bool, ConnectError> {
        Ok(self.options("")?.tls_options.is_some())
    }
}

/// Temporal's own client configuration: `TEMPORAL_*` variables over a profile of `temporal.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientConfig {
    /// Neither variables nor files are read.
    #[default]
    Unused,
    Used {
        /// `None`: the file that `TEMPORAL_CONFIG_FILE` names, or the usual one of the user.
        file: Option<PathBuf>,
        /// `None`: the profile that `TEMPORAL_PROFILE` names, or `default`.
        profile: Option<String>,
    },
}

/// Temporal's own variables. The SDK would read all variables of the process, and panics at one that is not UTF-8.
fn variables_of_process() -> Result<HashMap<String, String>, ConfigError> {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let own = variables.filter(|(name, _)| name.starts_with(PREFIX));
    own.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(ConfigError::InvalidConfig(format!("the variable {name} is not UTF-8 text"))),
    })
    .collect()
}

impl ClientConfig {
    /// The profile with the variables over it.
    ///
    /// # Errors
    /// When a file or profile that was asked for is not there, cannot be read or contradicts a variable.
    pub fn profile(&self) -> Result<ClientConfigProfile, ConfigError> {
        self.profile_with(&variables_of_process()?)
    }

    fn profile_with(&self, variables: &HashMap<String, String>) -> Result<ClientConfigProfile, ConfigError> {
        let Self::Used { file, profile } = self else { return Ok(ClientConfigProfile::default()) };
        // The SDK takes a file that is named and absent for an empty one: TLS would be off unnoticed.
        let named = variables.get(CONFIG_FILE_VARIABLE).cloned();
        let named = file.clone().or_else(|| named.filter(|path| !path.is_empty()).map(PathBuf::from));
        if let Some(path) = named.filter(|path| !path.is_file()) {
            return Err(ConfigError::InvalidConfig(format!("{} is not there", path.display())));
        }
        let source = file.as_ref().map(|path| DataSource::Path(path.display().to_string()));
        let options = LoadClientConfigProfileOptions::builder()
            .maybe_config_source(source)
            .maybe_config_file_profile(profile.clone())
            .build();
        let mut profile = load_client_config_profile(options, Some(variables))?;
        // An empty variable counts as one that is not set, as in Kiln's own settings.
        for value in [&mut profile.address, &mut profile.namespace, &mut profile.api_key] {
            value.take_if(|text| text.is_empty());
        }
        Ok(profile)
    }

    /// The profile as a `temporal.toml` of its own, with the content of all files it names: for a machine
    /// that has neither these variables nor these files. `None` when nothing is configured.
    ///
    /// # Errors
    /// When the configuration or one of its files cannot be read.
    pub fn bundled(&self) -> Result<Option<Vec<u8>>, ConnectError> {
        let mut profile = self.profile().map_err(unusable)?;
        if profile == ClientConfigProfile::default() {
            return Ok(None);
        }
        if let Some(tls) = &mut profile.tls {
            for source in [&mut tls.client_cert, &mut tls.client_key, &mut tls.server_ca_cert].into_iter().flatten() {
                if let DataSource::Path(path) = source {
                    let read = std::fs::read(Path::new(path));
                    *source = DataSource::Data(read.map_err(|e| ConnectError::Config(format!("{path}: {e}")))?);
                }
            }
        }
        let profiles = HashMap::from([("default".to_owned(), profile)]);
        ConfigFile::builder().profiles(profiles).build().to_toml().map(Some).map_err(unusable)
    }
}

/// The SDK's own words: its errors are not `Send`.
fn unusable(error: ConfigError) -> ConnectError {
    ConnectError::Config(error.to_string())
}

/// How long a role waits for Temporal when both start at the same time.
pub const START_PATIENCE: Duration = Duration::from_secs(60);
/// For one connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What Temporal knows a builder by: its cell, and which of that cell's builders it is.
pub fn builder_identity(cell: &CellId, epoch: u64) -> String {
    format!("kiln-builder {cell} {epoch}")
}

/// The epoch of a builder of `cell`; `None` of anybody else.
pub(crate) fn builder_epoch(identity: &str, cell: &CellId) -> Option<u64> {
    let (name, epoch) = identity.rsplit_once(' ')?;
    (name.strip_prefix("kiln-builder ")? == cell.as_str()).then(|| epoch.parse().ok())?
}

/// The activities of a workflow that workers were given and have not answered.
pub(crate) struct Taken {
    pub run_id: String,
    pub activities: Vec<PendingActivityInfo>,
}

/// What the server knows to be taken; `None` when there is no such workflow. The latest run where `run_id` is empty.
pub(crate) async fn taken_activities(
    client: &Client,
    workflow_id: &str,
    run_id: &str,
) -> Result<Option<Taken>, String> {
    let execution = WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned() };
    let request =
        DescribeWorkflowExecutionRequest { namespace: client.options().namespace.clone(), execution: Some(execution) };
    let described = match client.clone().describe_workflow_execution(Request::new(request)).await {
        Ok(described) => described.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(with_source(&status)),
    };
    let run = described.workflow_execution_info.and_then(|info| info.execution);
    let mut activities = described.pending_activities;
    activities.retain(|activity| activity.state() == PendingActivityState::Started);
    Ok(Some(Taken { run_id: run.map_or_else(|| run_id.to_owned(), |run| run.run_id), activities }))
}

/// Connects to the frontend. `identity` is shown in histories: the role, and for a builder what
/// [`builder_identity`] says.
///
/// # Errors
/// When the client configuration is unusable, the frontend cannot be reached or does not trust this client.
pub async fn connect(frontend: &Frontend, identity: &str) -> Result<Client, ConnectError> {
    let options = frontend.options(identity)?;
    let connection = Connection::connect(options)
        .await
        .map_err(|source| ConnectError::Connect { address: frontend.address.clone(), source })?;
    Client::new(connection, ClientOptions::new(&frontend.namespace).build()).map_err(ConnectError::Client)
}

/// As [`connect`], trying again while Temporal cannot be reached, for [`START_PATIENCE`].
///
/// # Errors
/// As [`connect`].
pub async fn connect_patiently(frontend: &Frontend, identity: &str) -> Result<Client, ConnectError> {
    let deadline = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        match connect(frontend, identity).await {
            Err(error) if error.may_pass() && tokio::time::Instant::now() < deadline => {
                tracing::info!(error = &error as &dyn std::error::Error, "waiting for Temporal");
            }
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_is_known_by_its_cell_and_epoch() {
        let (cell, other): (CellId, CellId) = ("c-1".parse().unwrap(), "c".parse().unwrap());
        let identity = builder_identity(&cell, 7);
        assert_eq!(builder_epoch(&identity, &cell), Some(7));
        assert_eq!(builder_epoch(&identity, &other), None);
        for nobody in ["", "kiln-control", "kiln-builder c-1", "kiln-builder c-1 x"] {
            assert_eq!(builder_epoch(nobody, &cell), None, "{nobody:?}");
        }
    }

    fn variables(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const USED: ClientConfig = ClientConfig::Used { file: None, profile: None };

    fn options(profile: ClientConfigProfile) -> ConnectionOptions {
        ConnectionOptions::try_from(profile).unwrap()
    }

    #[test]
    fn variables_go_over_the_profile_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("temporal.toml");
        std::fs::write(&file, "[profile.prod]\naddress = \"a:1\"\nnamespace = \"n\"\napi_key = \"k\"\n").unwrap();
        let config = ClientConfig::Used { file: Some(file.clone()), profile: Some("prod".into()) };
        let over = variables(&[("TEMPORAL_NAMESPACE", "other"), ("TEMPORAL_ADDRESS", "")]);
        let profile = config.profile_with(&over).unwrap();
        assert_eq!((profile.address.as_deref(), profile.namespace.as_deref()), (None, Some("other")));
        assert!(options(profile).tls_options.is_some(), "an API key is sent over TLS");
        let absent = ClientConfig::Used { file: Some(file), profile: Some("absent".into()) };
        assert!(absent.profile_with(&variables(&[])).is_err());
    }

    #[test]
    fn a_configuration_that_was_named_and_is_not_there_is_an_error() {
        let named = variables(&[("TEMPORAL_CONFIG_FILE", "/no/such/temporal.toml")]);
        assert!(matches!(USED.profile_with(&named), Err(ConfigError::InvalidConfig(_))));
        let file = ClientConfig::Used { file: Some("/no/such/temporal.toml".into()), profile: None };
        let frontend = Frontend { config: file, ..Frontend::plain("127.0.0.1:7233", "default") };
        assert!(matches!(frontend.is_tls(), Err(ConnectError::Config(_))));
    }

    #[test]
    fn what_is_not_used_is_not_read() {
        let everything = variables(&[("TEMPORAL_TLS", "true"), ("TEMPORAL_API_KEY", "k")]);
        let profile = ClientConfig::Unused.profile_with(&everything).unwrap();
        assert!(options(profile).tls_options.is_none());
        assert!(options(USED.profile_with(&everything).unwrap()).tls_options.is_some());
        assert!(!Frontend::plain("127.0.0.1:7233", "default").is_tls().unwrap());
    }

    #[test]
    fn verification_is_never_turned_off() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("temporal.toml");
        std::fs::write(&file, "[profile.default.tls]\ndisable_host_verification = true\n").unwrap();
        let config = ClientConfig::Used { file: Some(file), profile: Some("default".into()) };
        let frontend = Frontend { config, ..Frontend::plain("127.0.0.1:7233", "default") };
        assert!(matches!(frontend.is_tls(), Err(ConnectError::Config(_))));
    }

    #[test]
    fn a_bundle_carries_the_certificates_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let (file, ca) = (dir.path().join("temporal.toml"), dir.path().join("ca.pem"));
        std::fs::write(&ca, "the authority").unwrap();
        let text = format!("[profile.default.tls]\nserver_ca_cert_path = \"{}\"\n", ca.display());
        std::fs::write(&file, text).unwrap();
        let config = |file: &Path| ClientConfig::Used { file: Some(file.to_owned()), profile: Some("default".into()) };
        let bundle = config(&file).bundled().unwrap().unwrap();
        let copy = dir.path().join("copy.toml");
        std::fs::write(&copy, bundle).unwrap();
        std::fs::remove_file(ca).unwrap();
        let profile = config(&copy).profile_with(&variables(&[])).unwrap();
        assert_eq!(profile.tls.unwrap().server_ca_cert, Some(DataSource::Data(b"the authority".to_vec())));
        assert_eq!(ClientConfig::Unused.bundled().unwrap(), None);
    }
}
