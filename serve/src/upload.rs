//! A request's body, within bounds, and the pictures in it.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use http_body_util::BodyExt as _;
use image::RgbImage;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use support::Error;
use support::pipeline::decode_within;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder};
use utoipa::{PartialSchema as _, ToSchema};

use crate::options::Bounds;
use crate::problem::{Code, Problem};

/// Bytes in a unit of room.
const UNIT: usize = 1024;

/// How many times the size that is taken a body is still read through, so that its sender, who reads no answer before
/// it is sent, gets one.
const WORTH_AN_ANSWER: usize = 4;

/// The most strings that are read of a list: no more pictures are ever taken.
pub(crate) const TEXTS: usize = 1024;

/// The most of a picture's name that is kept, in characters.
const NAME: usize = 100;

/// Room for the bodies of all requests, and for requests that are worked on.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// A request's body, which takes room as long as it lives.
#[derive(Debug)]
pub(crate) struct Upload {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
    _request: OwnedSemaphorePermit,
}

/// A picture as it came.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) name: String,
    pub(crate) bytes: Bytes,
    /// Width and height where the bytes are RGB samples, row by row; none where they are a file's.
    pub(crate) size: Option<[u32; 2]>,
}

impl Picture {
    /// Reads the base64 of a file, alone or as pages have it: `data:image/png;base64,...`.
    pub(crate) fn from_base64(name: String, text: &str) -> Result<Self, Problem> {
        let text = text.rsplit_once(";base64,").map_or(text, |(_, data)| data);
        match STANDARD.decode(text) {
            Ok(bytes) => Ok(Self {
                name,
                bytes: bytes.into(),
                size: None,
            }),
            Err(error) => {
                let detail = format!("{name}: no base64: {error}");
                Err(Problem::new(StatusCode::BAD_REQUEST, detail))
            }
        }
    }

    /// Decodes it, where that takes no more bytes than the limit.
    pub(crate) fn decode(&self, limit: u64) -> support::Result<RgbImage> {
        let Some([width, height]) = self.size else {
            return decode_within(limit, &self.name, &self.bytes);
        };
        let fits = self.bytes.len() as u64 <= limit;
        let image = fits.then(|| RgbImage::from_raw(width, height, self.bytes.to_vec()));
        image.flatten().ok_or_else(|| Error::Image {
            name: self.name.clone(),
            reason: format!("expected 3 bytes a pixel, at most {} MiB", limit >> 20),
        })
    }
}

impl Room {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            bytes: semaphore(bounds.max_bodies as usize * 1024),
            requests: semaphore(bounds.max_requests as usize),
        }
    }

    /// Reads a body. Only then does its request count, so that slow ones keep nobody waiting.
    pub(crate) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        bounds: &Bounds,
    ) -> Result<Upload, Problem> {
        let most = bounds.max_body as usize * 1024 * 1024;
        let too_large = || {
            let detail = format!("a body has at most {} MiB", bounds.max_body);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
                .code(Code::BodyTooLarge)
                .limit(bounds.max_body)
        };
        let told = headers.get(header::CONTENT_LENGTH);
        let told = told.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let told = told.unwrap_or(0);
        if told > most.saturating_mul(WORTH_AN_ANSWER) {
            return Err(too_large());
        }
        let reading = async {
            if told > most {
                drain(body).await;
                return Err(too_large());
            }
            let upload = self.read_up_to(body, most, too_large).await?;
            // Said no sooner, as to a body that is too large.
            match is_encoded(headers) {
                true => Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the body is compressed: expected one without Content-Encoding",
                )),
                false => Ok(upload),
            }
        };
        match tokio::time::timeout(bounds.body_timeout, reading).await {
            Ok(read) => read,
            Err(_) => Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("a body has {:?} to arrive", bounds.body_timeout),
            )
            .code(Code::TooLong)),
        }
    }

    async fn read_up_to(
        &self,
        mut body: Body,
        most: usize,
        too_large: impl Fn() -> Problem,
    ) -> Result<Upload, Problem> {
        let mut bytes = Vec::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    format!("the body breaks off: {error}"),
                )
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            let taken = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let needed = (bytes.len() + data.len()).div_ceil(UNIT);
            if needed > taken {
                let more = Arc::clone(&self.bytes);
                let more = more.try_acquire_many_owned((needed - taken) as u32);
                let more = more.map_err(|_| Problem::busy("there is no room for more bodies"))?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        let request = Arc::clone(&self.requests).try_acquire_owned();
        let request = request.map_err(|_| Problem::busy("too many requests are being answered"))?;
        Ok(Upload {
            bytes: bytes.into(),
            _room: room,
            _request: request,
        })
    }
}

