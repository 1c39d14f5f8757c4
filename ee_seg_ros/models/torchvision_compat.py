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
"""Import torchvision even when its compiled operators do not load beside this build of torch.

Import `torchvision` from here (`from ee_seg_ros.models.torchvision_compat import torchvision`): torchvision registers
meta kernels for `torchvision::nms` on import, which fails when a torch of another build left that operator undefined.
Declaring it first makes the models usable; the operator itself (which segmentation never calls) stays without a body.
With an ordinary torch + torchvision pair the first import succeeds and nothing is declared.
"""
import importlib
import sys

import torch

_declared = []


def _import_torchvision():
    try:
        return importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _declared.append(library)    # the declaration lives as long as this object
    return importlib.import_module('torchvision')


torchvision = _import_torchvision()
