"""The base's forward pass in an inference engine, OpenVINO or ONNX Runtime, timed.

    python engines.py {pieces,forward} DIR --engine {openvino,onnxruntime} --weights mobilenet_v2.pth
        [--limit N] [--precision f32|bf16]

Network, weights and pictures are those of `pytorch_tutorial.py`, converted from PyTorch; the features must agree
with PyTorch's. Both modes measure the forward pass, all that an engine for inference has. It is run on a batch at
once, all cores on each layer, and on small parts of it, which fit the processor's caches: OpenVINO's throughput hint
gives each core its own; ONNX Runtime shares each among all cores, or leaves a part to each.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import torch

import common
import pytorch_tutorial as single

# OpenVINO's converter would tell its makers that it is used; it does without where this cannot be imported.
sys.modules["openvino_telemetry"] = None

PART_SIZES = [1, 8]


class OpenVino:
    def __init__(self, base, precision):
        import openvino

        self.openvino, self.base, self.precision = openvino, base, precision

    def compiled(self, example, hint):
        model = self.openvino.convert_model(self.base, example_input=example, input=list(example.shape))
        return self.openvino.Core().compile_model(model, "CPU", {
            "PERFORMANCE_HINT": hint,
            # Without, it takes bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": common.cores(),
        })

    def at_once(self, images):
        """Returns a function that computes the features of all images."""
        request, pixels = self.compiled(images, "LATENCY").create_infer_request(), images.numpy()
        return lambda: request.infer(pixels, share_inputs=True, share_outputs=True)[0]

    def in_parts(self, images, size):
        """Yields ways to compute the features, `size` images at a time."""
        compiled, pixels = self.compiled(images[:size], "THROUGHPUT"), images.numpy()
        features = np.empty((len(images), *compiled.output(0).shape[1:]), np.float32)
        queue = self.openvino.AsyncInferQueue(compiled)

        def keep(request, first):
            features[first : first + size] = request.get_output_tensor().data

        def work():
            for first in range(0, len(images), size):
                queue.start_async(pixels[first : first + size], first, share_inputs=True)
            queue.wait_all()
            return features

        queue.set_callback(keep)
        yield "throughput hint", work


class OnnxRuntime:
    def __init__(self, base, precision):
        if precision != "f32":
            raise SystemExit("ONNX Runtime computes convolutions on the CPU in f32 only")
        self.base = base

    def run(self, example, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        program = torch.onnx.export(self.base, (example,), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return lambda pixels: session.run(None, {name: pixels})[0]

    def at_once(self, images):
        run, pixels = self.run(images, common.cores()), images.numpy()
        return lambda: run(pixels)

    def in_parts(self, images, size):
        parts = [part.numpy() for part in images.split(size)]
        shared, alone = (self.run(images[:size], threads) for threads in [common.cores(), 1])
        yield "all cores on each", lambda: np.concatenate([shared(part) for part in parts])
        with ThreadPoolExecutor(common.cores()) as pool:
            yield "a core for each", lambda: np.concatenate(list(pool.map(alone, parts)))


ENGINES = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}


def forward(arguments):
    """Measures the base on a batch and on one picture."""
    images, base = single.one_batch(arguments), single.pretrained(arguments)
    with torch.inference_mode():
        expected = base(images).numpy()
    engine = ENGINES[arguments.engine](base, arguments.precision)

    def rate(images, work, repetitions):
        common.check_features(work(), expected[: len(images)], arguments.precision)
        return common.median_rate(len(images), work, repetitions)

    base_forward = {"at once": rate(images, engine.at_once(images), common.FORWARDS)}
    for size in PART_SIZES:
        for way, work in engine.in_parts(images, size):
            base_forward[f"parts of {size}, {way}"] = rate(images, work, common.FORWARDS)
    single_rate = rate(images[:1], engine.at_once(images[:1]), common.SINGLES)
    return {"base_forward": base_forward, "one_picture": {"at once": 1000 / single_rate}}


def main():
    parser = common.command_line(__doc__.split("\n")[0], ["pieces", "forward"], common.PRECISIONS)
    parser.add_argument("--engine", required=True, choices=ENGINES)
    arguments = parser.parse_args()
    arguments.device = "cpu"
    versions = {name: version(name) for name in [arguments.engine, "torch", "torchvision"]}
    common.finish(arguments, arguments.engine, versions, common.cores(), forward(arguments))


if __name__ == "__main__":
    main()