/// Returns whether a body is compressed, or else not what its type says.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Reads a body that nothing is made of.
async fn drain(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// A picture as it is: the bytes of a JPEG, PNG, GIF, WebP or BMP file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body that is taken as it is")]
pub(crate) struct File(Bytes);

/// Pictures in a form, in a field of this name each.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that `multer` reads")]
pub(crate) struct Form {
    #[schema(min_items = 1)]
    image: Vec<File>,
}

/// A picture in a form.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that `multer` reads")]
pub(crate) struct OneInForm {
    image: File,
}

/// A picture's bytes in base64; also as a `data:` URL.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a `Json` of one picture")]
pub(crate) struct OneInJson {
    image: String,
}

/// Pictures' bytes in base64, one or several; also as `data:` URLs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Json {
    #[schema(schema_with = one_or_more)]
    image: OneOrMore,
}

/// Not just any list is read: a string takes many times the memory of its JSON.
struct OneOrMore(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "base64, or a list of at most {TEXTS}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    if texts.len() == TEXTS {
                        return Err(de::Error::invalid_length(TEXTS + 1, &self));
                    }
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }

        json.deserialize_any(Texts)
    }
}

/// Describes [`OneOrMore`]; the macro has no place for the least number in it.
fn one_or_more() -> OneOfBuilder {
    let more = ArrayBuilder::new().items(String::schema());
    OneOfBuilder::new()
        .item(String::schema())
        .item(more.min_items(Some(1)))
}

impl Upload {
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the pictures in it, of which there is one at least.
    pub(crate) async fn pictures(
        &self,
        headers: &HeaderMap,
        bounds: &Bounds,
    ) -> Result<Vec<Picture>, Problem> {
        let kind = headers.get(header::CONTENT_TYPE);
        let kind = kind.map_or("application/octet-stream", |kind| {
            kind.to_str().unwrap_or("?")
        });
        let essence = kind
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let pictures = match essence.as_str() {
            "multipart/form-data" => self.parts(kind, bounds).await?,
            "application/json" => self.in_json(bounds)?,
            "application/octet-stream" => vec![self.whole()],
            image if image.starts_with("image/") => vec![self.whole()],
            _ => {
                return Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!(
                        "{essence}: expected a picture (image/*, application/octet-stream), multipart/form-data with \
                         fields `image`, or application/json: {{\"image\": \"base64\"}}"
                    ),
                ));
            }
        };
        if pictures.is_empty() || pictures.iter().all(|picture| picture.bytes.is_empty()) {
            let detail = "expected a picture: the body has none";
            let problem = Problem::new(StatusCode::BAD_REQUEST, detail);
            return Err(problem.code(Code::EmptyPicture));
        }
        if pictures.len() > bounds.max_pictures as usize {
            return Err(too_many(bounds));
        }
        Ok(pictures)
    }

    fn whole(&self) -> Picture {
        Picture {
            name: "image".into(),
            bytes: self.bytes.clone(),
            size: None,
        }
    }

    async fn parts(&self, kind: &str, bounds: &Bounds) -> Result<Vec<Picture>, Problem> {
        let malformed = |error: multer::Error| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("multipart/form-data: {error}"),
            )
        };
        let boundary = multer::parse_boundary(kind).map_err(malformed)?;
        let bytes = self.bytes.clone();
        let bytes = stream::once(async move { Ok::<_, Infallible>(bytes) });
        let mut parts = multer::Multipart::new(bytes, boundary);
        let mut pictures = Vec::new();
        while let Some(part) = parts.next_field().await.map_err(malformed)? {
            if part.name() != Some("image") {
                let name = shortened(part.name().unwrap_or_default());
                let detail = format!("a field {name:?}: expected pictures in fields `image`");
                return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
            }
            if pictures.len() == bounds.max_pictures as usize {
                return Err(too_many(bounds));
            }
            let name = shortened(part.file_name().unwrap_or("image"));
            let bytes = part.bytes().await.map_err(malformed)?;
            pictures.push(Picture {
                name,
                bytes,
                size: None,
            });
        }
        Ok(pictures)
    }

    fn in_json(&self, bounds: &Bounds) -> Result<Vec<Picture>, Problem> {
        let json: Json = serde_json::from_slice(&self.bytes).map_err(|error| {
            let detail = format!("{error}: expected {{\"image\": \"base64\"}}, or a list of them");
            Problem::new(StatusCode::BAD_REQUEST, detail)
        })?;
        let OneOrMore(texts) = json.image;
        if texts.len() > bounds.max_pictures as usize {
            return Err(too_many(bounds));
        }
        let picture =
            |(at, text): (usize, &String)| Picture::from_base64(format!("image {}", at + 1), text);
        texts.iter().enumerate().map(picture).collect()
    }
}

