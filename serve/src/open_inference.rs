//! The Open Inference Protocol, version 2, over HTTP: what KServe, Triton and their clients speak.
//!
//! As in the [specification](https://github.com/kserve/open-inference-protocol), with Triton's extensions for tensors as
//! [binary data](https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md) and
//! for [classification](https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::try_join_all;
use serde::de::{DeserializeSeed, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use support::classifier::{Classification, Classifier};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::openapi::{NoModel, NoPictures, Refusals, WithoutToken};
use crate::options::Bounds;
use crate::problem::Problem;
use crate::routes::App;
use crate::upload::{File, Picture, TEXTS, Upload, shortened, too_many};

/// What the routes are called together.
const PROTOCOL: &str = "Open Inference Protocol";

/// The model's only version: one that replaces it on disk is no other.
const VERSION: &str = "1";

/// Bytes of a body before its binary data: the JSON's.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The most inputs, outputs or dimensions that are read.
const FEW: usize = 16;

/// The longest identifier that is given back, in bytes.
const ID: usize = 1024;

/// Returns what anyone may ask.
pub(crate) fn health() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(server_is_live))
        .routes(routes!(server_is_ready))
}

/// Returns the others. Those of a version, of which there is one, are not described again.
pub(crate) fn routes() -> OpenApiRouter<Arc<App>> {
    let version = "/v2/models/{name}/versions/{version}";
    OpenApiRouter::new()
        .routes(routes!(server))
        .routes(routes!(metadata))
        .routes(routes!(model_is_ready))
        .routes(routes!(infer))
        .route(version, get(metadata))
        .route(&format!("{version}/ready"), get(model_is_ready))
        .route(&format!("{version}/infer"), post(infer))
}

/// A path that names the model which is served.
struct Served;

#[derive(Deserialize)]
struct Named {
    name: String,
    version: Option<String>,
}

impl FromRequestParts<Arc<App>> for Served {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let named = Path::<Named>::from_request_parts(parts, app).await.ok();
        let is_served = named.is_some_and(|Path(named)| {
            named.name == app.name() && named.version.is_none_or(|version| version == VERSION)
        });
        match is_served {
            true => Ok(Self),
            false => Err(Problem::new(
                StatusCode::NOT_FOUND,
                format!(
                    "no such model: expected `{}`, version {VERSION} or none",
                    app.name()
                ),
            )),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct Live {
    live: bool,
}

#[derive(Serialize, ToSchema)]
struct Ready {
    ready: bool,
}

#[derive(Serialize, ToSchema)]
struct Server {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 2],
}

#[derive(Serialize, ToSchema)]
struct ModelIsReady<'a> {
    name: &'a str,
    ready: bool,
}

#[derive(Serialize, ToSchema)]
struct Metadata<'a> {
    name: &'a str,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
}

#[derive(Serialize, ToSchema)]
struct TensorMetadata<'a> {
    name: &'static str,
    datatype: &'static str,
    /// -1 stands for any number.
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Labels<'a>>,
}

#[derive(Serialize, ToSchema)]
struct Labels<'a> {
    /// The classes, in the order of the probabilities.
    labels: &'a [String],
}

/// Says that the server runs.
#[utoipa::path(
    get,
    path = "/v2/health/live",
    tag = PROTOCOL,
    security(()),
    responses((status = OK, body = Live, description = "It does"), Refusals)
)]
async fn server_is_live() -> impl IntoResponse {
    Json(Live { live: true })
}

/// Says that pictures can be classified: a server that answers has its model.
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    tag = PROTOCOL,
    security(()),
    responses((status = OK, body = Ready, description = "They can"), Refusals)
)]
async fn server_is_ready() -> impl IntoResponse {
    Json(Ready { ready: true })
}

/// Says what serves.
#[utoipa::path(
    get,
    path = "/v2",
    tag = PROTOCOL,
    responses((status = OK, body = Server, description = "This server"), Refusals, WithoutToken)
)]
async fn server() -> impl IntoResponse {
    Json(Server {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "classification"],
    })
}

