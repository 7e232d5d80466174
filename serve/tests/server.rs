//! The program, asked as other programs ask it. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use program::{Answer, FORM, Server, answer, form, model_of, small_set};
use serde_json::{Value, json};
use support::classifier::Classifier;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[test]
#[ignore = "needs weights"]
fn pictures_are_classified_as_the_classifier_does_and_refused_one_by_one() {
    let server = Server::start(&[]);
    let classifier = Classifier::load(server.folder.path().join("model.safetensors")).unwrap();
    let cat = server.picture("cats/0.png");
    let body = form(&[
        ("cat.png", &cat),
        ("text.jpg", b"no picture"),
        ("dog.png", &server.picture("dogs/1.png")),
    ]);
    let found = server.ask("POST /v1/predict", &[FORM], &body);
    assert_eq!(found.status, 200, "{}", found.body);
    let found = found.json();
    assert_eq!(found["model"], "model");
    let found = found["predictions"].as_array().unwrap();
    for (at, name) in [(0, "cats/0.png"), (2, "dogs/1.png")] {
        let expected = classifier.predict(server.picture_path(name)).unwrap();
        assert_eq!(found[at]["class"], expected.class);
        let off = found[at]["probability"].as_f64().unwrap() - expected.probability;
        assert!(off.abs() < 1e-6, "{off}");
        assert_eq!(found[at]["probabilities"].as_object().unwrap().len(), 2);
        assert_eq!(found[at]["unlike"], Value::Null);
    }
    assert_eq!(found[0]["name"], "cat.png");
    assert_eq!(found[1]["error"]["status"], 422);
    assert_eq!(found[1]["error"]["code"], "not-a-picture");
    assert_eq!(
        found[1]["error"]["detail"],
        "text.jpg: not a JPEG, PNG, GIF, WebP or BMP file"
    );

    let raw = server.ask("POST /v1/predict", &["Content-Type: image/png"], &cat);
    assert_eq!(raw.json()["predictions"][0]["class"], found[0]["class"]);
    let refused = server.ask(
        "POST /v1/predict",
        &["Content-Type: image/jpeg"],
        b"no picture",
    );
    assert_eq!(refused.status, 422);
    assert!(
        refused.header.contains("application/problem+json"),
        "{}",
        refused.header
    );
    assert_eq!(refused.json()["title"], "Unprocessable Entity");
}

#[test]
#[ignore = "needs weights"]
fn a_picture_is_explained_by_a_map_over_it() {
    let server = Server::start(&[]);
    let classifier = Classifier::load(server.folder.path().join("model.safetensors")).unwrap();
    let explain =
        |pictures: &[(&str, &[u8])]| server.ask("POST /v1/explain", &[FORM], &form(pictures));
    let cat = server.picture("cats/0.png");
    let found = explain(&[("cat.png", &cat)]).json();
    let expected = classifier
        .explain(server.picture_path("cats/0.png"))
        .unwrap();
    assert_eq!(found["class"], expected.classification().class);
    let map = found["map"].as_str().unwrap();
    let png = map.strip_prefix("data:image/png;base64,").unwrap();
    let png = STANDARD.decode(png).unwrap();
    let drawn = image::load_from_memory(&png).unwrap().into_rgb8();
    assert_eq!(drawn, expected.overlay());
    // Something speaks for the class, and not everything.
    let colors = drawn
        .pixels()
        .map(|pixel| pixel.0)
        .collect::<std::collections::BTreeSet<_>>();
    assert!(colors.len() > 100, "{}", colors.len());
    assert_eq!(explain(&[("a", &cat), ("b", &cat)]).status, 400);
    assert_eq!(explain(&[("text.jpg", b"no picture")]).status, 422);
}

