"""Serves the network of a model file by BentoML or Gradio, for `../../serve/benches/load.rs` to ask.

    cargo run -p support --example to_onnx -- MODEL.safetensors MODEL.onnx
    python servers.py {bentoml,gradio} MODEL.onnx --port 9000

An image comes in the form field `image` to BentoML's `/predict` and `/predict_batched`, which collects images of several
requests; to Gradio in two requests, as its documentation says for other programs. Both answer with what ours answers, the
probabilities by class: the network is that of the file, computed by ONNX Runtime, which is faster than PyTorch.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Classifier:
    """What a model file says, in ONNX."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        model = json.loads(self.session.get_modelmeta().custom_metadata_map["model"])
        self.classes, self.input = model["classes"], model["input"]

    def __call__(self, images):
        size, mean, std = self.input["size"], np.float32(self.input["mean"]), np.float32(self.input["std"])
        pixels = [np.asarray(image.convert("RGB").resize([size, size], Image.Resampling.BILINEAR)) for image in images]
        pixels = (np.stack(pixels).astype(np.float32) / 255 - mean) / std
        (logits,) = self.session.run(None, {"image": pixels.transpose(0, 3, 1, 2)})
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return [dict(zip(self.classes, row)) for row in (shares / shares.sum(1, keepdims=True)).tolist()]


def cores():
    return len(os.sched_getaffinity(0))


def bento(model):
    import bentoml

    # A process for each core, with a thread.
    @bentoml.service(workers=cores())
    class Server:
        def __init__(self):
            self.classifier = Classifier(model, 1)

        @bentoml.api
        def predict(self, image: Image.Image) -> dict:
            return self.classifier([image])[0]

        @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
        def predict_batched(self, image: list[Image.Image]) -> list[dict]:
            return self.classifier(image)

    return Server


def serve_gradio(model, port):
    import gradio

    classifier = Classifier(model, cores())
    page = gradio.Interface(lambda image: classifier([image])[0], gradio.Image(type="pil"), gradio.Label(), api_name="predict")
    page.launch(server_port=port, quiet=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serves the network of a model file.")
    parser.add_argument("server", choices=["bentoml", "gradio"])
    parser.add_argument("model", type=Path, help="as the example `to_onnx` writes it")
    parser.add_argument("--port", type=int, default=9000)
    options = parser.parse_args()
    if options.server == "gradio":
        serve_gradio(options.model, options.port)
    else:
        environment = os.environ | {"SERVED_MODEL": str(options.model.absolute())}
        words = ["bentoml", "serve", "servers:Server", "--port", str(options.port), "--working-dir", str(Path(__file__).parent)]
        os.execvpe(sys.executable, [sys.executable, "-m", *words], environment)
elif model := os.environ.get("SERVED_MODEL"):
    Server = bento(model)
