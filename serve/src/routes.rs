//! What is answered: the page and the interface for programs.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use image::ImageFormat;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use support::classifier::Classification;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::batcher::Batcher;
use crate::collection::Collection;
use crate::examples::Examples;
use crate::host::Hosts;
use crate::metrics::Metrics;
use crate::open_inference;
use crate::openapi::{self, NoPictures, Refusals, WithoutToken};
use crate::options::{Bounds, Options};
use crate::problem::{Code, PROBLEM, Problem};
use crate::upload::{self, Form, OneInForm, OneInJson, Picture, Room, Upload};

/// Where the interface can be tried.
const DOCS: &str = "/docs";

/// What a page of this server may load and do.
const POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'";

/// The same for Swagger UI, which gives elements styles of their own.
const SWAGGER_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; \
                              frame-ancestors 'none'";

/// All that requests share.
pub(crate) struct App {
    name: String,
    token: Option<String>,
    bounds: Bounds,
    batcher: Batcher,
    collection: Option<Collection>,
    examples: Examples,
    metrics: Arc<Metrics>,
    hosts: Hosts,
    room: Room,
}

impl App {
    pub(crate) fn new(
        options: &Options,
        batcher: Batcher,
        collection: Option<Collection>,
        examples: Examples,
        metrics: Arc<Metrics>,
    ) -> Self {
        let bounds = options.bounds;
        Self {
            name: options.model_name(),
            token: options.token.clone(),
            bounds,
            batcher,
            collection,
            examples,
            metrics,
            hosts: Hosts::new(options),
            room: Room::new(&bounds),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub(crate) fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Reads a request's body.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Upload, Problem> {
        self.room.read(headers, body, &self.bounds).await
    }

    /// Returns a body's only picture, and the body, which takes room until it is dropped.
    async fn one_picture(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Picture, Upload), Problem> {
        let upload = self.read(headers, body).await?;
        let mut pictures = upload.pictures(headers, &self.bounds).await?;
        match (pictures.pop(), pictures.is_empty()) {
            (Some(picture), true) => Ok((picture, upload)),
            _ => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "expected one picture",
            )),
        }
    }

    /// Returns all routes.
    pub(crate) fn routes(self: Arc<Self>) -> Router {
        let wants_token = middleware::from_fn_with_state(Arc::clone(&self), checked);
        let interface = OpenApiRouter::new()
            .routes(routes!(model))
            .routes(routes!(predict))
            .routes(routes!(explain))
            .routes(routes!(collect))
            .routes(routes!(example))
            .routes(routes!(metrics))
            .merge(open_inference::routes())
            .route_layer(wants_token);
        let page = Router::new()
            .route(
                "/",
                get(|| {
                    file(
                        "text/html; charset=utf-8",
                        include_str!("../page/index.html"),
                    )
                }),
            )
            .route(
                "/page.css",
                get(|| file("text/css", include_str!("../page/page.css"))),
            )
            .route(
                "/page.js",
                get(|| file("text/javascript", include_str!("../page/page.js"))),
            );
        let (described, description) =
            OpenApiRouter::with_openapi(openapi::description(self.token.is_some()))
                .routes(routes!(alive))
                .routes(routes!(ready))
                .merge(open_inference::health())
                .merge(interface)
                .split_for_parts();
        let to_try = SwaggerUi::new(DOCS)
            // By itself it asks an outside host whether the description is valid.
            .config(Config::default().validator_url("none"))
            .url("/openapi.json", description);
        let of_all = middleware::from_fn_with_state(Arc::clone(&self), bounded);
        page.merge(described)
            .merge(to_try)
            .fallback(|| async {
                Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")
            })
            .method_not_allowed_fallback(|method: Method| async move {
                let detail = format!("this path does not take {method}");
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
            })
            .layer(of_all)
            .with_state(self)
    }
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}

/// Keeps the bounds, counts the answer, and tells browsers what not to do with it.
async fn bounded(
    State(app): State<Arc<App>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let answer = async {
        if let Err(problem) = app.hosts.check(&request) {
            return problem.into_response();
        }
        if comes_from_elsewhere(request.headers()) {
            let detail = "a page of another origin asks: expected one of this server, or a program";
            return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
        }
        let limit = app.bounds.request_timeout;
        match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let detail = format!("the request took longer than {limit:?}");
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
                problem.code(Code::TooLong).into_response()
            }
        }
    };
    let mut response = answer.await;
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    app.metrics
        .answer(route, response.status().as_u16(), start.elapsed());
    let policy = match route.starts_with(DOCS) {
        true => SWAGGER_POLICY,
        false => POLICY,
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns whether a browser says that a page of another origin asks.
fn comes_from_elsewhere(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let authority =
        |origin: &HeaderValue| Some(origin.to_str().ok()?.split_once("://")?.1.to_owned());
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    authority(origin).as_deref() != host
}

/// Lets in whoever has the token, where one is wanted.
async fn checked(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(token) = &app.token else {
        return next.run(request).await;
    };
    let said = request.headers().get(header::AUTHORIZATION);
    let said = said.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if said.is_some_and(|said| said.ct_eq(token.as_bytes()).into()) {
        return next.run(request).await;
    }
    let detail = "expected the header `Authorization: Bearer TOKEN`, with the token that the server was started with";
    Problem::new(StatusCode::UNAUTHORIZED, detail).into_response()
}

/// Says that the server runs.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "Server",
    security(()),
    responses((status = OK, body = String, description = "It does"), Refusals)
)]
async fn alive() -> &'static str {
    "alive\n"
}

