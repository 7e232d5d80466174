//! What the interface's description (OpenAPI) says beside what stands at each handler.

use std::collections::BTreeMap;

use utoipa::openapi::response::Response;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi as _};

use crate::problem::{PROBLEM, Problem};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Picture classifier",
        description = "Classifies pictures with a model file. Whatever is refused is refused with a problem (RFC 9457)."
    ),
    components(schemas(Problem))
)]
struct Description;

/// Returns the description without any path.
pub(crate) fn description(wants_token: bool) -> OpenApi {
    let mut description = Description::openapi();
    if wants_token {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("token", scheme);
        description.security = Some(vec![SecurityRequirement::new("token", [""; 0])]);
    }
    description
}

/// How any request may be refused.
pub(crate) struct Refusals;

/// How a request may be refused where a token is wanted.
pub(crate) struct WithoutToken;

/// How pictures may be refused.
pub(crate) struct NoPictures;

/// How a model's name may be refused.
pub(crate) struct NoModel;

fn problems<const N: usize>(found: [(u16, &str); N]) -> BTreeMap<String, RefOr<Response>> {
    let response = |(status, about): (u16, &str)| {
        let schema = Ref::from_schema_name("Problem");
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response = ResponseBuilder::new()
            .description(about)
            .content(PROBLEM, content);
        (status.to_string(), response.build().into())
    };
    found.into_iter().map(response).collect()
}

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems([
            (403, "A browser asks for a page of another origin"),
            (421, "The request is for another host than this one"),
            (
                429,
                "As many requests or pictures as there may be; `Retry-After` says when to come again",
            ),
            (503, "The request took too long"),
        ])
    }
}

impl IntoResponses for WithoutToken {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems([(401, "The server wants a token, and this is none or another")])
    }
}

impl IntoResponses for NoModel {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems([(404, "No model of this name is served")])
    }
}

impl IntoResponses for NoPictures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems([
            (
                400,
                "The body breaks off, has no picture, or is not what its type says",
            ),
            (408, "The body took too long to arrive"),
            (413, "The body is too large, or has too many pictures"),
            (415, "The body's type is none of these"),
            (422, "No picture in it can be read"),
            (500, "Something failed; the server's output says what"),
        ])
    }
}