/// Says that the model can be asked.
#[utoipa::path(
    get,
    path = "/v2/models/{name}/ready",
    tag = PROTOCOL,
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = OK, body = ModelIsReady, description = "It can"),
        NoModel,
        Refusals,
        WithoutToken,
    )
)]
async fn model_is_ready(State(app): State<Arc<App>>, _: Served) -> Response {
    let name = app.name();
    Json(ModelIsReady { name, ready: true }).into_response()
}

/// Says what the model takes and gives.
#[utoipa::path(
    get,
    path = "/v2/models/{name}",
    tag = PROTOCOL,
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = OK, body = Metadata, description = "Its inputs, of which a request has one, and outputs"),
        NoModel,
        Refusals,
        WithoutToken,
    )
)]
async fn metadata(State(app): State<Arc<App>>, _: Served) -> Response {
    let classifier = app.batcher().classifier();
    let labels = classifier.classes();
    let tensor = |name, datatype, shape: &[i64]| TensorMetadata {
        name,
        datatype,
        shape: shape.to_vec(),
        parameters: None,
    };
    let output = |output: &Output| match output {
        Output::Probabilities => TensorMetadata {
            parameters: Some(Labels { labels }),
            ..tensor(output.name(), "FP32", &[-1, labels.len() as i64])
        },
        Output::Class => tensor(output.name(), "BYTES", &[-1]),
        Output::Novelty => tensor(output.name(), "FP32", &[-1]),
    };
    Json(Metadata {
        name: app.name(),
        versions: [VERSION],
        platform: "libtorch_safetensors",
        inputs: vec![
            tensor("image", "BYTES", &[-1]),
            tensor("pixels", "UINT8", &[-1, -1, -1, 3]),
        ],
        outputs: Output::of(&classifier).iter().map(output).collect(),
    })
    .into_response()
}

#[derive(Deserialize, ToSchema)]
struct InferenceRequest<'a> {
    /// Is given back.
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    /// One: `image` or `pixels`.
    #[serde(borrow, deserialize_with = "few")]
    #[schema(min_items = 1, max_items = 1)]
    inputs: Vec<Input<'a>>,
    /// Those to give; else all.
    #[serde(default, deserialize_with = "few")]
    #[schema(max_items = 16)]
    outputs: Vec<RequestedOutput>,
}

#[derive(Deserialize, ToSchema)]
struct Input<'a> {
    name: String,
    datatype: String,
    #[serde(deserialize_with = "few")]
    shape: Vec<u64>,
    #[serde(default)]
    parameters: Parameters,
    /// Strings of base64, or numbers from 0 to 255, in lists of any depth.
    #[serde(borrow)]
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize, ToSchema)]
struct RequestedOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Those of a request, an input or an output. Others there may be, such as a priority, mean nothing here.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
struct Parameters {
    /// An input's bytes after the JSON.
    binary_data_size: Option<usize>,
    /// Whether to give an output after the JSON.
    binary_data: Option<bool>,
    /// Whether to give all outputs so.
    binary_data_output: bool,
    /// How many classes to name in place of all probabilities.
    classification: usize,
    /// There is none.
    #[schema(value_type = Option<serde_json::Value>)]
    shared_memory_region: Option<IgnoredAny>,
}

/// A tensor's elements in JSON, in lists of any depth: strings, or bytes.
#[derive(Default)]
struct Data<'a> {
    texts: Vec<Cow<'a, str>>,
    bytes: Vec<u8>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Elements(&mut data).deserialize(json)?;
        Ok(data)
    }
}

/// Adds elements to a tensor's.
struct Elements<'a, 'b>(&'b mut Data<'a>);

impl<'a> Elements<'a, '_> {
    fn add<E: Error>(self, text: Cow<'a, str>) -> Result<(), E> {
        if self.0.texts.len() == TEXTS {
            return Err(E::custom(format_args!("more than {TEXTS} strings")));
        }
        self.0.texts.push(text);
        Ok(())
    }
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for Elements<'a, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Elements<'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strings, or numbers from 0 to 255, in lists")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Elements(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.add(text.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.add(text.to_owned().into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        let byte = u8::try_from(number)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        self.0.bytes.push(byte);
        Ok(())
    }
}

