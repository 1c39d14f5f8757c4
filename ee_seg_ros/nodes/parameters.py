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
"""The parameters of all nodes, declared once as data; the nodes declare from it and refuse wrong values by it.

`rclpy` is imported only where a node declares, so that tables of parameters can be made without ROS.
"""
from dataclasses import dataclass
from typing import Any, Sequence

from ee_seg_ros.data.distortions import DISTORTIONS
from ee_seg_ros.inference.bundle import OPERATING_POINTS, SEARCHED, Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.experts import AUTO, OFF

LIVE, CONFIGURE, START = 'live', 'configure', 'start'

_KINDS = {'bool': 'true or false', 'int': 'a whole number', 'float': 'a number', 'str': 'a text',
          'floats': 'a list of numbers, such as [0.3, 0.25]', 'strs': "a list of texts, such as ['a', 'b']"}


class ParameterError(ValueError):
    """A parameter value that is refused; the message says what was given, what was expected."""


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    kind: bool, int, float, str, floats or strs. low, high: range of a number, inclusive. choices: what a text may be.
    when: 'live' (any time), 'configure' (read by on_configure: refused while the node is configured) or 'start'
    (read once when the process starts: read-only). false_is: the text that is meant by `false`, which YAML, and so ROS,
    makes of a bare `off`.
    """

    name: str
    kind: str
    default: Any
    description: str
    low: Any = None
    high: Any = None
    choices: Sequence[str] = ()
    when: str = LIVE
    false_is: Any = None

    def check(self, value: Any) -> Any:
        """The value as this parameter's type (whole numbers do for float). Raises ParameterError."""
        if self.kind in ('floats', 'strs'):
            if not isinstance(value, str) and hasattr(value, '__iter__'):
                return [self._check_one(each, self.kind[:-1]) for each in value]
            raise ParameterError(f'{self.name} is {value!r}: expected {self.expected}')
        return self._check_one(value, self.kind)

    def _check_one(self, value, kind):
        if value is False and self.false_is is not None:
            value = self.false_is
        fits = {'bool': isinstance(value, bool), 'str': isinstance(value, str),
                'int': isinstance(value, int) and not isinstance(value, bool),
                'float': isinstance(value, (int, float)) and not isinstance(value, bool)}[kind]
        if not fits or (kind == 'float' and value != value):
            raise ParameterError(f'{self.name} is {value!r}: expected {self.expected}')
        if self.choices and value not in self.choices:
            raise ParameterError(f"{self.name} is {value!r}: choose one of {', '.join(self.choices)}")
        if self.low is not None and not self.low <= value <= self.high:
            raise ParameterError(f'{self.name} is {value}: expected {self.expected}')
        return float(value) if kind == 'float' else value

    @property
    def expected(self) -> str:
        """What this parameter takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return _KINDS[self.kind] + (f' from {self.low} to {self.high}' if self.low is not None else '')


_MODEL = (
    Parameter('bundle', 'str', 'street', 'The model: name of a shipped bundle, or path of a bundle folder.',
              when=CONFIGURE),
    Parameter('providers', 'strs', ['CPUExecutionProvider'], "onnxruntime's execution providers, the preferred first; "
              'one that is not there falls back to the next, at last to the CPU.', when=CONFIGURE),
    Parameter('threads', 'int', 2, 'Threads of one inference.', 1, 64, when=CONFIGURE),
    Parameter('autostart', 'bool', True, 'Configure and activate by itself; false: wait for a lifecycle manager.',
              when=START),
    Parameter('features_reliable', 'bool', True, 'QoS of the features: reliable, or best effort; the same on both '
              'sides.', when=CONFIGURE),
)

# The same on both sides, and with the same defaults: a point of a bundle's curve was measured on both together.
_JUDGING = (
    Parameter('criterion', 'str', 'region_change', 'What decides that a mask is good enough.', choices=tuple(CRITERIA)),
    Parameter('operating_point', 'str', 'balanced', 'Which of the thresholds that the bundle stores per criterion: '
              'the fewer frames settle early, the more accurate; searched: those of a search, where one wrote the '
              'bundle.', choices=(*OPERATING_POINTS, SEARCHED)),
    Parameter('thresholds', 'floats', [], 'Thresholds of the criterion, one per exit of the bundle but the last, on '
              'whichever side it lies; empty: those of the operating point.'),
)

ONBOARD = _MODEL + _JUDGING + (
    Parameter('image_transport', 'str', 'raw', 'What to subscribe to: raw images on `image`, or JPEG or PNG ones on '
              '`image/compressed`.', choices=('raw', 'compressed'), when=CONFIGURE),
    Parameter('finish', 'str', 'offboard', 'Who finishes frames that did not settle: the offboard node, this node '
              '(the rest of the model runs here), or nobody.', choices=('offboard', 'onboard', 'never')),
    Parameter('expert', 'str', AUTO, 'Whose heads judge an image: auto (the expert for the distortion that the '
              "bundle's detector sees; the exits' own without a detector), off (always the exits' own), or the name of "
              "one of the bundle's experts.", false_is=OFF),
    Parameter('deadline_ms', 'float', 300.0, 'How long a final mask waits for its refinement, in ms from the arrival '
              'of the image.', 0.0, 60000.0),
    Parameter('max_rate', 'float', 0.0, 'Most frames per second to work on; 0: as many as it can.', 0.0, 1000.0),
    Parameter('camera_timeout_ms', 'float', 1500.0, 'After so long without an image, in ms, /diagnostics warns of a '
              'dead camera; more than two periods of a slow one.', 50.0, 600000.0),
    Parameter('output_width', 'int', 0, "Width of all masks in pixels; 0: the image's own, or what keeps its shape "
              'if only the height is given.', 0, 8192),
    Parameter('output_height', 'int', 0, "Height of all masks in pixels; 0: the image's own, or what keeps its shape "
              'if only the width is given.', 0, 8192),
)

OFFBOARD = _MODEL + _JUDGING + (
    Parameter('robots', 'strs', [], 'Namespaces of the robots to serve; empty: the own namespace.', when=CONFIGURE),
)

CAMERA = (
    Parameter('source', 'str', 'scenes', 'scenes (procedural street scenes), a folder of images, a video file, or '
              'a rosbag2 (BAG, or BAG:/topic).',
              when=START),
    Parameter('rate', 'float', 10.0, 'Images per second.', 0.01, 1000.0, when=START),
    Parameter('frames', 'int', 0, 'Images to publish before it exits; 0: the whole source, or endless.', 0, 2 ** 31 - 1,
              when=START),
    Parameter('loop', 'bool', False, 'Begin again when the source is at its end.', when=START),
    Parameter('seed', 'int', 0, 'Seed of the street scenes, and of distortions.', 0, 2 ** 31 - 1, when=START),
    Parameter('distort', 'str', '', 'Distortion of the images as NAME:LEVEL, for example noise:20 (names: '
              f"{', '.join(DISTORTIONS)}); empty: none.", when=START),
    Parameter('frame_id', 'str', 'camera', 'frame_id of the images.', when=START),
    Parameter('wait_for', 'int', 1, 'Subscribers of the image to wait for before the first one leaves.', 0, 100,
              when=START),
    Parameter('log', 'str', '', 'File for one JSON line per published image: index, name, stamp in ns.', when=START),
)

RECORDER = (
    Parameter('out', 'str', '', 'Folder to write frames.jsonl and masks into.', when=START),
    Parameter('frames', 'int', 0, 'Stop after so many final masks; 0: go on until told to stop.', 0, 2 ** 31 - 1,
              when=START),
    Parameter('idle_s', 'float', 5.0, 'Stop when nothing has come for so many seconds after the first mask; 0: never.',
              0.0, 3600.0, when=START),
    Parameter('save_masks', 'bool', True, 'Write the masks as PNG files of class ids.', when=START),
    Parameter('offboard', 'bool', True, 'Wait for an offboard node, too, before saying that it is ready.', when=START),
)

GROUND = (
    Parameter('bundle', 'str', 'street', 'Name or path of the bundle that the masks come from: it has the class names.',
              when=START),
    Parameter('drivable', 'strs', ['Road'], 'Names of the classes that the robot can drive on.', when=START),
    Parameter('ignored', 'strs', ['Sky'], 'Names of the classes that say nothing of the ground; every other one is an '
              'obstacle.', when=START),
    Parameter('base_frame', 'str', 'base_footprint', 'Frame of what is published; its plane z = 0 is the ground.',
              when=START),
    Parameter('pose', 'str', 'tf', "Where the camera's pose comes from: /tf_static, from base_frame to the mask's "
              'frame_id; or the parameters camera_x to camera_yaw.', choices=('tf', 'parameters'), when=START),
    Parameter('camera_x', 'float', 0.0, 'How far ahead of the origin of base_frame the camera is, in m.', -100.0, 100.0,
              when=START),
    Parameter('camera_y', 'float', 0.0, 'How far left of it the camera is, in m.', -100.0, 100.0, when=START),
    Parameter('camera_z', 'float', 0.0, 'How far above the ground the camera is, in m.', 0.0, 100.0, when=START),
    Parameter('camera_roll', 'float', 0.0, "Roll of the camera's body (x forward, y left, z up; not of its optical "
              'frame), in rad: positive leans to the right.', -3.15, 3.15, when=START),
    Parameter('camera_pitch', 'float', 0.0, "Pitch of the camera's body, in rad: positive looks down.", -3.15, 3.15,
              when=START),
    Parameter('camera_yaw', 'float', 0.0, "Yaw of the camera's body, in rad: positive looks to the left.", -3.15, 3.15,
              when=START),
    Parameter('reach', 'float', 8.0, 'How far from the origin of base_frame the ground counts, in m: a pixel of pitch '
              'moves what is far away a lot.', 0.5, 100.0, when=START),
    Parameter('resolution', 'float', 0.1, 'Size of the cells of the grid, in m.', 0.01, 1.0, when=START),
    Parameter('point_height', 'float', 0.1, 'Height that the points of the clouds are given, in m: above the '
              'min_obstacle_height of a costmap.', 0.0, 10.0, when=START),
)


def expert_of(values: dict, bundle: Bundle) -> str:
    """The value of `expert`. Raises ParameterError for an expert that the bundle does not have."""
    asked, known = values['expert'], (AUTO, OFF, *bundle.experts)
    if asked not in known:
        raise ParameterError(f"expert is {asked!r}: bundle {bundle.name} knows {', '.join(known)}")
    return asked


def thresholds_by_expert(values: dict, bundle: Bundle) -> dict:
    """`thresholds_of` every expert by name, of the exits' own heads as ''."""
    return {expert: thresholds_of(values, bundle, expert) for expert in ('', *bundle.experts)}


