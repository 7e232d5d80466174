//! What is answered: the page and the interface for programs.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use image::ImageFormat;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use support::classifier::Classification;

use crate::batcher::Batcher;
use crate::collection::Collection;
use crate::host::Hosts;
use crate::metrics::Metrics;
use crate::open_inference;
use crate::options::{Bounds, Options};
use crate::problem::{Code, Problem};
use crate::upload::{Picture, Room, Upload};

/// All that requests share.
pub(crate) struct App {
    name: String,
    token: Option<String>,
    bounds: Bounds,
    batcher: Batcher,
    collection: Option<Collection>,
    metrics: Arc<Metrics>,
    hosts: Hosts,
    room: Room,
}

impl App {
    pub(crate) fn new(
        options: &Options,
        batcher: Batcher,
        collection: Option<Collection>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let bounds = options.bounds;
        Self {
            name: options.model_name(),
            token: options.token.clone(),
            bounds,
            batcher,
            collection,
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
        let interface = Router::new()
            .route("/v1/model", get(model))
            .route("/v1/predict", post(predict))
            .route("/v1/explain", post(explain))
            .route("/v1/collect", post(collect))
            .route("/metrics", get(metrics))
            .merge(open_inference::routes())
            .route_layer(wants_token);
        let open = Router::new()
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
            )
            .route("/healthz", get(|| async { "alive\n" }))
            // A server that answers has its model.
            .route("/readyz", get(|| async { "ready\n" }))
            .merge(open_inference::health());
        let of_all = middleware::from_fn_with_state(Arc::clone(&self), bounded);
        open.merge(interface)
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
    let policy = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'";
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

/// What a model file says of itself.
#[derive(Serialize)]
struct Model<'a> {
    name: &'a str,
    classes: &'a [String],
    /// Pixels to a side.
    input_size: u32,
    multi_label: bool,
    threshold: Option<f64>,
    /// Whether it knows images unlike those that it was trained on.
    tells_unlike: bool,
    /// Whether it keeps pictures that somebody says the class of.
    collects: bool,
    accuracy: Option<f64>,
}

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
    };
    Json(model).into_response()
}

#[derive(Serialize)]
struct Predictions<'a> {
    model: &'a str,
    predictions: Vec<Prediction>,
}

#[derive(Serialize)]
struct Prediction {
    name: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Classified {
        class: String,
        probability: f64,
        probabilities: BTreeMap<String, f64>,
        classes: Vec<String>,
        unlike: Option<bool>,
        novelty: Option<f64>,
    },
    Refused {
        error: Problem,
    },
}

impl Found {
    fn of(found: Classification, names: &[String]) -> Self {
        let probabilities = found.probabilities.iter().copied();
        Self::Classified {
            unlike: found.novelty.map(|_| found.is_unlike()),
            novelty: found.novelty,
            probabilities: names.iter().cloned().zip(probabilities).collect(),
            classes: found.classes.into_iter().map(|(name, _)| name).collect(),
            class: found.class,
            probability: found.probability,
        }
    }
}

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
            Ok(found) => Found::of(found, names),
            Err(error) => Found::Refused { error },
        },
    };
    let predictions = pictures.into_iter().zip(found).map(prediction).collect();
    let model = &app.name;
    Ok(Json(Predictions { model, predictions }).into_response())
}

/// What a picture is, as somebody says.
#[derive(Deserialize)]
struct Said {
    class: String,
}

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

#[derive(Serialize)]
struct Kept {
    /// In the folder of `--collect`.
    file: String,
}

/// What is told of where a picture's class comes from.
#[derive(Serialize)]
struct Explanation<'a> {
    model: &'a str,
    #[serde(flatten)]
    prediction: Prediction,
    /// A PNG of the picture as the network takes it, in gray, with the map over it, as a `data:` URL.
    map: String,
}

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
        prediction: Prediction {
            name: picture.name,
            found: Found::of(explained.classification().clone(), names),
        },
        map: format!(
            "data:image/png;base64,{}",
            STANDARD.encode(png.into_inner())
        ),
    };
    Ok(Json(explanation).into_response())
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text())
}