/// Reads a short list; a long one would take many times the memory of its JSON.
fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(json: D) -> Result<Vec<T>, D::Error> {
    struct Few<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {FEW}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut few = Vec::new();
            while let Some(element) = list.next_element()? {
                if few.len() == FEW {
                    return Err(A::Error::invalid_length(FEW + 1, &self));
                }
                few.push(element);
            }
            Ok(few)
        }
    }

    json.deserialize_seq(Few(PhantomData))
}

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

impl<'a> InferenceRequest<'a> {
    /// Reads a body; returns the binary data after its JSON as well.
    fn read(headers: &HeaderMap, upload: &'a Upload) -> Result<(Self, Bytes), Problem> {
        let bytes = upload.bytes();
        let length = match headers.get(JSON_LENGTH) {
            None => bytes.len(),
            Some(length) => {
                let length = length.to_str().ok().and_then(|length| length.parse().ok());
                let length = length.filter(|length| *length <= bytes.len());
                length.ok_or_else(|| {
                    let all = bytes.len();
                    malformed(format!(
                        "{JSON_LENGTH}: expected the JSON's bytes, of {all} in the body"
                    ))
                })?
            }
        };
        let request: Self = serde_json::from_slice(&bytes[..length])
            .map_err(|error| malformed(format!("expected an inference request: {error}")))?;
        if request.id.as_ref().is_some_and(|id| id.len() > ID) {
            return Err(malformed(format!(
                "`id`: expected one of at most {ID} bytes"
            )));
        }
        Ok((request, bytes.slice(length..)))
    }

    /// Returns the outputs to give, all where it names none.
    fn wanted(&self, classifier: &Classifier) -> Result<Vec<Wanted>, Problem> {
        let (all, binary) = (Output::of(classifier), self.parameters.binary_data_output);
        if self.outputs.is_empty() {
            let wanted = |&output| Wanted {
                output,
                binary,
                top: 0,
            };
            return Ok(all.iter().map(wanted).collect());
        }
        let wanted = |asked: &RequestedOutput| {
            let refused = |what: &str| {
                let name = shortened(&asked.name);
                Err(malformed(format!("output `{name}`: {what}")))
            };
            let Some(&output) = all.iter().find(|output| output.name() == asked.name) else {
                let names: Vec<_> = all.iter().map(|output| output.name()).collect();
                return refused(&format!("expected one of {}", names.join(", ")));
            };
            if asked.parameters.shared_memory_region.is_some() {
                return refused("there is no shared memory");
            }
            let top = asked.parameters.classification;
            if top > 0 && output != Output::Probabilities {
                return refused("`classification` is for `probabilities`");
            }
            Ok(Wanted {
                output,
                binary: asked.parameters.binary_data.unwrap_or(binary),
                top,
            })
        };
        self.outputs.iter().map(wanted).collect()
    }
}

