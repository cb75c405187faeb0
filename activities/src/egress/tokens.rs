//! The token protocol of registries over the guarded client.
//!
//! Where credentials go: a registry's challenge names its token server, which may be on another host (Docker Hub's is
//! auth.docker.io), and docker sends the credentials of the registry there. So does Kiln: the registry could as well ask for them by
//! basic authentication. Two things docker does are not done: credentials are not sent over plain HTTP, unless the installation's own
//! settings name the host, and they do not follow a redirect to another origin.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use buildkit::{TokenAnswer, TokenRequest, TokenTransport, TransportError};
use futures::future::BoxFuture;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};

use super::policy::{Refused, Why};
use super::{Egress, Limits, Request, host_of};

/// Tokens of large registries have a few KiB. The daemon itself waits 60 s for one.
const LIMITS: Limits = Limits { bytes: 64 << 10, deadline: Duration::from_secs(25), redirects: 5 };

impl TokenTransport for Egress {
    fn send(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenAnswer, TransportError>> {
        Box::pin(async move {
            let answered = match self.token_request(request) {
                Ok(request) => Egress::send(self, request, LIMITS).await,
                Err(refused) => Err(refused.into()),
            };
            match answered {
                Ok(answer) => Ok(TokenAnswer { status: answer.status.as_u16(), body: answer.body }),
                Err(error) if error.is_final() => Err(TransportError::Refused(error.into())),
                Err(error) => Err(TransportError::Failed(error.into())),
            }
        })
    }
}

impl Egress {
    fn token_request(&self, token: TokenRequest) -> Result<Request, Refused> {
        let vouched = self.policy.vouches(&token.url, Some(&token.registry));
        if token.has_credential() && token.url.scheme() != "https" && !vouched {
            return Err(Refused { host: host_of(&token.url), why: Why::ClearText });
        }
        let method = if token.form.is_some() { Method::POST } else { Method::GET };
        let mut request = Request { registry: Some(token.registry), ..Request::new(method, token.url) };
        if let Some(form) = token.form {
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
            request.headers.insert(CONTENT_TYPE, form_type);
            request.body = Some(form.into());
        }
        if let Some((username, password)) = token.basic {
            let pair = STANDARD.encode(format!("{username}:{password}"));
            request.authorization = HeaderValue::try_from(format!("Basic {pair}")).ok().map(|mut value| {
                value.set_sensitive(true);
                value
            });
        }
        Ok(request)
    }
}
