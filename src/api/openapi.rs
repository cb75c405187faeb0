//! The OpenAPI document, made from the handlers. Served at `/openapi.json` and committed as `docs/openapi.json`.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use workflows::contract::{AttemptId, BuildResult, LogRecord};

use super::builds::StatusEvent;
use super::{audit, builds, cells, error, oidc, pools, projects, secrets, snapshots, tokens};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Kiln",
        description = "Durable container builds. Every request but those for `/healthz`, `/openapi.json` and `/v1/oidc/token` needs a bearer token, and does what the token's \
                       principal may do (docs/security.md)."
    ),
    paths(
        super::healthz,
        projects::create,
        projects::list,
        projects::show,
        projects::set,
        snapshots::latest,
        snapshots::begin,
        snapshots::commit,
        secrets::seal,
        builds::start,
        builds::list,
        builds::show,
        builds::follow,
        builds::cancel,
        builds::retry,
        cells::list,
        cells::show,
        cells::drain,
        cells::undrain,
        cells::restart,
        cells::update,
        cells::clone,
        cells::delete,
        cells::report,
        pools::list,
        pools::show,
        pools::set,
        pools::remove,
        tokens::create,
        tokens::list,
        tokens::revoke,
        tokens::cell_credential,
        tokens::whoami,
        oidc::routes::exchange,
        oidc::routes::add,
        oidc::routes::list,
        oidc::routes::remove,
        audit::list,
    ),
    // What streams carry: no handler's signature names it.
    components(schemas(LogRecord, AttemptId, BuildResult, StatusEvent, error::ErrorBody)),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