impl Input<'_> {
    /// Returns the pictures in it, of which there is one at least; `binary` is what follows the JSON.
    fn pictures(self, binary: Bytes, bounds: &Bounds) -> Result<Vec<Picture>, Problem> {
        let name = shortened(&self.name);
        let refused = |what: &str| malformed(format!("input `{name}`: {what}"));
        let (count, size) = match (&*self.name, &*self.datatype, &self.shape[..]) {
            ("image", "BYTES", &[count]) => (count, None),
            ("pixels", "UINT8", &[count, height, width, 3]) => (count, Some([width, height])),
            ("image", ..) => return Err(refused("expected BYTES of shape [N]")),
            ("pixels", ..) => return Err(refused("expected UINT8 of shape [N, height, width, 3]")),
            _ => return Err(refused("expected `image` or `pixels`")),
        };
        if count == 0 {
            return Err(refused("expected one picture at least"));
        }
        if count > bounds.max_pictures.into() {
            return Err(too_many(bounds));
        }
        let count = count as usize;
        let (texts, bytes) = match (self.data, self.parameters.binary_data_size) {
            (Some(data), None) if binary.is_empty() => (Some(data.texts), data.bytes.into()),
            (None, Some(size)) if size == binary.len() => (None, binary),
            _ => {
                return Err(refused(&format!(
                    "expected either `data`, or `parameters.binary_data_size` and as many bytes after the JSON, where \
                     {} came",
                    binary.len()
                )));
            }
        };
        let name = |at: usize| format!("image {}", at + 1);
        match (size, texts) {
            (None, Some(texts)) if texts.len() == count && bytes.is_empty() => (0..count)
                .map(|at| Picture::from_base64(name(at), &texts[at]))
                .collect(),
            (None, Some(_)) => Err(refused(&format!("expected {count} strings of base64"))),
            (None, None) => {
                let what = "expected N elements, each after its length in 4 bytes, little-endian";
                let files = elements(bytes, count).ok_or_else(|| refused(what))?;
                let picture = |(at, bytes)| Picture {
                    name: name(at),
                    bytes,
                    size: None,
                };
                Ok(files.into_iter().enumerate().map(picture).collect())
            }
            (Some(size), texts) if texts.as_ref().is_none_or(Vec::is_empty) => {
                samples(bytes, count, size, name)
                    .ok_or_else(|| refused("expected as many bytes as its shape says, and pixels"))
            }
            (Some(_), _) => Err(refused("expected numbers")),
        }
    }
}

/// Splits binary data into elements, each of which comes after its length.
fn elements(mut bytes: Bytes, count: usize) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    for _ in 0..count {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        let _ = bytes.split_to(4);
        elements.push((length <= bytes.len()).then(|| bytes.split_to(length))?);
    }
    bytes.is_empty().then_some(elements)
}

/// Splits RGB samples into pictures of a size.
fn samples(
    mut bytes: Bytes,
    count: usize,
    [width, height]: [u64; 2],
    name: impl Fn(usize) -> String,
) -> Option<Vec<Picture>> {
    let size = [u32::try_from(width).ok()?, u32::try_from(height).ok()?];
    let told = u128::from(width) * u128::from(height) * 3 * count as u128;
    if told == 0 || told != bytes.len() as u128 {
        return None;
    }
    let each = bytes.len() / count;
    let picture = |at| Picture {
        name: name(at),
        bytes: bytes.split_to(each),
        size: Some(size),
    };
    Some((0..count).map(picture).collect())
}

/// What the model gives of each picture.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    Probabilities,
    /// The most probable one's name.
    Class,
    /// How unlike the pictures it was trained on it is; more than 1 is unlike.
    Novelty,
}

impl Output {
    /// Returns those of a model.
    fn of(classifier: &Classifier) -> &'static [Self] {
        match classifier.info().calibration {
            Some(_) => &[Self::Probabilities, Self::Class, Self::Novelty],
            None => &[Self::Probabilities, Self::Class],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Probabilities => "probabilities",
            Self::Class => "class",
            Self::Novelty => "novelty",
        }
    }
}

/// An output as it is asked for.
struct Wanted {
    output: Output,
    binary: bool,
    /// How many classes to name, the most probable first, in place of all probabilities; 0 for those.
    top: usize,
}

#[derive(Serialize, ToSchema)]
struct InferenceResponse<'a> {
    model_name: &'a str,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<Tensor>,
}

#[derive(Serialize, ToSchema)]
struct Tensor {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Values>,
}

#[derive(Serialize, ToSchema)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Values {
    Numbers(Vec<f32>),
    Texts(Vec<String>),
}

impl Values {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Numbers(numbers) => numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect(),
            Self::Texts(texts) => texts
                .iter()
                .flat_map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat())
                .collect(),
        }
    }
}

