//! The Open Inference Protocol, as its clients speak it. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod program;

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use program::{Answer, FORM, Server, form, small_set};
use serde_json::{Value, json};
use support::classifier::{Classifier, TrainingRecord};
use support::settings::BrokenImages;

const INFER: &str = "POST /v2/models/model/infer";

/// Asks with JSON, and what follows it.
fn infer(server: &Server, request: &Value, binary: &[u8]) -> Answer {
    let request = request.to_string();
    let length = format!("Inference-Header-Content-Length: {}", request.len());
    let lines = match binary {
        [] => &[][..],
        _ => &[&*length],
    };
    server.ask(INFER, lines, &[request.as_bytes(), binary].concat())
}

/// Returns elements as the binary data of a tensor of `BYTES`.
fn binary(elements: &[&[u8]]) -> Vec<u8> {
    let element = |bytes: &&[u8]| [&(bytes.len() as u32).to_le_bytes(), *bytes].concat();
    elements.iter().flat_map(element).collect()
}

/// Returns the JSON of an answer, and what follows it.
fn parts(answer: &Answer) -> (Value, &[u8]) {
    let length = answer
        .header
        .lines()
        .find_map(|line| line.strip_prefix("inference-header-content-length: "));
    let length = length.unwrap().parse().unwrap();
    let (json, binary) = answer.bytes.split_at(length);
    (serde_json::from_slice(json).unwrap(), binary)
}

