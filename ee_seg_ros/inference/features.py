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
"""The feature payload: zstd over msgpack of {version, fingerprint, split, expert, rate, cells, ..., tensors}.

The robot's classes travel along; of settled cells nothing else, see `OnboardMap`. Whatever arrives is checked against
the bundle before anything of its claimed size is allocated.
"""
from dataclasses import dataclass

import msgpack
import numpy as np
import zstandard

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.frame import Placement, fit
from ee_seg_ros.inference.outputs import GRID
from ee_seg_ros.inference.pixels import OnboardMap

VERSION = 2    # since the robot's classes travel along
FORMAT = 'ee_seg features; msgpack; zstd'
_HEADROOM = 4096          # bytes of a payload that are not tensor data: keys, numbers, names
_LARGEST_OUTPUT = 64      # times the pixels of the network input: 4K images over a 480x368 input are 47 times
_KEYS = {'version', 'fingerprint', 'split', 'expert', 'rate', 'cells', 'image', 'output', 'classes', 'tensors'}


class FeatureError(ValueError):
    """A payload that is refused. kind: 'damaged', 'oversized', 'foreign' (another bundle) or 'version'."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Features:
    """A checked payload: tensors (uint8 by name), the image's placement, the wanted size of the mask in pixels.

    onboard: what the robot knows; features of cells that it did not send are zero. expert: whose heads it used, '' for
    the exits' own.
    """

    tensors: dict
    placement: Placement
    output_width: int
    output_height: int
    onboard: OnboardMap
    expert: str = ''


def _description(bundle):
    return {name: bundle.tensors[name] for name in bundle.feature_tensors}


def _tensor_bytes(bundle):
    classes = (bundle.height // GRID) * (bundle.width // GRID)
    return classes + sum(int(np.prod(tensor['shape'])) for tensor in _description(bundle).values())


def _blocks(array, sent):
    """A view (C, rows, h, columns, w) of a map (1, C, H, W)."""
    _, channels, height, width = array.shape
    rows, columns = sent.shape
    return array.reshape(channels, rows, height // rows, columns, width // columns)


def _gather(array, sent):
    """The cells of a map (1, C, H, W) that are sent, (n, C, h, w), row by row."""
    rows, columns = np.nonzero(sent)
    return np.ascontiguousarray(_blocks(array, sent)[:, rows, :, columns, :])


def _scatter(values, sent, shape):
    """A map of this shape with the cells that `_gather` took, and zeros elsewhere."""
    array, (rows, columns) = np.zeros(shape, np.uint8), np.nonzero(sent)
    _blocks(array, sent)[:, rows, :, columns, :] = values
    return array


def pack(bundle: Bundle, tensors: dict, placement: Placement, output_size: tuple, onboard: OnboardMap,
         expert: str = '') -> bytes:
    """Pack feature tensors (uint8, as `Engine.encode` gives them) for the wire.

    placement: of the image in the network input. output_size: (width, height) that the refined mask shall have.
    onboard: `Engine.onboard_map`; of cells that it does not send only the classes travel. expert: whose heads ran.
    """
    sent = {name: tensors[name] for name in bundle.feature_tensors}
    if onboard.sent is not None:
        sent = {name: _gather(tensor, onboard.sent) for name, tensor in sent.items()}
    document = {
        'version': VERSION, 'fingerprint': bundle.fingerprint, 'split': bundle.split['after'], 'expert': expert,
        'rate': 0, 'image': [placement.image_width, placement.image_height],
        'output': [int(output_size[0]), int(output_size[1])], 'classes': onboard.classes.tobytes(),
        'cells': None if onboard.sent is None else np.packbits(onboard.sent).tobytes(),
        'tensors': {name: {'dtype': 'uint8', 'shape': list(tensor.shape), 'data': tensor.tobytes()}
                    for name, tensor in sent.items()},
    }
    # The checksum finds flipped bits, which would otherwise become wrong features without a sign.
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(msgpack.packb(document))


def _decompress(bundle, data):
    limit = _tensor_bytes(bundle) + _HEADROOM
    if len(data) > 2 * limit:
        raise FeatureError('oversized', f'{len(data)} bytes, more than a payload of bundle {bundle.name} can have')
    try:
        size = zstandard.frame_content_size(data)
        if size < 0:
            raise FeatureError('damaged', 'the payload does not state its size')
        if size > limit:
            raise FeatureError('oversized', f'it claims {size} bytes, bundle {bundle.name} allows {limit}')
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise FeatureError('damaged', f'not a whole zstd frame ({error})') from None


def _parse(raw):
    try:
        document = msgpack.unpackb(raw, max_map_len=64, max_array_len=64, max_str_len=256, max_ext_len=0)
    except Exception as error:    # msgpack raises ValueErrors, UnicodeErrors and types of its own for damaged data
        raise FeatureError('damaged', f'not a msgpack document ({error})') from None
    if not isinstance(document, dict) or not isinstance(document.get('version'), int):
        raise FeatureError('damaged', 'not a feature document: it has no version')
    if document['version'] != VERSION:
        raise FeatureError('version', f"payload version {document['version']}, this side speaks version {VERSION}: "
                                      'run the same ee_seg_ros on both sides')
    if set(document) != _KEYS:
        raise FeatureError('damaged', f'keys missing or unknown: {sorted(map(str, set(document) ^ _KEYS))}')
    return document


def _size(document, key):
    value = document[key]
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)):
        raise FeatureError('damaged', f'{key} is {str(value)[:60]}, expected [width, height] in pixels')
    return value


def _onboard_map(bundle, document):
    classes, cells = document['classes'], document['cells']
    shape = bundle.height // GRID, bundle.width // GRID
    if not isinstance(classes, bytes) or len(classes) != shape[0] * shape[1]:
        raise FeatureError('damaged', f'classes are no map of {shape[1]}x{shape[0]}')
    classes = np.frombuffer(classes, np.uint8).reshape(shape)
    if classes.max() >= len(bundle.classes):
        raise FeatureError('damaged', f'the map has classes beyond the {len(bundle.classes)} of bundle {bundle.name}')
    if cells is None:
        return OnboardMap(classes)
    if not bundle.forwards_cells:
        raise FeatureError('damaged', f'only some cells came, and bundle {bundle.name} cannot do without the others')
    shape = bundle.cells
    count = shape[0] * shape[1]
    if not isinstance(cells, bytes) or len(cells) != -(-count // 8):
        raise FeatureError('damaged', f'cells are no map of {shape[1]}x{shape[0]}')
    sent = np.unpackbits(np.frombuffer(cells, np.uint8))[:count].reshape(shape).astype(bool)
    if not sent.any():
        raise FeatureError('damaged', 'no cell came: there is nothing to refine')
    return OnboardMap(classes, sent)


def _tensors(bundle, received, sent):
    wanted = _description(bundle)
    if not isinstance(received, dict) or set(received) != set(wanted):
        raise FeatureError('damaged', f'tensors are not {sorted(wanted)}')
    tensors = {}
    for name, tensor in wanted.items():
        entry, shape = received[name], tensor['shape']
        if sent is not None:
            rows, columns = sent.shape
            shape = [int(np.count_nonzero(sent)), shape[1], shape[2] // rows, shape[3] // columns]
        if (not isinstance(entry, dict) or entry.get('dtype') != tensor['dtype'] or entry.get('shape') != shape
                or not isinstance(entry.get('data'), bytes) or len(entry['data']) != int(np.prod(shape))):
            raise FeatureError('damaged', f"tensor {name} is not {tensor['dtype']} of shape {shape}")
        values = np.frombuffer(entry['data'], np.uint8).reshape(shape)
        if values.max() >= bundle.document['codec']['levels']:
            raise FeatureError('damaged', f'tensor {name} has levels that the codec does not know')
        tensors[name] = values
        if sent is not None:
            tensors[name] = _scatter(values, sent, tensor['shape'])
    return tensors


def unpack(bundle: Bundle, data) -> Features:
    """Check and unpack a payload (bytes-like). Raises FeatureError for anything that this bundle cannot finish."""
    document = _parse(_decompress(bundle, bytes(data)))
    if document['fingerprint'] != bundle.fingerprint:
        raise FeatureError('foreign', f"features of bundle {str(document['fingerprint'])[:16]}, this side runs "
                                      f'{bundle.fingerprint} ({bundle.name}): run the same bundle on both sides')
    if document['split'] != bundle.split['after'] or document['rate'] != 0:
        raise FeatureError('damaged', 'split or rate are none that this bundle knows')
    if not isinstance(document['expert'], str) or document['expert'] not in ('', *bundle.experts):
        raise FeatureError('damaged', f"the expert {str(document['expert'])[:40]!r} was used, bundle {bundle.name} has "
                                      f"{', '.join(bundle.experts) or 'none'}")
    image_width, image_height = _size(document, 'image')
    output_width, output_height = _size(document, 'output')
    limit = _LARGEST_OUTPUT * bundle.width * bundle.height
    if output_width * output_height > limit or image_width * image_height > limit:
        raise FeatureError('oversized', f'a mask of {output_width}x{output_height} for an image of '
                                        f'{image_width}x{image_height} is asked for; at most {limit} pixels are served')
    onboard = _onboard_map(bundle, document)
    return Features(_tensors(bundle, document['tensors'], onboard.sent), fit(image_width, image_height, bundle),
                    output_width, output_height, onboard, document['expert'])
