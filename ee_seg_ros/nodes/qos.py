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
"""Quality of service of every topic, in one place, with the reasons."""
from copy import copy

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

LEASE = Duration(seconds=1)            # a killed offboard node is noticed after this; DDS alone takes 20 s
FEATURES_LIFESPAN = Duration(seconds=1)


def _keep_last(depth, **others):
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, **others)


IMAGE = qos_profile_sensor_data

# Reliable publishers serve best-effort subscribers too, and rviz asks for reliable.
MASK = _keep_last(5, reliability=ReliabilityPolicy.RELIABLE)

# Small, and one per frame: a reader that looks away for a few seconds shall miss none.
TRACE = _keep_last(100, reliability=ReliabilityPolicy.RELIABLE)

LATCHED = _keep_last(1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

# Each publisher latches one message, and there may be several; all of them count.
LATCHED_BY_SEVERAL = _keep_last(100, reliability=ReliabilityPolicy.RELIABLE,
                                durability=DurabilityPolicy.TRANSIENT_LOCAL)

_SERVING = {'reliability': ReliabilityPolicy.RELIABLE, 'durability': DurabilityPolicy.TRANSIENT_LOCAL,
            'liveliness': LivelinessPolicy.AUTOMATIC, 'liveliness_lease_duration': LEASE}
OFFBOARD_INFO = _keep_last(1, **_SERVING)
OFFBOARD_INFOS = _keep_last(100, **_SERVING)    # to read it: there may be several offboard nodes


def features(reliable: bool) -> QoSProfile:
    """QoS of the feature messages, the same for both sides.

    Reliable by default: a message of 30 KB is 20 packets, so that at 1 % loss best effort loses a fifth of the
    messages (79 of 100 measured at 20 ms, 10 Mbit/s), while reliable with the fast heartbeats of the shipped Fast DDS
    profile delivered all at the same median delay. Keep last 1 and a lifespan bound what a stall can pile up.
    """
    return _keep_last(1, lifespan=FEATURES_LIFESPAN,
                      reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT)


def overridable(profile: QoSProfile) -> dict:
    """Keyword arguments for a topic of which `qos_overrides` parameters may change history, depth and reliability.

    With a copy of the profile, because rclpy writes the overrides into the one that it is given.
    """
    return {'qos_profile': copy(profile), 'qos_overriding_options': QoSOverridingOptions.with_default_policies()}
