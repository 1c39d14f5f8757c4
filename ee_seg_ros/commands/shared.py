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
"""What several commands share: options, the checks of their input, leaving in order."""
import signal
from pathlib import Path

import typer

TORCH = 'the extra `train`, in the source tree: make train-env'
MATPLOTLIB = 'the extra `demo`, in the source tree: make demo'

BUNDLE = typer.Option('street', help='Name of a shipped bundle, or path of a bundle folder.')
DATASET = typer.Option('camvid', help='camvid, cityscapes, ade20k, voc, or scenes (procedural street scenes, whose '
                                      'split is a seed).')
THREADS = typer.Option(2, help='Threads of one inference.')
LIMIT = typer.Option(0, help='Use so many images, spread over the split (0: all; of scenes 100).')
ROOT = typer.Option(None, help='Folder of the data set.')
SPLIT_HELP = 'List in that folder, such as val, train:0006R0 or train[:50]'


def must_exist(*paths: Path | None) -> None:
    """Raise FileNotFoundError for the first path that is not there; None is no path."""
    for path in paths:
        if path is not None and not path.exists():
            raise FileNotFoundError(f'{path} does not exist')


def missing(error: ImportError, extra: str) -> Exception:
    """What to say of an import that failed: which module, and how to get it."""
    if (error.name or '').startswith('ee_seg_ros'):
        return error
    return ValueError(f'{error.name or error} is not installed, which this command needs: install {extra}, '
                      'or pip install it')


def read_card(path: Path) -> dict:
    """The provenance of a bundle from a JSON or YAML file. Raises ValueError."""
    import yaml
    try:
        card = yaml.safe_load(path.read_text(encoding='utf-8'))    # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is neither JSON nor YAML: {error}') from None
    if not isinstance(card, dict) or not {'data', 'licence'} <= set(card):
        raise ValueError(f'{path} must state at least `data` (what it was trained on) and `licence`')
    return card


def leave_in_order() -> None:
    """Make SIGTERM and the end of the terminal an exception, so that the nodes that were started are ended too."""
    def leave(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
