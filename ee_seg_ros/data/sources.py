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
"""Where the camera's images come from: procedural street scenes, a folder of images, a video file, or a rosbag."""
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ee_seg_ros.data.distortions import distort, parse_distortion
from ee_seg_ros.data.scenes import StreetDrive

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
UNLABELLED = 255


@dataclass(frozen=True)
class SourceFrame:
    """image: uint8 (H, W, 3) RGB. labels: uint8 (h, w) ids, 255 unlabelled, or None. name: for people and logs."""

    image: np.ndarray
    labels: np.ndarray | None
    name: str


@dataclass(frozen=True)
class Calibration:
    """A camera without distortion that looks straight ahead over flat ground.

    focal: pixels. centre: (x, y) in pixels. height: metres above the ground.
    """

    focal: float
    centre: tuple
    height: float


class SceneSource:
    """The procedural street of one seed: endless, every frame labelled. Frames may be asked for in any order."""

    count = None

    def __init__(self, seed: int = 0):
        self.name = 'scenes'
        self._seed = seed
        self._drive = StreetDrive(seed)

    @property
    def calibration(self) -> Calibration:
        """The camera that the scenes are drawn with: its horizon, which stands for the pitch, is the centre's row."""
        camera = self._drive.camera
        return Calibration(float(camera.focal), (float(camera.centre), float(camera.horizon)), float(camera.height))

    def frame(self, index: int) -> SourceFrame:
        """Frame `index` (0 or more) of the drive, 480x360."""
        scene = self._drive.frame(index)
        return SourceFrame(scene.image, scene.labels, f'scene_{self._seed}_{index:05d}')


class FolderSource:
    """The images of a folder in the natural order of their names (frame2 before frame10).

    Labels are 8-bit PNGs of class ids with the image's name: of `.../images/SPLIT/NAME.jpg` in `.../labels/SPLIT/`,
    of `.../images/NAME.jpg` in `.../labels/`. An ignore id stated by a `classes.json` beside `images` becomes 255.
    Raises FileNotFoundError where there is no folder, ValueError where it holds no images.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder).resolve()
        self.name = folder.name
        self._paths = _images_of(folder)
        self._labels, self._ignore = _labels_of(folder)
        self.count = len(self._paths)

    def frame(self, index: int) -> SourceFrame:
        """Image `index`; IndexError past the end, ValueError for a file that is no image."""
        if not 0 <= index < self.count:
            raise IndexError(f'frame {index} of a folder of {self.count} images')
        path = self._paths[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'{path} is not an image that OpenCV can read')
        return SourceFrame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self._read_labels(path.stem), path.stem)

    def _read_labels(self, stem):
        path = self._labels / f'{stem}.png' if self._labels else None
        if path is None or not path.is_file():
            return None
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f'{path} is not a label image: expected an 8-bit grey PNG whose pixels are class ids')
        if self._ignore is not None:
            labels[labels == self._ignore] = UNLABELLED
        return labels


class VideoSource:
    """The frames of a video file, decoded one after the other; going back starts again from the first one.

    Raises FileNotFoundError or ValueError for a file that is not there or not a video.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self.name = self._path.stem
        # What FFmpeg has to say of a broken file is said by our own error, in one line.
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
        self._open()
        self.count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self.count <= 0:    # some containers do not say
            self.count = 0
            while self._capture.grab():
                self.count += 1
            self._open()
        if not self.count:
            raise ValueError(f'{self._path} holds no frame that OpenCV can decode')

    def _open(self):
        self._capture = cv2.VideoCapture(str(self._path))
        self._next = 0
        if not self._capture.isOpened():
            raise ValueError(f'{self._path} is not a video that OpenCV can read')

    def frame(self, index: int) -> SourceFrame:
        """Frame `index`. IndexError past the end; `count` is corrected where the file had promised more."""
        if not 0 <= index < self.count:
            raise IndexError(f'frame {index} of a video of {self.count} frames')
        if index < self._next:
            self._open()
        while self._next < index and self._capture.grab():
            self._next += 1
        read, image = self._capture.read()
        if not read:
            self.count = self._next
            raise IndexError(f'{self._path} ends after {self._next} frames')
        self._next += 1
        return SourceFrame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), None, f'{self.name}_{index:05d}')


class DistortedSource:
    """Another source's frames with one distortion, each frame with a seed of its own; labels stay as they are."""

    def __init__(self, source, name: str, level: float, seed: int):
        self.name = f'{source.name} {name}:{level:g}'
        self._source, self._distortion, self._seed = source, (name, level), seed

    @property
    def count(self) -> int | None:
        """As the other's, which a video corrects when it ends early."""
        return self._source.count

    def frame(self, index: int) -> SourceFrame:
        """Frame `index`; raises what the other source raises."""
        frame = self._source.frame(index)
        return replace(frame, image=distort(frame.image, *self._distortion, seed=self._seed * 1_000_003 + index))


def open_source(spec: str, seed: int = 0, distortion: str = ''):
    """The source that `spec` names: `scenes` (drawn from `seed`), a folder of images, a video file, or a bag.

    A bag is a rosbag2, SQLite or MCAP, given as its folder or one of its files; with several topics of images, as
    BAG:/topic.

    distortion: what to do to its images, as `distortions.parse_distortion` reads it (`noise:20`); '' or `clean`:
    nothing. A source has `name`, `count` (None: endless) and `frame(index)`. Raises FileNotFoundError or ValueError
    that says what was given and what is expected.
    """
    name, level = parse_distortion(distortion)
    source = _open(spec, seed)
    return source if name == 'clean' else DistortedSource(source, name, level, seed)


def _open(spec, seed):
    if spec == 'scenes':
        if seed < 0:
            raise ValueError(f'seed {seed} of the scenes must not be negative')
        return SceneSource(seed)
    from ee_seg_ros.data.bags import BagSource, find_bag
    bag = find_bag(spec)
    if bag is not None:
        return BagSource(*bag)
    path = Path(spec).expanduser()
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(f'source {spec} is a single image: give the folder that it is in, a video, or scenes')
        return VideoSource(path)
    raise FileNotFoundError(f'no source {spec!r}: give scenes, a folder of images, a video file, or a rosbag2')


def _images_of(folder):
    """The images of a folder, in natural order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}')
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != '.']
    if paths:
        return sorted(paths, key=lambda path: [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
                                               for part in re.split(r'(\d+)', path.name)])
    inside = sorted({path.parent for path in folder.glob('*/*') if path.suffix.lower() in IMAGE_SUFFIXES})
    hint = f'; there are some in {inside[0]}' if inside else ''
    raise ValueError(f'no images in {folder} (looked for {", ".join(IMAGE_SUFFIXES)}){hint}')


def _labels_of(folder):
    """(folder of the labels or None, the label id that means unlabelled or None) of a folder of images."""
    for images, rest in ((folder, ''), (folder.parent, folder.name)):
        labels = images.parent / 'labels' / rest
        if images.name == 'images' and labels.is_dir():
            try:
                described = json.loads((images.parent / 'classes.json').read_text())
                return labels, int(described['ignore_id'])
            except (OSError, ValueError, KeyError, TypeError):
                return labels, None
    return None, None
