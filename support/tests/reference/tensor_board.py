"""Makes ../data/events.tfevents with TensorBoard's own writer, or shows what TensorBoard reads in a folder.

    pip install tensorboard==2.21.0
    python tensor_board.py
    python tensor_board.py FOLDER     # of the callback `TensorBoard`: prints {run: {tag: [[step, value]]}}
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = Path(__file__).parent.parent / "data" / "events.tfevents"
SCALARS = [
    (1, "batch_loss", 0.6875),
    (127, "batch_loss", 0.5),
    (128, "epoch_loss", -2.5e-9),
    (70_000, "epoch_top_3_accuracy", 1.0),
]


def make():
    with OUT.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1.7e9 + 0.25, file_version="brain.Event:2").SerializeToString())
        for step, tag, value in SCALARS:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            event = Event(wall_time=1.7e9 + 0.5, step=step, summary=summary)
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()
    events = EventAccumulator(str(OUT)).Reload()
    print(OUT.stat().st_size, "bytes", events.Tags()["scalars"])


def show(folder):
    runs = EventMultiplexer().AddRunsFromDirectory(folder).Reload()
    values = lambda run, tag: [(event.step, event.value) for event in runs.Scalars(run, tag)]
    print(json.dumps({run: {tag: values(run, tag) for tag in tags["scalars"]} for run, tags in runs.Runs().items()}))


if __name__ == "__main__":
    show(sys.argv[1]) if sys.argv[1:] else make()