/// Asserts that numbers in JSON are as expected.
fn assert_close(found: &Value, expected: &[f64]) {
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let off = found.as_f64().unwrap() - expected;
        assert!(off.abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
#[ignore = "needs weights"]
fn the_server_and_the_model_describe_themselves() {
    let server = Server::start(&["--name", "pets"]);
    let get = |path: &str| server.ask(&format!("GET {path}"), &[], b"");
    assert_eq!(get("/v2/health/live").json(), json!({"live": true}));
    assert_eq!(get("/v2/health/ready").json(), json!({"ready": true}));
    let about = get("/v2").json();
    let extensions = json!(["binary_tensor_data", "classification"]);
    assert_eq!(
        (&about["name"], &about["extensions"]),
        (&json!("serve"), &extensions)
    );
    let expected = json!({
        "name": "pets",
        "versions": ["1"],
        "platform": "libtorch_safetensors",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {
                "name": "probabilities", "datatype": "FP32", "shape": [-1, 2],
                "parameters": {"labels": ["cats", "dogs"]},
            },
            {"name": "class", "datatype": "BYTES", "shape": [-1]},
        ],
    });
    for model in ["/v2/models/pets", "/v2/models/pets/versions/1"] {
        assert_eq!(get(model).json(), expected);
        let ready = json!({"name": "pets", "ready": true});
        assert_eq!(get(&format!("{model}/ready")).json(), ready);
    }
    for model in [
        "/v2/models/dogs",
        "/v2/models/pets/versions/2",
        "/v2/models/pets%ff",
    ] {
        for path in [model.to_owned(), format!("{model}/ready")] {
            let refused = get(&path);
            assert_eq!(refused.status, 404, "{path}");
            let refused = refused.json();
            assert_eq!(
                refused["error"],
                "no such model: expected `pets`, version 1 or none"
            );
            assert_eq!(refused["detail"], refused["error"]);
        }
    }
    // What is said of other paths reaches its clients, too.
    let refused = get("/v2/repository/index");
    assert_eq!(refused.status, 404);
    assert_eq!(refused.json()["error"], "there is nothing at this path");
}

#[test]
#[ignore = "needs weights"]
fn pictures_are_classified_in_json_and_in_binary_as_files_and_as_pixels() {
    let server = Server::start(&[]);
    let classifier = Classifier::load(server.folder.path().join("model.safetensors")).unwrap();
    let names = ["cats/0.png", "dogs/1.png"];
    let files = names.map(|name| server.picture(name));
    let expected = names.map(|name| classifier.predict(server.picture_path(name)).unwrap());
    let all = expected.each_ref().map(|found| found.probabilities.clone());
    let all = all.concat();
    let classes = expected.each_ref().map(|found| found.class.as_str());

    // Nested as it may be, with an identifier, of all outputs.
    let texts = files.each_ref().map(|file| STANDARD.encode(file));
    let input =
        json!({"name": "image", "datatype": "BYTES", "shape": [2], "data": [[texts[0]], texts[1]]});
    let found = infer(&server, &json!({"id": "a b", "inputs": [input]}), b"").json();
    assert_eq!(
        (&found["model_name"], &found["model_version"], &found["id"]),
        (&json!("model"), &json!("1"), &json!("a b"))
    );
    let [probabilities, class] = &found["outputs"].as_array().unwrap()[..] else {
        panic!("{found}")
    };
    assert_eq!(
        (
            &probabilities["name"],
            &probabilities["datatype"],
            &probabilities["shape"]
        ),
        (&json!("probabilities"), &json!("FP32"), &json!([2, 2]))
    );
    assert_close(&probabilities["data"], &all);
    let expected_class =
        json!({"name": "class", "datatype": "BYTES", "shape": [2], "data": classes});
    assert_eq!(*class, expected_class);

    // All in binary, in the order that is asked for.
    let bytes = binary(&files.each_ref().map(Vec::as_slice));
    let input = json!({
        "name": "image", "datatype": "BYTES", "shape": [2],
        "parameters": {"binary_data_size": bytes.len()},
    });
    let request = json!({
        "parameters": {"binary_data_output": true, "priority": 1},
        "inputs": [input],
        "outputs": [{"name": "class"}, {"name": "probabilities"}],
    });
    let answer = infer(&server, &request, &bytes);
    let (found, data) = parts(&answer);
    assert!(
        answer
            .header
            .contains("content-type: application/octet-stream")
    );
    assert!(found.get("id").is_none());
    let named = binary(&classes.map(str::as_bytes));
    let expected_class = json!({
        "name": "class", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": named.len()},
    });
    assert_eq!(found["outputs"][0], expected_class);
    assert_eq!(
        found["outputs"][1]["parameters"],
        json!({"binary_data_size": 16})
    );
    let (found_class, numbers) = data.split_at(named.len());
    assert_eq!(found_class, named);
    let number = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
    let numbers: Vec<_> = numbers.chunks(4).map(number).collect();
    assert_close(&json!(numbers), &all);

    // One output in JSON where the others are binary, and the most probable classes in place of all.
    let request = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [input],
        "outputs": [
            {"name": "class"},
            {"name": "probabilities", "parameters": {"binary_data": false, "classification": 1}},
        ],
    });
    let answer = infer(&server, &request, &bytes);
    let (found, data) = parts(&answer);
    assert_eq!(data, named);
    let top = &found["outputs"][1];
    assert_eq!(
        (&top["datatype"], &top["shape"]),
        (&json!("BYTES"), &json!([2, 1]))
    );
    for (top, expected) in top["data"].as_array().unwrap().iter().zip(&expected) {
        let (value, class) = top.as_str().unwrap().split_once(':').unwrap();
        let value: f64 = value.parse().unwrap();
        assert_close(&json!([value]), &[expected.probability]);
        let mut names = classifier.classes().iter();
        let at = names.position(|name| *name == expected.class).unwrap();
        assert_eq!(class, format!("{at}:{}", expected.class));
    }

    // The pictures' pixels, which are not square.
    let images = files
        .each_ref()
        .map(|file| image::load_from_memory(file).unwrap());
    let images = images.map(|image| image.crop_imm(0, 0, 30, 40).into_rgb8());
    let all = images
        .each_ref()
        .map(|image| classifier.predict(image).unwrap().probabilities);
    let samples = images.map(image::RgbImage::into_raw).concat();
    let shape = json!([2, 40, 30, 3]);
    let outputs = json!([{"name": "probabilities"}]);
    let binary = json!({
        "name": "pixels", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": samples.len()},
    });
    let request = json!({"inputs": [binary], "outputs": outputs});
    let found = infer(&server, &request, &samples).json();
    assert_close(&found["outputs"][0]["data"], &all.concat());
    let rows: Vec<_> = samples.chunks(30 * 3).collect();
    let input = json!({"name": "pixels", "datatype": "UINT8", "shape": shape, "data": rows});
    let found = infer(
        &server,
        &json!({"inputs": [input], "outputs": outputs}),
        b"",
    )
    .json();
    assert_close(&found["outputs"][0]["data"], &all.concat());
}

