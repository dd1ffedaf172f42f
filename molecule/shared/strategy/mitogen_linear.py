"""Ansible's strategy `mitogen_linear`, found beside the test bed.

It keeps one Python running on each host instead of starting one for every task: a third of the processor time, measured
on the role postgresql. What tests run as an operator does takes Ansible's own strategy: on a finished site backup.yml,
restore.yml and health.yml, in other scenarios the playbooks that they interrupt or that are about connections.
"""

import sys
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.collections  # type: ignore[import-untyped]
import jinja2.environment
import mitogen.master
import mitogen.minify
from ansible._internal._task import TaskContext  # type: ignore[import-untyped]
from ansible.executor.task_executor import TaskExecutor  # type: ignore[import-untyped]
from ansible.plugins.loader import get_plugin_loader_namespace  # type: ignore[import-untyped]
from testbed.testbed_codecache import Kept

# For each task whose module is in a collection Mitogen asks for the directories of all collections, ninety with the
# metadata of each, to look for modules there: a quarter of a second. They are where Python finds them anyhow.
_collections = ModuleType("ansible.collections.list")
vars(_collections)["list_collection_dirs"] = lambda *_arguments: []
sys.modules[_collections.__name__] = ansible.collections.list = _collections

import ansible_mitogen.module_finder  # noqa: E402
from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule as MitogenLinear  # noqa: E402

# Mitogen compiles forty sources for each kind of module, to see what they import, and Ansible a template in each task's
# process that needs it: together a quarter of a short play's time on the control node (measured on the role valkey).
_kept = Kept(str(Path(__file__).resolve().parents[3] / ".cache/compiled"))


def _compile(source: bytes | str, filename: str, mode: str) -> object:
    return _kept.compile(source, filename, mode, dont_inherit=True)


for _module in (ansible_mitogen.module_finder, mitogen.master, jinja2.environment):
    vars(_module)["compile"] = _compile

# And each play takes the comments out of Mitogen's own sources, a fifth of a second, before they go to a host.
_minimize = mitogen.minify.minimize_source


def _minimized(source: bytes | str) -> object:
    text = source.decode() if isinstance(source, bytes) else source
    return _kept.code(f"without comments: {text}".encode(), lambda: _minimize(text))


vars(mitogen.minify)["minimize_source"] = _minimized


def _named(*actions: str) -> set[str]:
    return {f"{collection}{action}" for collection in ("", "ansible.builtin.") for action in actions}


# What these do they do on the control node.
COMPUTING = _named("assert", "debug", "fail", "include_role", "include_tasks", "set_fact", "validate_argument_spec")
# What these do they ask the process for that reads the playbook, and wait for its answer.
ASKING = _named("add_host", "group_by")
# So many hosts may wait for each other.
FEW = 2


class StrategyModule(MitogenLinear):  # type: ignore[misc]
    """Ansible gives each task of each host a copy of the process that reads the playbook: no host waits for another.

    With few hosts this process carries out everything itself, one host after the other: a fifth less of processor time
    (on finished hosts 6.8 and 5.3 s for role chatbot on one, 4.9 and 4.0 s for role postgresql on two), as what it has
    loaded and compiled is not forgotten with each copy. With more it does so with the two thirds of a role's tasks that
    do nothing on a host: they only compute, or they are skipped.
    """

    def _queue_task(self, host: Any, task: Any, task_vars: dict[str, Any], play_context: Any) -> None:
        own = task.copy(exclude_parent=True, exclude_tasks=True)
        own._parent = task._parent
        own.squash()
        here = own.action in COMPUTING or (len(self._hosts_cache) <= FEW and own.action not in ASKING)
        with TaskContext.create(task=own, task_vars=task_vars.copy(), host_name=host.name) as context:
            if here := here or self._is_skipped(own, context.task_vars):
                self._carry_out(host, task, own, task_vars, play_context)
        if not here:
            super()._queue_task(host, task, task_vars, play_context)

    def _is_skipped(self, task: Any, task_vars: dict[str, Any]) -> bool:
        """Tell whether the conditions of a task without a loop are false; one that fails is the copy's business."""
        if not task.when or task.loop is not None or task.loop_with:
            return False
        try:
            return not task._resolve_conditional_with_item(task.when, task_vars)[0]
        except Exception:
            return False

    def _carry_out(self, host: Any, task: Any, own: Any, task_vars: dict[str, Any], play_context: Any) -> None:
        """Do what StrategyBase._queue_task and WorkerProcess do, without the process."""
        self._queued_task_cache[(host.name, task._uuid)] = {
            "host": host,
            "task": task,
            "task_vars": task_vars,
            "play_context": play_context,
        }
        self._tqm.send_callback("v2_runner_on_start", host, task)
        shown = copy(host)
        executor = TaskExecutor(
            shown, play_context, self._loader, get_plugin_loader_namespace(), self._final_q, self._variable_manager
        )
        result = executor.run()
        result.finalize_registered_values()
        shown.vars, shown.groups = {}, []
        own.ignore_errors, own.ignore_unreachable = result.ignore_errors, result.ignore_unreachable
        self._final_q.send_task_result(shown, own, result)
        self._pending_results += 1


__all__ = ["StrategyModule"]
