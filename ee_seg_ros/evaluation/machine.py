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
"""What a figure was measured on."""
import os
import platform
from pathlib import Path


def machine() -> dict:
    """Processor, cores this process may use, memory in bytes, system, and the versions that decide how fast it is."""
    import cv2
    import numpy
    import onnxruntime
    return {
        'processor': _processor(), 'cores': len(os.sched_getaffinity(0)),
        'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'system': platform.platform(), 'python': platform.python_version(), 'numpy': numpy.__version__,
        'opencv': cv2.__version__, 'onnxruntime': onnxruntime.__version__,
        'ros_distro': os.environ.get('ROS_DISTRO', ''),
    }


def _processor():
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory_bytes(process_id: int) -> int:
    """The most physical memory that a running process has used so far (VmHWM of Linux's /proc)."""
    for line in Path(f'/proc/{process_id}/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/{process_id}/status has no VmHWM')
