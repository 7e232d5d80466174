"""Asks a server at ADDRESS, of a model of cats and dogs, with Triton's own client:

    pip install tritonclient[http]==2.73.0
    python triton.py ADDRESS
"""

import base64
import json
import struct
import sys
import urllib.request
import zlib

import numpy as np
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

ADDRESS = sys.argv[1]


def png(pixels):
    """Returns a file of RGB pixels, [height, width, 3]."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def drawn(color):
    """Returns a disc of a colour on a shaded ground, 120 pixels high and 160 wide."""
    y, x = np.mgrid[:120, :160]
    pixels = np.stack([x, y + 40, 200 - x], axis=-1).astype(np.uint8)
    pixels[(x - 80) ** 2 + (y - 60) ** 2 < 45**2] = color
    return pixels


def predicted(files):
    """Returns what /v1/predict says."""
    body = json.dumps({"image": [base64.b64encode(file).decode() for file in files]}).encode()
    request = urllib.request.Request(
        f"http://{ADDRESS}/v1/predict", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["predictions"]


def image(elements, binary):
    given = httpclient.InferInput("image", [len(elements)], "BYTES")
    return [given.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)]


def refused(expected, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        assert expected in str(error), error
        return
    raise AssertionError(f"not refused: {expected}")


client = httpclient.InferenceServerClient(ADDRESS, concurrency=4)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("model") and client.is_model_ready("model", "1")
assert not client.is_model_ready("model", "2") and not client.is_model_ready("other")
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
metadata = client.get_model_metadata("model")
assert [tensor["name"] for tensor in metadata["outputs"]] == ["probabilities", "class"]
labels = metadata["outputs"][0]["parameters"]["labels"]
assert labels == ["cats", "dogs"], labels

pictures = [drawn((200, 120, 40)), drawn((30, 60, 220))]
files = [png(pixels) for pixels in pictures]
expected = predicted(files)
probabilities = [[found["probabilities"][label] for label in labels] for found in expected]
classes = [found["class"].encode() for found in expected]
# Else nothing below could tell one picture, or one class, from another.
assert np.abs(np.diff(probabilities, axis=0)).max() > 1e-3, probabilities

texts = [base64.b64encode(file) for file in files]
for given in [
    image(files, binary=True),
    image(texts, binary=False),
    [httpclient.InferInput("pixels", [2, 120, 160, 3], "UINT8").set_data_from_numpy(np.stack(pictures))],
]:
    # All outputs, in binary; in JSON; and one of each.
    for outputs in [
        None,
        [httpclient.InferRequestedOutput(name, binary_data=False) for name in ["class", "probabilities"]],
        [httpclient.InferRequestedOutput("class"), httpclient.InferRequestedOutput("probabilities", False)],
    ]:
        found = client.infer("model", given, outputs=outputs, request_id="seven")
        assert found.get_response()["id"] == "seven"
        assert found.get_response()["model_name"] == "model"
        np.testing.assert_allclose(found.as_numpy("probabilities"), probabilities, atol=1e-5)
        # A string where it came as JSON.
        names = [name if isinstance(name, bytes) else name.encode() for name in found.as_numpy("class")]
        assert names == classes, names

only = client.infer("model", image(files, True), "1", outputs=[httpclient.InferRequestedOutput("class")])
assert only.as_numpy("probabilities") is None and list(only.as_numpy("class")) == classes
top = client.infer(
    "model", image(files, True), outputs=[httpclient.InferRequestedOutput("probabilities", class_count=2)]
).as_numpy("probabilities")
assert top.shape == (2, 2)
for strings, row, name in zip(top, probabilities, classes):
    value, index, label = strings[0].decode().split(":")
    assert label.encode() == name and labels[int(index)] == label
    assert abs(float(value) - max(row)) < 1e-5

waiting = [client.async_infer("model", image(files[::step], True)) for step in (1, -1) * 8]
for step, request in zip((1, -1) * 8, waiting):
    found = request.get_result().as_numpy("probabilities")
    np.testing.assert_allclose(found, probabilities[::step], atol=1e-5)

unknown = [httpclient.InferRequestedOutput("logits")]
refused("[422] image 2: not a JPEG", client.infer, "model", image([files[0], b"no picture"], True))
refused("[404] no such model", client.infer, "other", image(files, True))
refused("[404] no such model", client.get_model_metadata, "model", "2")
refused("[400] output `logits`: expected one of", client.infer, "model", image(files, True), outputs=unknown)
refused("[413] a request has at most 16", client.infer, "model", image(files * 9, True))
refused("[404] there is nothing at this path", client.get_model_config, "model")
refused(
    "[415] the body is compressed", client.infer, "model", image(files, True), request_compression_algorithm="gzip"
)
wrong = httpclient.InferInput("image", [1], "UINT8").set_data_from_numpy(np.zeros(1, np.uint8))
refused("[400] input `image`: expected BYTES of shape [N]", client.infer, "model", [wrong])