pub(crate) fn too_many(bounds: &Bounds) -> Problem {
    let detail = format!("a request has at most {} pictures", bounds.max_pictures);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        .code(Code::TooManyPictures)
        .limit(bounds.max_pictures)
}

/// Returns what is told of a name: no folders, nothing that does not show, not too much.
pub(crate) fn shortened(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.chars()
        .filter(|c| !c.is_control())
        .take(NAME)
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use clap::Parser as _;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::options::Options;

    fn bounds() -> Bounds {
        Options::parse_from([
            "serve",
            "m",
            "--max-body",
            "1",
            "--max-bodies",
            "1",
            "--max-pictures",
            "2",
            "--max-requests",
            "1",
        ])
        .bounds
    }

    async fn read(kind: &str, body: impl Into<Body>) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        let room = Room::new(&bounds());
        let upload = room.read(&headers, body.into(), &bounds()).await;
        let upload = upload.map_err(|problem| serde_json::to_string(&problem).unwrap())?;
        let pictures = upload.pictures(&headers, &bounds()).await;
        let pictures = pictures.map_err(|problem| serde_json::to_string(&problem).unwrap())?;
        let pair = |picture: Picture| (picture.name, picture.bytes.to_vec());
        Ok(pictures.into_iter().map(pair).collect())
    }

    const FORM: &str = "multipart/form-data; boundary=X";

    fn part(name: &str, file: &str, bytes: &str) -> String {
        format!(
            "--X\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\n{bytes}\r\n"
        )
    }

    #[tokio::test]
    async fn pictures_come_as_a_form_as_json_and_as_they_are() {
        let form =
            part("image", "../a/b.jpg", "one") + &part("image", "c.png", "two") + "--X--\r\n";
        let found = read(FORM, form).await.unwrap();
        assert_eq!(
            found,
            [
                ("b.jpg".into(), b"one".to_vec()),
                ("c.png".into(), b"two".to_vec())
            ]
        );
        let one = [("image".to_owned(), b"raw".to_vec())];
        assert_eq!(read("image/jpeg", "raw").await.unwrap(), one);
        assert_eq!(read("application/octet-stream", "raw").await.unwrap(), one);
        let json = r#"{"image": ["b25l", "data:image/png;base64,dHdv"]}"#;
        let found = read("application/json; charset=utf-8", json).await.unwrap();
        assert_eq!(
            found,
            [
                ("image 1".into(), b"one".to_vec()),
                ("image 2".into(), b"two".to_vec())
            ]
        );
    }

    #[tokio::test]
    async fn what_is_no_picture_or_too_much_is_refused_with_what_was_expected() {
        let three = part("image", "a", "1").repeat(3) + "--X--\r\n";
        let truncated = part("image", "a", "1");
        for (kind, body, expected) in [
            ("text/plain", "raw".to_owned(), "415"),
            ("image/png", String::new(), "the body has none"),
            (FORM, "--X--\r\n".into(), "the body has none"),
            (FORM, three, "at most 2 pictures"),
            (FORM, truncated, "multipart/form-data: "),
            (
                FORM,
                part("file", "a", "1") + "--X--\r\n",
                "expected pictures in fields `image`",
            ),
            ("multipart/form-data", "x".into(), "boundary"),
            ("application/json", "{".into(), "base64"),
            (
                "application/json",
                r#"{"image": "?"}"#.into(),
                "image 1: no base64",
            ),
            // Before any of them is looked at.
            (
                "application/json",
                r#"{"image": ["?", "?", "?"]}"#.into(),
                "at most 2 pictures",
            ),
            (
                "application/json",
                format!("{{\"image\": [{}7]}}", "\"\",".repeat(1025)),
                "a list of at most 1024",
            ),
            (
                "application/json",
                r#"{"picture": "b25l"}"#.into(),
                "unknown field",
            ),
            ("image/png", "x".repeat((1 << 20) + 1), "at most 1 MiB"),
        ] {
            let refused = read(kind, body).await.unwrap_err();
            assert!(refused.contains(expected), "{kind}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_compressed_body_is_refused_as_that() {
        let (room, bounds) = (Room::new(&bounds()), bounds());
        for (encoding, is_taken) in [
            ("gzip", false),
            ("gzip, identity", false),
            ("Identity", true),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().unwrap())]);
            let found = room.read(&headers, Body::from("x"), &bounds).await;
            assert_eq!(found.is_ok(), is_taken, "{encoding}");
            if let Err(problem) = found {
                assert_eq!(problem.into_response().status(), 415);
            }
        }
    }

    #[tokio::test]
    async fn a_refusal_does_not_quote_all_that_came() {
        let refused = read(
            "application/json",
            format!("{{\"{}\": 1}}", "x".repeat(100_000)),
        );
        let refused = refused.await.unwrap_err();
        assert!(
            refused.contains("unknown field") && refused.len() < 1000,
            "{}",
            refused.len()
        );
    }

    #[tokio::test]
    async fn bodies_take_room_until_they_are_dropped() {
        let (room, headers, bounds) = (Room::new(&bounds()), HeaderMap::new(), bounds());
        let read = |size| room.read(&headers, Body::from(vec![0; size]), &bounds);
        let first = read(700 << 10).await.unwrap();
        assert_eq!(room.bytes.available_permits(), 324);
        assert!(read(400 << 10).await.is_err());
        assert_eq!(room.bytes.available_permits(), 324);
        drop(first);
        assert!(read(1 << 20).await.is_ok());
    }

    #[tokio::test]
    async fn a_request_counts_from_when_its_body_is_there_until_it_is_dropped() {
        let (room, headers, bounds) = (Room::new(&bounds()), HeaderMap::new(), bounds());
        let read = |body| room.read(&headers, body, &bounds);
        let never = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let slow = read(never);
        tokio::pin!(slow);
        assert!((&mut slow).now_or_never().is_none());
        let first = read(Body::from("a picture")).await.unwrap();
        let refused = read(Body::from("another")).await.unwrap_err();
        let refused = serde_json::to_string(&refused).unwrap();
        assert!(refused.contains("429"), "{refused}");
        drop(first);
        assert!(read(Body::from("another")).await.is_ok());
    }
}