/// Says that pictures can be classified: a server that answers has its model.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Server",
    security(()),
    responses((status = OK, body = String, description = "They can"), Refusals)
)]
async fn ready() -> &'static str {
    "ready\n"
}

/// What a model file says of itself.
#[derive(Serialize, ToSchema)]
struct Model<'a> {
    name: &'a str,
    classes: &'a [String],
    /// Pixels to a side.
    input_size: u32,
    /// Whether a picture can be of several classes, or of none.
    multi_label: bool,
    /// Of several labels per picture: the least probability at which one is taken for one of a class.
    #[schema(required)]
    threshold: Option<f64>,
    /// Whether it knows images unlike those that it was trained on.
    tells_unlike: bool,
    /// Whether it keeps pictures that somebody says the class of.
    collects: bool,
    /// On pictures that it was not trained on.
    #[schema(required)]
    accuracy: Option<f64>,
    /// The names of the pictures at `/v1/examples/{index}`.
    examples: Vec<&'a str>,
}

/// Says what the model is and what it tells apart.
#[utoipa::path(
    get,
    path = "/v1/model",
    tag = "Pictures",
    responses((status = OK, body = Model, description = "What the model says of itself"), Refusals, WithoutToken)
)]
async fn model(State(app): State<Arc<App>>) -> Response {
    let classifier = app.batcher.classifier();
    let info = classifier.info();
    let model = Model {
        name: &app.name,
        classes: classifier.classes(),
        input_size: classifier.input_size(),
        multi_label: info.loss.is_multi_label(),
        threshold: info.threshold,
        tells_unlike: info.calibration.is_some(),
        collects: app.collection.is_some(),
        accuracy: classifier
            .evaluation()
            .map(|evaluation| evaluation.accuracy),
        examples: app.examples.names().collect(),
    };
    Json(model).into_response()
}

/// Gives a picture to try the model with.
#[utoipa::path(
    get,
    path = "/v1/examples/{index}",
    tag = "Pictures",
    params(("index" = usize, Path, description = "The place of its name in the model's `examples`, from 0")),
    responses(
        (status = OK, description = "The picture's file", content(
            (upload::File = "image/jpeg"),
            (upload::File = "image/png"),
            (upload::File = "image/gif"),
            (upload::File = "image/webp"),
            (upload::File = "image/bmp"),
        )),
        (status = NOT_FOUND, body = Problem, content_type = PROBLEM, description = "There is no such example"),
        Refusals,
        WithoutToken,
    )
)]
async fn example(
    State(app): State<Arc<App>>,
    index: Result<Path<usize>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    let example = index.ok().and_then(|Path(index)| app.examples.get(index));
    let (kind, bytes) = example.ok_or_else(|| {
        let detail = format!(
            "there are {} examples, counted from 0",
            app.examples.names().len()
        );
        Problem::new(StatusCode::NOT_FOUND, detail)
    })?;
    Ok(([(header::CONTENT_TYPE, kind)], bytes))
}

/// What pictures are taken for, in their order.
#[derive(Serialize, ToSchema)]
struct Predictions<'a> {
    /// The model's name.
    model: &'a str,
    predictions: Vec<Prediction>,
}