def thresholds_of(values: dict, bundle: Bundle, expert: str = '') -> tuple:
    """The thresholds that parameter values ask for, one per judged exit of a bundle; expert: for whose heads.

    Raises ParameterError or BundleError where they do not fit it.
    """
    stored, given = bundle.thresholds(values['criterion'], values['operating_point'], expert), values['thresholds']
    if given and len(given) != len(stored):
        names = ', '.join(exit_.name for exit_ in bundle.judged_exits) or 'there is only one'
        raise ParameterError(f'thresholds has {len(given)} values: expected {len(stored)}, one per exit but the last '
                             f'({names}), or none to use those of the operating point')
    return tuple(given) or stored


def declare(node, table: Sequence[Parameter]) -> dict:
    """Declare a table of parameters on a node; returns their values. Raises ParameterError for a wrong override."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    values = {}
    for parameter in table:
        # Types are checked here: rclpy alone would refuse `deadline_ms:=100` for not being a double, and does not
        # know the type of an empty list. Ranges follow after the check, whose message says more than rclpy's.
        given = node.declare_parameter(parameter.name, parameter.default, ParameterDescriptor(dynamic_typing=True))
        # ROS reads an empty list in a parameter file or on the command line as no value.
        empty = given.value is None and parameter.kind in ('floats', 'strs')
        values[parameter.name] = parameter.check([] if empty else given.value)
        described = ParameterDescriptor(dynamic_typing=True, description=parameter.description,
                                        read_only=parameter.when == START,
                                        additional_constraints=f'{parameter.expected}; {_WHEN[parameter.when]}')
        if parameter.kind == 'int' and parameter.low is not None:
            described.integer_range = [IntegerRange(from_value=parameter.low, to_value=parameter.high)]
        if parameter.kind == 'float' and parameter.low is not None:
            described.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
        node.set_descriptor(parameter.name, described)
    return values


_WHEN = {LIVE: 'can be changed at any time', CONFIGURE: 'read when the node is configured',
         START: 'read when the process starts'}


def checked(table: Sequence[Parameter], changes: Sequence, configured: bool) -> dict:
    """The values of a set request by name, those of other parameters (rclpy's own) left out. Raises ParameterError.

    changes: rclpy Parameters. configured: whether a bundle is loaded, so that it is too late for some.
    """
    known = {parameter.name: parameter for parameter in table}
    values = {}
    for change in changes:
        parameter = known.get(change.name)
        if parameter is None:
            continue
        values[change.name] = parameter.check(change.value)
        if configured and parameter.when == CONFIGURE:
            raise ParameterError(f'{change.name} is read when the node is configured: deactivate and clean up the '
                                 'node first (lifecycle transitions deactivate, cleanup), then set it')
    return values