#[test]
#[ignore = "needs weights"]
fn the_rest_of_the_interface_says_what_there_is_and_what_is_not() {
    let server = Server::start(&["--name", "pets"]);
    let get = |path: &str| server.ask(&format!("GET {path}"), &[], b"");
    let model = get("/v1/model").json();
    assert_eq!(model["name"], "pets");
    assert_eq!(model["classes"], json!(["cats", "dogs"]));
    assert_eq!(
        (&model["input_size"], &model["tells_unlike"]),
        (&96.into(), &false.into())
    );
    for (path, expected) in [
        ("/healthz", "alive"),
        ("/readyz", "ready"),
        ("/", "<html"),
        ("/page.js", "fetch("),
    ] {
        let found = get(path);
        assert_eq!(found.status, 200, "{path}");
        assert!(found.body.contains(expected), "{path}: {}", found.body);
        assert!(
            found
                .header
                .contains("content-security-policy: default-src 'self'"),
            "{}",
            found.header
        );
    }
    for (request, lines, status, detail) in [
        (
            "GET /../../etc/passwd",
            &[][..],
            404,
            "nothing at this path",
        ),
        ("DELETE /v1/predict", &[], 405, "does not take DELETE"),
        (
            "POST /v1/predict",
            &["Content-Type: text/plain"],
            415,
            "expected a picture",
        ),
        (
            "POST /v1/predict",
            &["Content-Type: image/png"],
            400,
            "the body has none",
        ),
        (
            "POST /v1/predict",
            &["Origin: http://elsewhere.example"],
            403,
            "another origin",
        ),
    ] {
        let refused = server.ask(request, lines, b"");
        assert_eq!(refused.status, status, "{request}");
        assert!(
            refused.json()["detail"].as_str().unwrap().contains(detail),
            "{}",
            refused.body
        );
    }
    let metrics = get("/metrics").body;
    for line in [
        "serve_requests_total{route=\"/v1/predict\",status=\"415\"} 1",
        "serve_connections ",
        "serve_batch_pictures_count 0",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

/// As a page of another host does whose name leads to this machine.
#[test]
#[ignore = "needs weights"]
fn a_request_for_another_host_is_refused_although_it_comes_here() {
    let server = Server::start(&["--allowed-host", "pets.example"]);
    for (request, status) in [
        (
            "GET /v1/model HTTP/1.1\r\nHost: evil.example:8000\r\nOrigin: http://evil.example:8000",
            421,
        ),
        ("GET / HTTP/1.1\r\nHost: evil.example", 421),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost", 421),
        ("GET / HTTP/1.1", 400),
        ("GET / HTTP/1.0", 200),
        ("GET / HTTP/1.1\r\nHost: localhost", 200),
        ("GET / HTTP/1.1\r\nHost: pets.example", 200),
    ] {
        let mut stream = server.connect();
        let request = format!("{request}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(answer(stream).status, status, "{request}");
    }
}

#[test]
#[ignore = "needs weights"]
fn pictures_go_through_the_network_in_batches() {
    let server = Server::start(&["--batch", "4", "--wait", "1000"]);
    let cat = server.picture("cats/0.png");
    let pictures = form(&[("cat.png", &*cat); 16]);
    assert_eq!(
        server.ask("POST /v1/predict", &[FORM], &pictures).status,
        200
    );
    let metrics = server.ask("GET /metrics", &[], b"").body;
    let count = |name: &str| {
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| {
            line.strip_prefix("serve_batch_pictures_")?
                .strip_prefix(name)
        });
        line.unwrap().trim().parse::<f64>().unwrap()
    };
    let batches = count("count");
    assert_eq!([count("sum"), count("bucket{le=\"4.0\"}")], [16., batches]);
    assert!(batches < 16., "{batches}");
}

#[test]
#[ignore = "needs weights"]
fn a_token_is_wanted_where_there_is_one_but_not_for_the_page() {
    let token = "0123456789abcdef";
    let server = Server::start(&["--token", token]);
    let status = |path: &str, lines: &[&str]| server.ask(&format!("GET {path}"), lines, b"").status;
    assert_eq!([status("/", &[]), status("/healthz", &[])], [200, 200]);
    let right = format!("Authorization: Bearer {token}");
    assert_eq!(status("/v1/model", &[&right]), 200);
    for wrong in [
        "Authorization: Bearer 0123456789abcdeg",
        "Authorization: Bearer",
        "X: y",
    ] {
        assert_eq!(
            [status("/v1/model", &[wrong]), status("/metrics", &[wrong])],
            [401, 401]
        );
    }
}

#[test]
#[ignore = "needs weights"]
fn what_is_too_much_or_too_slow_is_turned_away_and_others_are_answered() {
    let server = Server::start(&[
        "--max-body",
        "1",
        "--max-pictures",
        "3",
        "--max-picture",
        "1",
        "--header-timeout",
        "0.3",
        "--body-timeout",
        "0.3",
        "--max-connections-per-address",
        "8",
    ]);
    let cat = server.picture("cats/0.png");
    let predict = |body: &[u8]| server.ask("POST /v1/predict", &[FORM], body);
    let refused = |body: &[u8], status, code: &str, limit: Value| {
        let refused = predict(body);
        assert_eq!(refused.status, status, "{}", refused.body);
        let refused = refused.json();
        assert_eq!(
            [&refused["code"], &refused["limit"]],
            [&code.into(), &limit]
        );
    };
    let alone = |picture: &[u8]| form(&[("picture", picture)]);
    refused(&vec![0; (1 << 20) + 1], 413, "body-too-large", 1.into());
    refused(
        &form(&[("a", &cat[..]); 4]),
        413,
        "too-many-pictures",
        3.into(),
    );
    refused(&alone(b""), 400, "empty-picture", Value::Null);
    refused(
        &alone(&cat[..cat.len() / 2]),
        422,
        "damaged-picture",
        Value::Null,
    );
    let wide = {
        let mut png = std::io::Cursor::new(Vec::new());
        let image = image::RgbImage::new(1000, 1000);
        image.write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    };
    refused(&alone(&wide), 422, "picture-too-large", Value::Null);
    let mixed = predict(&form(&[("cat.png", &cat[..]), ("empty.png", b"")])).json();
    assert_eq!(mixed["predictions"][1]["error"]["code"], "empty-picture");

    // Neither a slow header nor an idle connection nor a slow body stays.
    let mut slow_header = server.connect();
    slow_header.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    let idle = server.connect();
    let mut slow_body = server.connect();
    let header = format!(
        "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n{FORM}\r\nContent-Length: 1000\r\n\r\n--X"
    );
    slow_body.write_all(header.as_bytes()).unwrap();
    assert_eq!(predict(&form(&[("cat.png", &cat[..])])).status, 200);
    assert_eq!(answer(slow_body).status, 408);
    for stream in [slow_header, idle] {
        assert!([0, 408].contains(&answer(stream).status));
    }

    // More connections than one address may have are closed at once.
    let open: Vec<TcpStream> = (0..8).map(|_| server.connect()).collect();
    assert_eq!(answer(server.connect()).status, 0);
    open.into_iter()
        .for_each(|stream| stream.shutdown(Shutdown::Both).unwrap());
}

#[test]
#[ignore = "needs weights"]
fn many_at_once_are_all_answered_or_told_to_come_again() {
    let server = Server::start(&["--max-requests", "4", "--max-queue", "4"]);
    let body = form(&[("cat.png", &server.picture("cats/0.png"))]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = || {
            let answer = server.ask("POST /v1/predict", &[FORM], &body);
            assert_eq!(
                answer.status == 429,
                answer.header.contains("retry-after: 1")
            );
            answer.status
        };
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&200));
}

#[test]
#[ignore = "needs weights"]
fn a_server_that_is_told_to_end_answers_what_it_has() {
    let mut server = Server::start(&[]);
    let body = form(&[("cat.png", &server.picture("cats/0.png"))]);
    let mut stream = server.connect();
    let length = body.len();
    let header = format!(
        "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n{FORM}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(header.as_bytes()).unwrap();
    stream.write_all(&body[..20]).unwrap();
    // So that the request has begun.
    assert_eq!(server.ask("GET /healthz", &[], b"").status, 200);
    let id = server.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    stream.write_all(&body[20..]).unwrap();
    assert_eq!(answer(stream).status, 200);
    assert!(server.child.wait().unwrap().success());
}

#[test]
#[ignore = "needs weights, Chromium and playwright-core"]
fn the_page_does_what_it_says_in_a_browser() {
    let kept = tempfile::tempdir().unwrap();
    let examples = small_set::pictures(&["cats", "dogs"], 4);
    let [kept_at, examples] = [kept.path(), examples.path()].map(|path| path.to_str().unwrap());
    let server = Server::after(30, &["--collect", kept_at, "--examples", examples]);
    let pictures = ["cats/0", "dogs/0", "cats/1"].map(|name| {
        let png = server.picture_path(&format!("{name}.png"));
        let jpeg = png.with_extension("jpg");
        image::open(&png).unwrap().save(&jpeg).unwrap();
        jpeg
    });
    let screenshots = std::env::var_os("SERVE_SCREENSHOTS").map(PathBuf::from);
    let tried = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page.mjs"))
        .arg(format!("http://{}", server.address))
        .arg(screenshots.unwrap_or_else(|| server.folder.path().join("screenshots")))
        .args(&pictures)
        .output()
        .unwrap();
    let [out, errors] = [&tried.stdout, &tried.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(tried.status.success(), "{out}{errors}");
    // The picture of a cat that the page's visitor took for a dog's.
    let dogs: Vec<_> = std::fs::read_dir(kept.path().join("dogs"))
        .unwrap()
        .collect();
    assert_eq!(dogs.len(), 1);
    let found = std::fs::read(dogs[0].as_ref().unwrap().path()).unwrap();
    assert_eq!(found, std::fs::read(&pictures[0]).unwrap());
}

#[test]
#[ignore = "needs weights"]
fn a_picture_is_kept_for_a_class_that_there_is_where_pictures_are_kept() {
    let kept = tempfile::tempdir().unwrap();
    let server = Server::start(&["--collect", kept.path().to_str().unwrap()]);
    let cat = server.picture("cats/0.png");
    let collect = |path: &str, picture: &[u8]| {
        let body = form(&[("../../cat.png", picture)]);
        server.ask(&format!("POST /v1/collect{path}"), &[FORM], &body)
    };
    for (path, picture, status) in [
        ("", &cat[..], 400),
        ("?class=birds", &cat, 400),
        ("?class=..%2Fcats", &cat, 400),
        ("?class=dogs", b"no picture", 422),
        ("?class=dogs", &cat, 201),
        ("?class=dogs", &cat, 201),
    ] {
        assert_eq!(collect(path, picture).status, status, "{path}");
    }
    let files = support::dataset::images_in(kept.path()).unwrap();
    assert_eq!(files.len(), 1);
    assert!(files[0].starts_with(kept.path().join("dogs")));
    assert_eq!(std::fs::read(&files[0]).unwrap(), cat);
    assert_eq!(
        server.ask("GET /v1/model", &[], b"").json()["collects"],
        true
    );

    let without = Server::start(&[]);
    let refused = without.ask(
        "POST /v1/collect?class=dogs",
        &[FORM],
        &form(&[("a", &cat)]),
    );
    assert_eq!(refused.status, 404);
}

#[test]
#[ignore = "needs weights"]
fn examples_are_given_as_they_are_to_whoever_may_ask() {
    let folder = small_set::pictures(&["cats", "dogs"], 4);
    let (path, token) = (folder.path().join("train"), "0123456789abcdef");
    let server = Server::start(&["--examples", path.to_str().unwrap(), "--token", token]);
    let right = format!("Authorization: Bearer {token}");
    let get = |path: &str| server.ask(&format!("GET {path}"), &[&right], b"");
    let names = get("/v1/model").json()["examples"].clone();
    assert_eq!(names.as_array().unwrap().len(), 8);
    assert_eq!([&names[0], &names[2]], ["0.png", "1.png"]);
    let second = get("/v1/examples/1");
    assert!(
        second.header.contains("content-type: image/png"),
        "{}",
        second.header
    );
    let file = std::fs::read(path.join("dogs/0.png")).unwrap();
    assert_eq!(second.body, String::from_utf8_lossy(&file));
    for path in [
        "8",
        "-1",
        "x",
        "..%2F..%2Fmodel.safetensors",
        "18446744073709551616",
    ] {
        let refused = get(&format!("/v1/examples/{path}"));
        assert_eq!(refused.status, 404, "{path}");
        assert_eq!(
            refused.json()["detail"],
            "there are 8 examples, counted from 0"
        );
    }
    assert_eq!(server.ask("GET /v1/examples/0", &[], b"").status, 401);
}

#[test]
#[ignore = "needs weights"]
fn every_route_is_described_and_answers_as_it_is_described() {
    let (kept, examples) = (
        tempfile::tempdir().unwrap(),
        small_set::pictures(&["cats", "dogs"], 1),
    );
    let [kept, examples] = [kept.path(), examples.path()].map(|path| path.to_str().unwrap());
    let server = Server::start(&["--collect", kept, "--examples", examples]);
    let document = server.ask("GET /openapi.json", &[], b"").json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let (cat, text) = (server.picture("cats/0.png"), &b"no picture"[..]);
    let file = STANDARD.encode(&cat);
    let tensor = json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [file]});
    let tensors = json!({"inputs": [tensor]}).to_string();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let request = format!("{} {path}", method.to_uppercase());
            let asked = request
                .replace("{index}", "0")
                .replace("{name}", "model")
                .replace("collect", "collect?class=cats");
            for (lines, body) in [
                (&[FORM][..], form(&[("cat.png", &cat)])),
                (&[FORM], form(&[("cat.png", &cat), ("text.jpg", text)])),
                (&[FORM], form(&[("text.jpg", text)])),
                (&["Content-Type: application/json"], tensors.clone().into()),
                (&["Content-Type: text/plain"], Vec::new()),
                (&["Origin: http://elsewhere.example"], Vec::new()),
            ] {
                let found = server.ask(&asked, lines, &body);
                assert!(
                    ![404, 405].contains(&found.status),
                    "{asked}: {}",
                    found.status
                );
                is_described(&document, operation, &found);
            }
            described.insert(request);
        }
    }
    let told = include_str!("../../docs/serving.md")
        .split('`')
        .skip(1)
        .step_by(2);
    let told = told.filter(|code| code.starts_with("GET /") || code.starts_with("POST /"));
    let told = told.map(|code| code.split('?').next().unwrap().to_owned());
    assert_eq!(described, told.collect());
}

