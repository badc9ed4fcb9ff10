//! The OpenAPI document: what is said once for all routes. The routes themselves come from their
//! handlers' annotations.
//!
//! Called by [`super::routes`].

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// See the module.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Orlop",
        description = "Disks on a storage appliance: pools, volumes, hosts and attachments.\n\n\
            Over the unix socket the caller is known by its uid; over TLS by a bearer token, or by a client certificate that is a token. \
            Every error is `application/problem+json` with a `kind`; `retryable` says whether the same \
            request may succeed later. Unknown fields and query parameters are refused."
    ),
    modifiers(&Proofs),
    security(("token" = []), ("certificate" = [])),
    components(schemas(orlop_api::Problem, orlop_api::Event, orlop_api::When))
)]
pub struct Document;

struct Proofs;

impl Modify for Proofs {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        let certificate = SecurityScheme::MutualTls { description: None, deprecated: None, extensions: None };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", token);
        components.add_security_scheme("certificate", certificate);
    }
}
