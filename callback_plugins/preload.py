"""Loads once what Ansible would load again for each task: a tenth of a run's processor time on the control node.

Each task on each host is a process, a copy of the one that reads the playbook. What that one has not loaded by then
the copies load for themselves: with the first filter of a template all filters that there are.
"""

from __future__ import annotations

import gc
from typing import Any

# What is sent to a module and what it answers goes through these.
import ansible.module_utils._internal._json._profiles._module_legacy_c2m  # type: ignore[import-untyped]
import ansible.module_utils._internal._json._profiles._module_legacy_m2c  # type: ignore[import-untyped]  # noqa: F401
from ansible.plugins.callback import CallbackBase  # type: ignore[import-untyped]
from ansible.plugins.loader import action_loader, filter_loader, test_loader  # type: ignore[import-untyped]

DOCUMENTATION = """
    name: preload
    type: notification
    short_description: Loads filters, tests and the usual action before the tasks' processes begin
    description:
      - Changes nothing but the time that a run takes.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Loads when a play's first task begins: by then the strategy has loaded what it needs, and no copy is made yet."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "preload"

    def __init__(self) -> None:
        super().__init__()
        self._play_begins = False

    def v2_playbook_on_play_start(self, play: Any) -> None:  # noqa: ARG002
        self._play_begins = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        if not self._play_begins:
            return
        self._play_begins = False
        for loader in (filter_loader, test_loader):
            list(loader.all())
        action_loader.get("ansible.legacy.normal", class_only=True)
        # A play makes little garbage in cycles, and looking for it is an eighth of its time (the roles nginx and valkey
        # on a finished host). What is there by now is never looked at again, and so not copied for it either.
        gc.freeze()
        gc.set_threshold(200_000, 50, 1000)