#[derive(Serialize, ToSchema)]
struct Prediction {
    /// The file's name, of a form.
    name: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Found {
    Classified(Classified),
    Refused { error: Problem },
}

/// What a picture is taken for.
#[derive(Serialize, ToSchema)]
struct Classified {
    /// The likeliest class.
    class: String,
    /// Its probability.
    probability: f64,
    /// The probability of every class.
    probabilities: BTreeMap<String, f64>,
    /// The classes that the picture is taken for: of several labels per picture any number.
    classes: Vec<String>,
    /// Whether it is unlike anything that the model was trained on; null where the model cannot tell.
    #[schema(required)]
    unlike: Option<bool>,
    /// How unlike: above 1 is unlike.
    #[schema(required)]
    novelty: Option<f64>,
}

impl Classified {
    fn new(found: Classification, names: &[String]) -> Self {
        let probabilities = found.probabilities.iter().copied();
        Self {
            unlike: found.novelty.map(|_| found.is_unlike()),
            novelty: found.novelty,
            probabilities: names.iter().cloned().zip(probabilities).collect(),
            classes: found.classes.into_iter().map(|(name, _)| name).collect(),
            class: found.class,
            probability: found.probability,
        }
    }
}

/// Classifies pictures.
///
/// One that cannot be read has an `error` among the others' classes; where none can be read, the first one's error is
/// the answer.
#[utoipa::path(
    post,
    path = "/v1/predict",
    tag = "Pictures",
    request_body(content(
        (Form = "multipart/form-data"),
        (upload::Json = "application/json"),
        (upload::File = "application/octet-stream"),
        (upload::File = "image/*"),
    )),
    responses((status = OK, body = Predictions, description = "What the pictures are taken for"), NoPictures, Refusals, WithoutToken)
)]
async fn predict(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let upload = app.read(&headers, body).await?;
    let pictures = upload.pictures(&headers, &app.bounds).await?;
    let classifier = app.batcher.classifier();
    let found = join_all(
        pictures
            .iter()
            .map(|picture| app.batcher.classify(&classifier, picture)),
    )
    .await;
    if let Some(Err(problem)) = found.first()
        && found.iter().all(Result::is_err)
    {
        return Err(problem.clone());
    }
    let names = classifier.classes();
    let prediction = |(picture, found): (Picture, Result<Classification, Problem>)| Prediction {
        name: picture.name,
        found: match found {
            Ok(found) => Found::Classified(Classified::new(found, names)),
            Err(error) => Found::Refused { error },
        },
    };
    let predictions = pictures.into_iter().zip(found).map(prediction).collect();
    let model = &app.name;
    Ok(Json(Predictions { model, predictions }).into_response())
}

/// What a picture is, as somebody says.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Said {
    /// One of the model's classes.
    #[param(min_length = 1)]
    class: String,
}

/// Keeps a picture as one of a class, to train on.
#[utoipa::path(
    post,
    path = "/v1/collect",
    tag = "Pictures",
    params(Said),
    request_body(content(
        (OneInForm = "multipart/form-data"),
        (OneInJson = "application/json"),
        (upload::File = "application/octet-stream"),
        (upload::File = "image/*"),
    )),
    responses(
        (status = CREATED, body = Kept, description = "It is kept"),
        (status = NOT_FOUND, body = Problem, content_type = PROBLEM, description = "The server keeps no pictures"),
        (status = INSUFFICIENT_STORAGE, body = Problem, content_type = PROBLEM, description = "The folder is full"),
        NoPictures,
        Refusals,
        WithoutToken,
    )
)]
async fn collect(
    State(app): State<Arc<App>>,
    said: Result<Query<Said>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Some(collection) = &app.collection else {
        let detail = "no pictures are kept: the server was started without --collect";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let classifier = app.batcher.classifier();
    let classes = classifier.classes();
    let class = said.ok().map(|Query(said)| said.class);
    let Some(class) = class.filter(|class| classes.contains(class)) else {
        let detail = format!("expected ?class=, one of {}", classes.join(", "));
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    };
    let (picture, _upload) = app.one_picture(&headers, body).await?;
    // What cannot be read would stop a training.
    app.batcher.classify(&classifier, &picture).await?;
    let file = collection.keep(&class, &picture.bytes)?;
    Ok((StatusCode::CREATED, Json(Kept { file })).into_response())
}

#[derive(Serialize, ToSchema)]
struct Kept {
    /// Its path in the folder of `--collect`.
    file: String,
}

/// What is told of where a picture's class comes from.
#[derive(Serialize, ToSchema)]
struct Explanation<'a> {
    /// The model's name.
    model: &'a str,
    /// The file's name, of a form.
    name: String,
    #[serde(flatten)]
    found: Classified,
    /// A PNG of the picture as the network takes it, in gray, with the map over it, as a `data:` URL.
    map: String,
}

/// Classifies one picture, and draws what speaks for its class.
#[utoipa::path(
    post,
    path = "/v1/explain",
    tag = "Pictures",
    request_body(content(
        (OneInForm = "multipart/form-data"),
        (OneInJson = "application/json"),
        (upload::File = "application/octet-stream"),
        (upload::File = "image/*"),
    )),
    responses((status = OK, body = Explanation, description = "What the picture is taken for, and the map"), NoPictures, Refusals, WithoutToken)
)]
async fn explain(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (picture, _upload) = app.one_picture(&headers, body).await?;
    let classifier = app.batcher.classifier();
    let explained = app.batcher.explain(&classifier, &picture).await?;
    let mut png = Cursor::new(Vec::new());
    let drawn = explained.overlay().write_to(&mut png, ImageFormat::Png);
    drawn.map_err(|error| {
        let detail = format!("{}: drawing the map: {error}", picture.name);
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    })?;
    let names = classifier.classes();
    let explanation = Explanation {
        model: &app.name,
        name: picture.name,
        found: Classified::new(explained.classification().clone(), names),
        map: format!(
            "data:image/png;base64,{}",
            STANDARD.encode(png.into_inner())
        ),
    };
    Ok(Json(explanation).into_response())
}

/// Counts requests, batches and connections, in the OpenMetrics text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    responses(
        (status = OK, body = String, content_type = "application/openmetrics-text", description = "All counts"),
        Refusals,
        WithoutToken,
    )
)]
async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text())
}
