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
"""The environment of all tests, set before anything imports rclpy or numpy; processes that tests start inherit it.

pip's ROS 2 wheels restart every Python process once to set LD_LIBRARY_PATH, and mark that in the environment. A test
that starts a process hands on os.environ, whole: the mark without the path makes rclpy fail to import.
"""
import fcntl
import os
import re
import signal
import sys
import time
from pathlib import Path

STARTED = time.time()
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ee_seg_ros.environment import fastdds_profile, local_range  # noqa: E402

for name in ('ROS_LOCALHOST_ONLY', 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
    os.environ.pop(name, None)
os.environ.update(
    local_range(),
    **fastdds_profile(),
    # A domain of this run's own, so that two runs on one machine do not hear each other.
    ROS_DOMAIN_ID=str(1 + os.getpid() % 100),
    # One thread each: small arrays, and several processes at once on few cores.
    OPENBLAS_NUM_THREADS='1',
    OMP_NUM_THREADS='1',
    # The source tree under test also in processes that start in another folder.
    PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is for what a shell script starts in the background; tests that press Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish():
    """Free the shared memory of nodes that tests killed, 34 MB each; nothing else does but `fastdds shm clean`."""
    for lock in Path('/dev/shm').glob('fast*_el'):
        if not re.fullmatch('fast(dds|rtps)_[0-9a-f]{16}_el', lock.name):
            continue
        try:
            with lock.open('ab') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the owner lives
            if lock.stat().st_mtime >= STARTED:
                lock.with_name(lock.name[:-3]).unlink()
                lock.unlink()
        except OSError:
            continue