#[test]
#[ignore = "needs weights"]
fn a_calibrated_model_says_how_unlike_its_own_a_picture_is() {
    let folder = small_set::pictures(&["cats", "dogs"], 6);
    let (train, validation) = small_set::batches(folder.path(), BrokenImages::Stop);
    let model = small_set::model(155, 1e-3);
    let calibration = model.calibrate(&train, &validation).unwrap();
    let path = folder.path().join("model.safetensors");
    let record = TrainingRecord::new(&train).calibration(&calibration);
    model.save(&path, &record).unwrap();
    let expected = Classifier::load(&path).unwrap();
    let server = Server::of(folder, &[]);
    let expected = expected.predict(server.picture_path("cats/0.png")).unwrap();

    let described = server.ask("GET /v2/models/model", &[], b"").json();
    assert_eq!(
        described["outputs"][2],
        json!({"name": "novelty", "datatype": "FP32", "shape": [-1]})
    );
    let picture = STANDARD.encode(server.picture("cats/0.png"));
    let input = json!({"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture]});
    let found = infer(&server, &json!({"inputs": [input]}), b"").json();
    assert_eq!(found["outputs"][2]["name"], "novelty");
    let novelty = expected.novelty.unwrap();
    let off = found["outputs"][2]["data"][0].as_f64().unwrap() / novelty - 1.;
    assert!(off.abs() < 1e-4, "{off}");
}

#[test]
#[ignore = "needs weights"]
fn what_is_asked_wrongly_is_refused_with_what_was_expected() {
    let server = Server::start(&["--max-pictures", "2", "--max-body", "1"]);
    let cat = server.picture("cats/0.png");
    let text = STANDARD.encode(&cat);
    let of = |input: Value| json!({"inputs": [input]});
    let image = |shape: Value, data: Value| {
        of(json!({"name": "image", "datatype": "BYTES", "shape": shape, "data": data}))
    };
    let pixels = |shape: Value, data: Value| {
        of(json!({"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}))
    };
    let sized = |shape: Value, size: usize| {
        let parameters = json!({"binary_data_size": size});
        of(json!({"name": "image", "datatype": "BYTES", "shape": shape, "parameters": parameters}))
    };
    let giving = |output: Value| {
        let mut request = image(json!([1]), json!([text]));
        request["outputs"] = json!([output]);
        request
    };
    let cat_after_its_length = binary(&[&cat]);
    let size = cat_after_its_length.len();
    let too_long = [&u32::MAX.to_le_bytes(), &cat[..]].concat();
    let most = u64::MAX;
    for (request, bytes, status, error) in [
        (json!({}), &b""[..], 400, "missing field `inputs`"),
        (
            json!({"inputs": []}),
            b"",
            400,
            "expected one input: `image` or `pixels`",
        ),
        (
            json!({"inputs": vec![json!({"name": "image", "datatype": "BYTES", "shape": [1]}); 17]}),
            b"",
            400,
            "a list of at most 16",
        ),
        (
            of(json!({"name": "image", "datatype": "BYTES", "shape": vec![1; 17], "data": []})),
            b"",
            400,
            "a list of at most 16",
        ),
        (
            of(json!({"name": "x", "datatype": "BYTES", "shape": [1], "data": []})),
            b"",
            400,
            "input `x`: expected `image` or `pixels`",
        ),
        (
            of(json!({"name": "image", "datatype": "FP32", "shape": [1], "data": [1]})),
            b"",
            400,
            "input `image`: expected BYTES of shape [N]",
        ),
        (
            image(json!([1, 1]), json!([text])),
            b"",
            400,
            "expected BYTES of shape [N]",
        ),
        (
            image(json!([-1]), json!([text])),
            b"",
            400,
            "invalid value: integer `-1`",
        ),
        (
            image(json!([0]), json!([])),
            b"",
            400,
            "expected one picture at least",
        ),
        (
            image(json!([3]), json!([text, text, text])),
            b"",
            413,
            "at most 2 pictures",
        ),
        (
            image(json!([most]), json!([text])),
            b"",
            413,
            "at most 2 pictures",
        ),
        (
            image(json!([2]), json!([text])),
            b"",
            400,
            "expected 2 strings of base64",
        ),
        (
            image(json!([1]), json!([1])),
            b"",
            400,
            "expected 1 strings of base64",
        ),
        (
            image(json!([1]), json!(["?"])),
            b"",
            400,
            "image 1: no base64",
        ),
        (
            image(json!([1]), json!({})),
            b"",
            400,
            "expected strings, or numbers",
        ),
        (
            image(json!([1]), json!(vec![""; 1025])),
            b"",
            400,
            "more than 1024 strings",
        ),
        (
            image(json!([2]), json!([text, "bm9uZQ=="])),
            b"",
            422,
            "image 2: not a JPEG, PNG, GIF, WebP or BMP file",
        ),
        (
            image(json!([1]), json!(null)),
            b"",
            400,
            "expected either `data`, or `parameters.binary_data_size`",
        ),
        (
            image(json!([1]), json!([text])),
            &cat_after_its_length,
            400,
            "expected either `data`",
        ),
        (
            sized(json!([1]), size + 1),
            &cat_after_its_length,
            400,
            "as many bytes after the JSON",
        ),
        (
            sized(json!([1]), size - 1),
            &cat_after_its_length,
            400,
            "as many bytes after the JSON",
        ),
        (
            sized(json!([2]), size),
            &cat_after_its_length,
            400,
            "each after its length in 4 bytes",
        ),
        (
            sized(json!([1]), too_long.len()),
            &too_long,
            400,
            "each after its length in 4 bytes",
        ),
        (
            sized(json!([1]), 3),
            b"abc",
            400,
            "each after its length in 4 bytes",
        ),
        (
            pixels(json!([1, 1, 1, 4]), json!([0, 0, 0, 0])),
            b"",
            400,
            "[N, height, width, 3]",
        ),
        (
            pixels(json!([1, 1, 1, 3]), json!([0, 0])),
            b"",
            400,
            "as many bytes as its shape says",
        ),
        (
            pixels(json!([2, 1, 1, 3]), json!([0, 0, 0])),
            b"",
            400,
            "as many bytes as its shape says",
        ),
        (
            pixels(json!([1, 0, 1, 3]), json!([])),
            b"",
            400,
            "as many bytes as its shape says",
        ),
        (
            pixels(json!([1, most, most, 3]), json!([0, 0, 0])),
            b"",
            400,
            "as many bytes as its shape says",
        ),
        (
            pixels(json!([1, 1, 1, 3]), json!([0, 0, 256])),
            b"",
            400,
            "numbers from 0 to 255",
        ),
        (
            pixels(json!([1, 1, 1, 3]), json!([0.5, 0, 0])),
            b"",
            400,
            "numbers from 0 to 255",
        ),
        (
            pixels(json!([1, 1, 1, 3]), json!([text])),
            b"",
            400,
            "input `pixels`: expected numbers",
        ),
        (
            giving(json!({"name": "logits"})),
            b"",
            400,
            "output `logits`: expected one of probabilities, class",
        ),
        (
            giving(json!({"name": "novelty"})),
            b"",
            400,
            "output `novelty`: expected one of",
        ),
        (
            giving(json!({"name": "class", "parameters": {"classification": 1}})),
            b"",
            400,
            "`classification` is for `probabilities`",
        ),
        (
            giving(json!({"name": "class", "parameters": {"shared_memory_region": "a"}})),
            b"",
            400,
            "there is no shared memory",
        ),
        (
            json!({"inputs": [], "id": "x".repeat(2000)}),
            b"",
            400,
            "`id`: expected one of at most 1024 bytes",
        ),
        (
            json!({"inputs": [], "id": "x".repeat(1 << 20)}),
            b"",
            413,
            "at most 1 MiB",
        ),
    ] {
        let refused = infer(&server, &request, bytes);
        let shown = request.to_string().chars().take(200).collect::<String>();
        assert_eq!(refused.status, status, "{shown}: {}", refused.body);
        let refused = refused.json();
        let found = refused["error"].as_str().unwrap();
        assert!(found.contains(error), "{shown}: {found}");
    }

    let deep = "[".repeat(100_000);
    let deep = format!(r#"{{"inputs": [{{"name": "image", "data": {deep}"#);
    let refused = server.ask(INFER, &[], deep.as_bytes());
    assert!(
        refused.body.contains("recursion limit exceeded"),
        "{}",
        refused.body
    );
    for length in ["-1", "3", "x"] {
        let line = format!("Inference-Header-Content-Length: {length}");
        let refused = server.ask(INFER, &[&line], b"{}");
        assert_eq!(refused.status, 400, "{length}");
        let expected = "expected the JSON's bytes, of 2 in the body";
        assert!(refused.body.contains(expected), "{}", refused.body);
    }
    let refused = server.ask(INFER, &["Content-Encoding: gzip"], b"{}");
    assert_eq!(refused.status, 415);
    let body = form(&[("cat.png", &cat)]);
    let refused = server.ask("POST /v1/predict", &[FORM, "Content-Encoding: gzip"], &body);
    assert_eq!(refused.status, 415);
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("Content-Encoding")
    );
    // It goes on, after all that.
    let found = infer(&server, &sized(json!([1]), size), &cat_after_its_length);
    assert_eq!(found.status, 200, "{}", found.body);
}

#[test]
#[ignore = "needs weights"]
fn a_token_is_wanted_but_not_to_say_that_the_server_lives() {
    let server = Server::start(&["--token", "0123456789abcdef"]);
    for (request, status) in [
        ("GET /v2/health/live", 200),
        ("GET /v2/health/ready", 200),
        ("GET /v2", 401),
        ("GET /v2/models/model", 401),
        ("GET /v2/models/other/ready", 401),
        (INFER, 401),
    ] {
        let answer = server.ask(request, &[], b"");
        assert_eq!(answer.status, status, "{request}");
        if status == 401 {
            let error = answer.json()["error"].as_str().unwrap().to_owned();
            assert!(error.contains("Authorization: Bearer TOKEN"), "{error}");
        }
    }
}

#[test]
#[ignore = "needs weights and a Python with tritonclient"]
fn a_model_answers_as_it_should_in_tritonclient() {
    let server = Server::after(30, &[]);
    let python = std::env::var_os("TRANSFER_TEST_TRITON").unwrap_or_else(|| "python3".into());
    let tried = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/triton.py"))
        .arg(&server.address)
        .output()
        .unwrap();
    let [out, errors] = [&tried.stdout, &tried.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(tried.status.success(), "{out}{errors}");
}
