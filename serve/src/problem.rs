//! What a request is refused with: RFC 9457's problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request was not answered, and what was expected (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `about:blank`: what kind of problem it is, the status says.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// What was found, and what was expected.
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    /// The bound that is passed, where a code has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    /// `detail` again, of a whole answer: what clients of the Open Inference Protocol show.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What a visitor of the page can meet, which the page says in the visitor's language.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Code {
    EmptyPicture,
    NotAPicture,
    PictureTooLarge,
    DamagedPicture,
    /// `limit` is in MiB.
    BodyTooLarge,
    /// `limit` is in pictures.
    TooManyPictures,
    TooBusy,
    TooLong,
    CollectionFull,
    NotKept,
    NotClassified,
}

/// The most of what is said that is sent, in characters: it may quote a request.
const DETAIL: usize = 500;

/// The type of a problem's body.
pub(crate) const PROBLEM: &str = "application/problem+json";

/// After how many seconds a client that was turned away may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into().chars().take(DETAIL).collect(),
            code: None,
            limit: None,
            error: None,
        }
    }

    /// Says which of the problems it is that the page has words for.
    pub(crate) fn code(self, code: Code) -> Self {
        let code = Some(code);
        Self { code, ..self }
    }

    /// Says the bound that is passed.
    pub(crate) fn limit(self, limit: u32) -> Self {
        let limit = Some(limit);
        Self { limit, ..self }
    }

    /// Says that a bound is reached, for now.
    pub(crate) fn busy(what: &str) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{what}: try again in a moment"),
        )
        .code(Code::TooBusy)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error = Some(self.detail.clone());
        let mut response = (status, axum::Json(Self { error, ..self })).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static(PROBLEM);
        headers.insert(header::CONTENT_TYPE, kind);
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            StatusCode::UNAUTHORIZED => {
                let bearer = HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, bearer);
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    /// Goes through all codes: one that is not here does not compile.
    fn after(code: Code) -> Option<Code> {
        Some(match code {
            Code::EmptyPicture => Code::NotAPicture,
            Code::NotAPicture => Code::PictureTooLarge,
            Code::PictureTooLarge => Code::DamagedPicture,
            Code::DamagedPicture => Code::BodyTooLarge,
            Code::BodyTooLarge => Code::TooManyPictures,
            Code::TooManyPictures => Code::TooBusy,
            Code::TooBusy => Code::TooLong,
            Code::TooLong => Code::CollectionFull,
            Code::CollectionFull => Code::NotKept,
            Code::NotKept => Code::NotClassified,
            Code::NotClassified => return None,
        })
    }

    #[test]
    fn the_page_says_every_code_in_chinese() {
        let (_, chinese) = include_str!("../page/page.js")
            .split_once("  zh: {")
            .unwrap();
        for code in iter::successors(Some(Code::EmptyPicture), |code| after(*code)) {
            let name = serde_json::to_string(&code).unwrap();
            let line = chinese
                .lines()
                .find_map(|line| line.trim().strip_prefix(&name));
            let line = line.unwrap_or_else(|| panic!("no words for {name}"));
            assert!(
                line.chars().filter(|c| !c.is_ascii()).count() > 4,
                "{name}{line}"
            );
        }
    }
}
