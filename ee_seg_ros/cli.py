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
"""The command `ee_seg`; its sub-commands are in `commands/`."""
import sys

import typer

from ee_seg_ros.commands import bench, make, run

app = typer.Typer(name='ee_seg', no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={'help_option_names': ['-h', '--help']},
                  help='Early-exit semantic segmentation for robots: stop early onboard, finish hard frames offboard.')
benches = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help='Measure, and write NAME.json into --out.')
for command in (run.demo, make.train, make.search, make.export, run.evaluate, run.info):
    app.command()(command)
for measure in (bench.exits, bench.criteria, bench.distortions, bench.runtime):
    benches.command()(measure)
app.add_typer(benches, name='bench')


def main(args: list | None = None) -> None:
    """Run `ee_seg`. Exit status: 0 done, 1 the job failed, 2 wrong input, which one line on stderr explains."""
    from ee_seg_ros.processes import ChildError
    try:
        app(args, prog_name='ee_seg')
    except ChildError as error:
        print(f'ee_seg: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:    # BundleError among them; each says what was wrong
        print(f'ee_seg: {error}', file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == '__main__':
    main()