/// Asserts that an answer has a status, a media type and, in JSON, a shape that its operation's description has.
fn is_described(document: &Value, operation: &Value, answer: &Answer) {
    let kind = answer.header.split("content-type: ").nth(1).unwrap();
    let kind = kind.split([';', '\r']).next().unwrap();
    let response = &operation["responses"][answer.status.to_string()];
    let schema = &response["content"][kind]["schema"];
    assert!(
        response["description"].is_string() && schema.is_object(),
        "{}, {kind}: {operation:#}",
        answer.status
    );
    if kind.ends_with("json") {
        assert!(
            fits(document, schema, &answer.json()),
            "{schema:#}: {}",
            answer.body
        );
    }
}

/// Returns whether a value is of a schema's type, and, an object, has no properties but its, and all that it requires.
fn fits(document: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        return fits(document, document.pointer(&name[1..]).unwrap(), value);
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        return one_of.iter().any(|schema| fits(document, schema, value));
    }
    match value {
        Value::Object(fields) => shapes(document, schema).iter().any(|shape| {
            let property = |name| shape.properties.get(name).or(shape.properties.get(""));
            let fit =
                |(name, value)| property(name).is_some_and(|schema| fits(document, schema, value));
            fields.iter().all(fit) && shape.required.iter().all(|name| fields.contains_key(name))
        }),
        Value::Array(items) => {
            let mut items = items.iter();
            schema["type"] == "array" && items.all(|item| fits(document, &schema["items"], item))
        }
        _ => {
            let name = match value {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(number) if number.is_i64() && schema["type"] == "integer" => {
                    "integer"
                }
                Value::Number(_) => "number",
                _ => "string",
            };
            let mut types = schema["type"].as_array().into_iter().flatten();
            schema["type"] == name || types.any(|one| one == name)
        }
    }
}

