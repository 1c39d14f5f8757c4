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
"""Installation of the ament_python package ee_seg_ros, by colcon or by pip."""
import sys
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'ee_seg_ros'
SHARE = f'share/{NAME}'

# OpenCV 5 and numpy from 2.3 on do not go with pip's cv-bridge.
ARRAYS = ['numpy>=1.21,<2.3', 'opencv-python-headless>=4.5,<5']
# What the nodes need besides these; package.xml names the same for rosdep.
RUNTIME = ['jsonschema', 'msgpack', 'onnxruntime', 'pyyaml', 'zstandard']
EXTRAS = {
    'pip': ARRAYS + RUNTIME,
    # Beside a ROS 2 distribution, whose cv_bridge is built against the numpy and OpenCV of the system.
    'distribution': RUNTIME + ['pytest>=7'],
    # ROS 2 Kilted as wheels (x86-64 Linux); Jazzy's are 7.1 to 8.
    'ros': [
        'ros-rclpy>=7.1,<10',
        'ros-rmw-fastrtps-cpp>=8.4,<10',
        'ros-sensor-msgs>=5.3,<6',
        'ros-std-msgs>=5.3,<6',
        'ros-geometry-msgs>=5.3,<6',
        'ros-nav-msgs>=5.3,<6',
        'ros-diagnostic-msgs>=5.3,<6',
        'ros-lifecycle-msgs>=2.0,<3',
    ],
    # The command line with its tables, plots, pictures and bags.
    'demo': ['matplotlib', 'pillow', 'rich', 'rosbags>=0.10', 'typer'],
    # catkin-pkg: for rosidl's generators, which make the messages that pip lacks (test/interfaces).
    'test': ARRAYS + ['catkin-pkg', 'cv-bridge', 'pytest>=7'],
    # `make lint`: one tool for what ament's linters of Python check, and one for types.
    # And what the tests try the installation with, as it is done on a robot.
    'lint': ['colcon-common-extensions', 'mypy>=1.11,<3', 'ruff>=0.12,<1', 'types-PyYAML'],
    'train': ['lightning>=2.6', 'onnx', 'safetensors', 'torch', 'torchmetrics', 'torchvision'],
}


def shared_files(folder):
    """(destination, files) for every folder of files in `folder`, in the form of `data_files`."""
    files = [path for path in Path(folder).rglob('*') if path.is_file() and '__pycache__' not in path.parts]
    return [(f'{SHARE}/{parent.as_posix()}', sorted(str(path) for path in files if path.parent == parent))
            for parent in sorted({path.parent for path in files})]


data_files = [
    ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
    (SHARE, ['package.xml']),
    *shared_files('launch'),
    *shared_files('config'),
    *shared_files('bundles'),
]

setup(
    name=NAME,
    version='0.1.0',
    description='Semantic segmentation with early exits for robots, as a pair of ROS 2 nodes',
    author='The ee_seg_ros authors',
    author_email='founders@ee-seg-ros.invalid',
    maintainer='The ee_seg_ros authors',
    maintainer_email='founders@ee-seg-ros.invalid',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['*/*.json', '*/*.yaml']},
    # An editable install (PEP 660) finds these in the source tree; copies in the environment would only go stale.
    data_files=[] if 'editable_wheel' in sys.argv else data_files,
    # Not the run-time needs: on a robot apt installs them, and apt's OpenCV is none that pip or an entry point that
    # checks its requirements would recognise. They are in the extra `pip`.
    install_requires=['setuptools'],
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'onboard = ee_seg_ros.nodes.__main__:onboard',
            'offboard = ee_seg_ros.nodes.__main__:offboard',
            'ground = ee_seg_ros.nodes.__main__:ground',
            'camera = ee_seg_ros.nodes.__main__:camera',
            'recorder = ee_seg_ros.nodes.__main__:recorder',
            'ee_seg = ee_seg_ros.cli:main',
        ],
    },
)
