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
"""Build the message packages beside this file for Python, with the generators that pip's ROS 2 wheels bring along.

pip has no vision_msgs and no tf2_msgs. The few messages that the nodes use of them are here, in our own words: same
names, same fields, hence the same types on the wire. `rclpy` depends on all of rosidl's generators for C and Python
(but for catkin_pkg), and one call of the C compiler makes the rest, without CMake.

Each package becomes one folder with one extension module, which holds all that a distribution puts into five shared
libraries; it works from wherever PYTHONPATH points.
"""
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / 'packages'
PACKAGES = {'vision_msgs': ['std_msgs'], 'tf2_msgs': ['geometry_msgs', 'std_msgs']}    # with what they are made of
LIBRARIES = ('rosidl_typesupport_c', 'rosidl_typesupport_fastrtps_c', 'rosidl_typesupport_fastrtps_cpp',
             'rosidl_runtime_c', 'rcutils', 'fastcdr')


class BuildError(Exception):
    """Why a package cannot be built here, in one line."""


def build(package: str, out: Path) -> Path:
    """Build one of PACKAGES into the folder `out`, unless it is there; its path. Raises BuildError.

    Built aside and renamed, so that test runs side by side do not see half of it.
    """
    if not (out / package).is_dir():
        out.mkdir(parents=True, exist_ok=True)
        # Of its own process: the generators look for their templates by a variable that rclpy must not see.
        done = subprocess.run([sys.executable, __file__, package, str(out)], capture_output=True, text=True,
                              env=dict(os.environ, AMENT_PREFIX_PATH=sys.prefix))
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
            raise BuildError(f'{package} cannot be built here: {last[:300]}')
    return out / package


def _generate(package, out):
    """C and Python sources of a package from its .msg files, into OUT/PACKAGE."""
    from rosidl_adapter.cli import TranslateMsgToIDL
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    os.chdir(SOURCES / package)
    messages = sorted(str(path) for path in Path('msg').glob('*.msg'))
    folder, include = out / package, [str(Path(sys.prefix) / 'share')]
    folder.mkdir()
    idl = [str(file) for file in TranslateMsgToIDL('msg').translate(package, messages, include, folder)]
    hashes = HashTypeDescription('hash').generate_type_hashes(package, idl, include, folder)
    GenerateC('c').generate(package, idl, include, folder, type_description_files=hashes)
    # A single typesupport is called directly; of several, each would be searched as a shared library when first used.
    GenerateCTypesupport('c', typesupport_implementations=['rosidl_typesupport_fastrtps_c']).generate(
        package, idl, include, folder)
    GenerateFastRTPSCTypesupport('fastrtps').generate(package, idl, include, folder)
    GeneratePython('py', typesupport_implementations=['rosidl_typesupport_c']).generate(package, idl, include, folder)
    (folder / '__init__.py').touch()
    return folder


def _compile(package, folder):
    """All sources of a generated package as the extension module that its Python messages import."""
    import numpy
    prefix = Path(sys.prefix)
    includes = [folder.parent, prefix / 'include', *(prefix / 'include').iterdir(), sysconfig.get_path('include'),
                numpy.get_include()]
    libraries = [*LIBRARIES, *(f'{used}__rosidl_{part}' for used in PACKAGES[package] for part in (
        'generator_c', 'generator_py', 'typesupport_c', 'typesupport_fastrtps_c'))]
    sources = [str(path) for path in sorted(folder.rglob('*.c*')) if path.suffix in ('.c', '.cpp')]
    command = [os.environ.get('CC', 'cc'), '-shared', '-fPIC', '-w', '-O0', *sources,
               '-o', str(folder / f'{package}_s__rosidl_typesupport_c.so'),
               *(f'-I{path}' for path in includes), f'-L{prefix}/lib',
               *(f'-l{library}' for library in libraries), '-lstdc++']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if 'error' in line] or done.stderr.splitlines()
        sys.exit(errors[0] if errors else f'{command[0]} failed')


def main(package: str, out: str) -> None:
    """In a process of its own: build one package and move it into OUT."""
    with tempfile.TemporaryDirectory(dir=out) as aside:
        try:
            folder = _generate(package, Path(aside))
            _compile(package, folder)
        except FileNotFoundError as error:
            sys.exit(f'{error.filename} is missing')    # the C compiler
        except ModuleNotFoundError as error:
            sys.exit(f"the Python module {error.name} is missing (it comes with the extra 'test')")
        try:
            os.rename(folder, Path(out) / package)
        except OSError:    # another run was faster
            shutil.rmtree(folder)


if __name__ == '__main__':
    main(*sys.argv[1:])