/// An object that a schema describes.
#[derive(Clone, Default)]
struct Shape {
    /// Their schemas by name; that of the name "" is of every name.
    properties: BTreeMap<String, Value>,
    required: BTreeSet<String>,
}

/// Returns the objects that a schema describes.
fn shapes(document: &Value, schema: &Value) -> Vec<Shape> {
    let all = |schemas: &[Value]| {
        schemas
            .iter()
            .flat_map(|one| shapes(document, one))
            .collect()
    };
    if let Some(name) = schema["$ref"].as_str() {
        return shapes(document, document.pointer(&name[1..]).unwrap());
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        return all(one_of);
    }
    if let Some(all_of) = schema["allOf"].as_array() {
        return all_of.iter().fold(vec![Shape::default()], |found, schema| {
            let with = |mut shape: Shape, more: &Shape| {
                shape.properties.extend(more.properties.clone());
                shape.required.extend(more.required.clone());
                shape
            };
            let more = shapes(document, schema);
            let both = |shape: &Shape| more.iter().map(|more| with(shape.clone(), more)).collect();
            found
                .iter()
                .flat_map(|shape| -> Vec<Shape> { both(shape) })
                .collect()
        });
    }
    let every = schema
        .get("additionalProperties")
        .map(|schema| (String::new(), schema.clone()));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let properties = properties.map(|(name, schema)| (name.clone(), schema.clone()));
    let required = schema["required"].as_array().into_iter().flatten();
    vec![Shape {
        properties: properties.chain(every).collect(),
        required: required
            .map(|name| name.as_str().unwrap().to_owned())
            .collect(),
    }]
}

