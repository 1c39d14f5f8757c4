# Copyright 2026 The ee_seg_ros authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A bundle in int8: static QDQ quantisation per channel, and what it costs in mIoU and gains in time."""
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation.evaluate import observe
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.frame import preprocess
from ee_seg_ros.inference.graphs import CPU

SUFFIX = '_int8'
# Of MobileNetV2 these are the stem and the first depthwise separable block: large tensors of few channels, which int8
# does not make faster. In int8 they cost the first exit of `street` 2.4 pp of mIoU (40 images of CamVid val), the other
# layers together less than chance.
FLOAT_LAYERS = 3
ROUNDS = 3


class _Inputs(CalibrationDataReader):
    """Hands a list of {input name: tensor} to onnxruntime's calibration, once."""

    def __init__(self, inputs):
        self._inputs = iter(inputs)

    def get_next(self):
        return next(self._inputs, None)


def running_order(bundle: Bundle) -> list:
    """Names of all graphs that exits of a bundle need, in an order in which they can run from `image` on."""
    return list(dict.fromkeys(graph for exit_ in bundle.exits for graph in bundle.path_to(exit_.name)))


def _tensors_of(bundle, order, images, threads):
    """For each image all tensors between the graphs, {name: array}."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {graph: onnxruntime.InferenceSession(bundle.graph_bytes(graph), options, providers=[CPU])
                for graph in order}
    found = []
    for image in images:
        tensors = {'image': preprocess(image, bundle)[0]}
        for graph in order:
            names = bundle.graphs[graph]['outputs']
            inputs = {name: tensors[name] for name in bundle.graphs[graph]['inputs']}
            tensors.update(zip(names, sessions[graph].run(names, inputs)))
        found.append(tensors)
    return found


def _quantise_graph(content, inputs, float_layers):
    """The bytes of an ONNX graph in int8. inputs: a list of {name: array}; float_layers: so many convolutions stay."""
    with tempfile.TemporaryDirectory() as scratch:
        source, prepared, target = (Path(scratch) / name for name in ('source.onnx', 'prepared.onnx', 'target.onnx'))
        source.write_bytes(content)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        layers = [node.name for node in onnx.load(str(prepared)).graph.node if node.op_type == 'Conv']
        quantize_static(str(prepared), str(target), _Inputs(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        nodes_to_exclude=layers[:float_layers])
        return target.read_bytes()


def quantise(name_or_path: str, out: str | Path, images: Iterable, float_layers: int = FLOAT_LAYERS,
             threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the bundle in int8 into the folder `out`, its name with `_int8` behind; returns `out`.

    images: a few dozen uint8 (H, W, 3) RGB of what the bundle will see, labels not needed; they set the ranges of the
    activations (smallest to largest value seen, uint8); weights are symmetric int8 per output channel. float_layers:
    the first so many convolutions behind the image stay float32. So do the graphs that make and read features: their
    levels are what travels; and expert heads, whose distorted images are not among these. Thresholds and curves are
    those of the float bundle. What torch needs is not copied: train on from the float bundle. report: called with
    (graphs done, graphs in all). Raises BundleError or ValueError.
    """
    bundle, out = Bundle.load(name_or_path), Path(out)
    if out.resolve() == bundle.path.resolve():
        raise ValueError(f'{out} is the float bundle itself: give another folder for the int8 one')
    order = running_order(bundle)
    tensors = _tensors_of(bundle, order, images, threads)
    if not tensors:
        raise ValueError('there are no images to find the ranges of the activations with')
    levels = {name for name, tensor in bundle.tensors.items() if tensor['dtype'] == 'uint8'}
    out.mkdir(parents=True, exist_ok=True)
    document = json.loads(json.dumps(bundle.document))
    for done, graph in enumerate(order, start=1):
        entry, content = document['graphs'][graph], bundle.graph_bytes(graph)
        if not levels & {*entry['inputs'], *entry['outputs']}:
            inputs = [{name: maps[name] for name in entry['inputs']} for maps in tensors]
            content = _quietly(_quantise_graph, content, inputs, float_layers if 'image' in entry['inputs'] else 0)
        (out / entry['file']).write_bytes(content)
        entry['sha256'] = hashlib.sha256(content).hexdigest()
        report(done, len(order))
    for graph in set(bundle.graphs) - set(order):
        (out / document['graphs'][graph]['file']).write_bytes(bundle.graph_bytes(graph))
    if bundle.detector is not None:
        file = bundle.detector['file']
        (out / file).write_bytes(bundle.file_bytes(file, bundle.detector['sha256']))
    document['name'] = bundle.name + SUFFIX
    document['provenance']['int8'] = {'of': bundle.name, 'of_fingerprint': bundle.fingerprint,
                                      'calibration_images': len(tensors), 'float_layers': float_layers}
    _write(out, document)
    return out


def _quietly(job, *arguments):
    """Run a job without the warnings that onnxruntime's quantiser logs for every layer that it leaves out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return job(*arguments)
    finally:
        logging.disable(before)


def _write(folder, document):
    (folder / 'bundle.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')


def exit_times(engines: list, images: list, rounds: int = ROUNDS) -> np.ndarray:
    """float64 (engines, exits): median milliseconds of each exit run alone, image to logits.

    The engines take turns on every image, so that what else the machine does meets all of them alike.
    """
    exits = [exit_.name for exit_ in engines[0].bundle.exits]
    times = np.empty((rounds, len(images), len(exits), len(engines)))
    for turn, image, exit_, engine in np.ndindex(times.shape):
        began = time.perf_counter()
        engines[engine].run_exit(images[image], exits[exit_])
        times[turn, image, exit_, engine] = (time.perf_counter() - began) * 1e3
    return np.median(times, axis=(0, 1)).T


def compare(name_or_path: str, int8: str, dataset: str, root: str | None, split: str, limit: int = 0,
            threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """What int8 costs and brings: measured against the float bundle, and stored in the int8 bundle's provenance.

    Returns {split, dataset, images, threads, miou_loss_pp, speedup, exits: [{name, miou, miou_loss_pp, speedup}]}; the
    loss in percentage points of mIoU and the speed-up (float time / int8 time of one interleaved run) beside `split`
    are those of the final output run alone. report: called with (images done, images in all).
    """
    engines = [Engine(Bundle.load(name), threads=threads) for name in (name_or_path, int8)]
    mious = []
    for index, engine in enumerate(engines):
        total, samples = samples_of(dataset, root, split, limit)
        observed = observe(engine, samples, lambda done: report(done + index * total, 2 * total))
        mious.append([mean_iou(matrix) for matrix in observed.matrices.sum(0)])
    images = [image for image, _ in samples_of(dataset, root, split, min(total, 16))[1]]
    before, after = exit_times(engines, images)
    bundle = engines[1].bundle
    exits = [{'name': exit_.name, 'miou': now, 'miou_loss_pp': 100 * (then - now), 'speedup': float(slow / fast)}
             for exit_, then, now, slow, fast in zip(bundle.exits, *mious, before, after)]
    found = {'dataset': dataset, 'split': split, 'images': total, 'threads': threads,
             'miou_loss_pp': exits[-1]['miou_loss_pp'], 'speedup': exits[-1]['speedup'], 'exits': exits}
    bundle.document['provenance'].setdefault('int8', {}).update(found)
    _write(bundle.path, bundle.document)
    return found
