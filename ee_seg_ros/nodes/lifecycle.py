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
"""What both segmentation nodes share: lifecycle, live parameters, the bundle, diagnostics, saying things once."""
import threading
from contextlib import ExitStack

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.nodes.diagnostics import ERROR, OK, Diagnostics, Finding, whole
from ee_seg_ros.nodes.parameters import ParameterError, checked, declare
from ee_seg_ros.nodes.running import StartError


class Notices:
    """Warnings and errors that are said once per kind, so that a bad stream does not flood the log."""

    def __init__(self, logger):
        self._logger, self._said = logger, set()

    def warn(self, kind, text: str) -> None:
        """Warn, unless something of this kind was said before."""
        if kind not in self._said:
            self._said.add(kind)
            self._logger.warning(text)

    def error(self, kind, text: str) -> None:
        """Log an error, unless something of this kind was said before."""
        if kind not in self._said:
            self._said.add(kind)
            self._logger.error(text)


class SegmentationNode(LifecycleNode):
    """A lifecycle node around a bundle.

    Sub-classes implement `load` and `begin`. Each registers on the stack that it is given how to undo what it makes;
    that happens in reverse order on cleanup and on deactivate, and at once if something in between fails.
    parts: the parts of the node that `examine` speaks of.
    """

    def __init__(self, name: str, table, parts):
        super().__init__(name)
        self._table = table
        self.values = declare(self, table)
        self.notices = Notices(self.get_logger())
        self.done = threading.Event()
        self.bundle: Bundle | None = None
        self._loaded, self._running = ExitStack(), ExitStack()
        self._active, self._fault = False, ''
        self.add_on_set_parameters_callback(self._on_set)
        self._parts = parts
        self._diagnostics = Diagnostics(self, parts, self._examine)

    # --- to be filled in ---

    def load(self, bundle: Bundle, values: dict, stack: ExitStack) -> None:
        """Make everything that needs the bundle. Raises BundleError or ParameterError."""

    def begin(self, stack: ExitStack) -> None:
        """Start taking messages; frames that were taken by then are finished when the stack is closed."""

    def apply(self, values: dict) -> None:
        """Take over new values while configured. Raises ParameterError or BundleError to refuse them."""

    def examine(self) -> dict:
        """A Finding for each part of the node, while it is active."""

    # --- parameters ---

    def _on_set(self, changes):
        try:
            values = {**self.values, **checked(self._table, changes, self.bundle is not None)}
            if self.bundle is not None:
                self.apply(values)
        except (ParameterError, BundleError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.values = values
        return SetParametersResult(successful=True)

    # --- diagnostics ---

    def _examine(self):
        if self._active:
            findings = self.examine()
            return {'': whole(findings.values(), 'working'), **findings}
        state = 'inactive' if self.bundle is not None else 'unconfigured'
        finding = Finding(ERROR, f'{state}: {self._fault}') if self._fault else Finding(OK, state)
        return {'': finding, **dict.fromkeys(self._parts, finding)}

    # --- transitions: SUCCESS goes on, FAILURE stays in the state before ---

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle; FAILURE, with one error line, if it cannot be used."""
        try:
            bundle = Bundle.load(self.values['bundle'])
            self.load(bundle, self.values, self._loaded)
        except Exception as error:
            self._loaded.close()
            return self._failure('configured', error)
        self.bundle, self._fault = bundle, ''
        self._diagnostics.setHardwareID(f'{bundle.name} {bundle.fingerprint}')
        self.get_logger().info(f'bundle {bundle.name} {bundle.fingerprint} from {bundle.path}')
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start working."""
        try:
            self.begin(self._running)
        except Exception as error:
            self._running.close()
            return self._failure('activated', error)
        self._active, self._fault = True, ''
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working; frames that were taken still get their final masks."""
        self._active = False
        return self._undo('deactivated', self._running.close)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the bundle."""
        return self._undo('cleaned up', self.stop)

    def _undo(self, what, undo):
        try:
            undo()
        except Exception as error:
            self._failure(what, error)
            return TransitionCallbackReturn.ERROR    # on_error follows
        return TransitionCallbackReturn.SUCCESS

    def _failure(self, what, error):
        # rclpy swallows what transition callbacks raise.
        known = isinstance(error, (BundleError, ParameterError))
        self._fault = str(error) if known else f'cannot be {what}: {type(error).__name__}: {error}'
        self.get_logger().error(self._fault)
        return TransitionCallbackReturn.FAILURE

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Something could not be put away: forget everything, so that the node can be configured again."""
        return self._undo('stopped', self.stop)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End from any state; the process ends as well."""
        self.done.set()
        return self._undo('shut down', self.stop)

    # --- the process (see running.run) ---

    def start(self) -> None:
        """Configure and activate, if `autostart` is on. Raises StartError if the bundle cannot be used."""
        if not self.values['autostart']:
            self.get_logger().info('waiting for a lifecycle manager (autostart is false)')
            return
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                raise StartError

    def stop(self) -> None:
        """Stop working and forget the bundle, in whatever state; can be called twice."""
        self._active, self.bundle = False, None
        try:
            self._running.close()
        finally:
            self._loaded.close()