#[test]
#[ignore = "needs weights"]
fn a_model_that_is_replaced_is_served_and_a_damaged_one_is_not() {
    let server = Server::start(&[]);
    let path = server.folder.path().join("model.safetensors");
    let classes = || server.ask("GET /v1/model", &[], b"").json()["classes"].clone();
    let others = model_of(&["birds", "fish"], 0);
    let cat = form(&[("cat.png", &server.picture("cats/0.png"))]);
    let replace = |bytes: &[u8]| {
        let new = server.folder.path().join("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    replace(&std::fs::read(others.path().join("model.safetensors")).unwrap());
    let end = Instant::now() + Duration::from_secs(60);
    while classes() != json!(["birds", "fish"]) {
        assert!(Instant::now() < end, "{}", classes());
        assert_eq!(server.ask("POST /v1/predict", &[FORM], &cat).status, 200);
    }
    // What is left of it is no model, and is looked at before the next one.
    replace(b"damaged");
    let before = std::fs::read(server.folder.path().join("model.safetensors")).unwrap();
    assert_eq!(before, b"damaged");
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let found = server.ask("POST /v1/predict", &[FORM], &cat);
        assert_eq!(found.status, 200);
        assert!(found.body.contains("birds"), "{}", found.body);
    }
}

#[test]
#[ignore = "needs weights"]
fn a_server_with_a_certificate_speaks_tls_alone() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
    let token = "0123456789abcdef";
    let server = Server::start(&[
        "--host",
        "0.0.0.0",
        "--token",
        token,
        "--tls-cert",
        certificate,
        "--tls-key",
        key,
    ]);
    let mut trusted = RootCertStore::empty();
    trusted.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, server.connect());
    let request = format!(
        "GET /v1/model HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("cats"),
        "{text}"
    );
    assert_eq!(server.ask("GET /healthz", &[], b"").status, 0);
}

#[test]
fn arguments_and_models_that_do_not_fit_are_refused_by_exit_code_and_reason() {
    for (words, code, reason) in [
        (&["no/such.safetensors"][..], 1, "no/such.safetensors"),
        (&[], 2, "MODEL"),
        (&["m", "--host", "0.0.0.0"], 2, "--token"),
        (&["m", "--max-body", "0"], 2, "--max-body"),
        (&["m", "--header-timeout", "never"], 2, "expected seconds"),
    ] {
        let found = Command::new(env!("CARGO_BIN_EXE_serve"))
            .args(words)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(reason), "{words:?}: {text}");
        assert!(text.matches("os error").count() < 2, "{text}");
    }
}