impl Wanted {
    /// Returns it for pictures, and adds to the binary data what goes there.
    fn tensor(&self, found: &[Classification], classes: &[String], binary: &mut Vec<u8>) -> Tensor {
        let (count, top) = (found.len(), self.top.min(classes.len()));
        let (shape, values) = match self.output {
            Output::Probabilities if top > 0 => {
                let named = found
                    .iter()
                    .flat_map(|found| most_probable(found, classes, top));
                (vec![count, top], Values::Texts(named.collect()))
            }
            Output::Probabilities => {
                let all = found.iter().flat_map(|found| &found.probabilities);
                let all = all.map(|&probability| probability as f32).collect();
                (vec![count, classes.len()], Values::Numbers(all))
            }
            Output::Class => {
                let names = found.iter().map(|found| found.class.clone()).collect();
                (vec![count], Values::Texts(names))
            }
            Output::Novelty => {
                // Known of each, as the model is calibrated.
                let novelties = found
                    .iter()
                    .map(|found| found.novelty.unwrap_or(f64::NAN) as f32);
                (vec![count], Values::Numbers(novelties.collect()))
            }
        };
        let mut tensor = Tensor {
            name: self.output.name(),
            datatype: match values {
                Values::Numbers(_) => "FP32",
                Values::Texts(_) => "BYTES",
            },
            shape,
            parameters: None,
            data: None,
        };
        if self.binary {
            let bytes = values.to_bytes();
            let binary_data_size = bytes.len();
            tensor.parameters = Some(BinarySize { binary_data_size });
            binary.extend(bytes);
        } else {
            tensor.data = Some(values);
        }
        tensor
    }
}

/// Returns classes as the classification extension has them: `probability:index:name`.
fn most_probable(found: &Classification, classes: &[String], count: usize) -> Vec<String> {
    let probability = |&at: &usize| found.probabilities[at];
    let mut order: Vec<_> = (0..classes.len()).collect();
    order.sort_by(|a, b| probability(b).total_cmp(&probability(a)));
    let named = |at| format!("{}:{at}:{}", probability(&at) as f32, classes[at]);
    order.into_iter().take(count).map(named).collect()
}

/// Classifies pictures, as clients of KServe and Triton ask for it.
#[utoipa::path(
    post,
    path = "/v2/models/{name}/infer",
    tag = PROTOCOL,
    params(("name" = String, Path, description = "The model's name")),
    request_body(content = InferenceRequest, description = "With `Inference-Header-Content-Length`, binary data may follow"),
    responses(
        (status = OK, description = "The outputs; binary data, where it is asked for, follows the JSON", content(
            (InferenceResponse = "application/json"),
            (File = "application/octet-stream"),
        )),
        NoModel,
        NoPictures,
        Refusals,
        WithoutToken,
    )
)]
async fn infer(
    State(app): State<Arc<App>>,
    _: Served,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let upload = app.read(&headers, body).await?;
    let classifier = app.batcher().classifier();
    let (request, binary) = InferenceRequest::read(&headers, &upload)?;
    let (id, wanted) = (request.id.clone(), request.wanted(&classifier)?);
    let [input] = <[Input<'_>; 1]>::try_from(request.inputs)
        .map_err(|_| malformed("expected one input: `image` or `pixels`"))?;
    let pictures = input.pictures(binary, app.bounds())?;
    let classify = |picture| app.batcher().classify(&classifier, picture);
    let found = try_join_all(pictures.iter().map(classify)).await?;
    let mut binary = Vec::new();
    let tensor = |wanted: &Wanted| wanted.tensor(&found, classifier.classes(), &mut binary);
    let response = InferenceResponse {
        model_name: app.name(),
        model_version: VERSION,
        id,
        outputs: wanted.iter().map(tensor).collect(),
    };
    if binary.is_empty() {
        return Ok(Json(response).into_response());
    }
    let mut body = serde_json::to_vec(&response)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = HeaderValue::from_static("application/octet-stream");
    let headers = [
        (JSON_LENGTH, body.len().into()),
        (header::CONTENT_TYPE, kind),
    ];
    body.append(&mut binary);
    Ok((headers, body).into_response())
}
