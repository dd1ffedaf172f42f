"""Ansible's strategy `mitogen_linear`, found beside the test bed.

It keeps one Python running on each host instead of starting one for every task: a third of the processor time, measured
on the role postgresql. What tests run as an operator does takes Ansible's own strategy: on a finished site backup.yml,
restore.yml and health.yml, in other scenarios the playbooks that they interrupt or that are about connections.
"""

import sys
from pathlib import Path
from types import ModuleType

import ansible.collections  # type: ignore[import-untyped]
import jinja2.environment
import mitogen.master
from testbed.testbed_codecache import Kept

# For each task whose module is in a collection Mitogen asks for the directories of all collections, ninety with the
# metadata of each, to look for modules there: a quarter of a second. They are where Python finds them anyhow.
_collections = ModuleType("ansible.collections.list")
vars(_collections)["list_collection_dirs"] = lambda *_arguments: []
sys.modules[_collections.__name__] = ansible.collections.list = _collections

import ansible_mitogen.module_finder  # noqa: E402
from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule  # noqa: E402

# Mitogen compiles forty sources for each kind of module, to see what they import, and Ansible a template in each task's
# process that needs it: together a quarter of a short play's time on the control node (measured on the role valkey).
_kept = Kept(str(Path(__file__).resolve().parents[3] / ".cache/compiled"))


def _compile(source: bytes | str, filename: str, mode: str) -> object:
    return _kept.compile(source, filename, mode, dont_inherit=True)


for _module in (ansible_mitogen.module_finder, mitogen.master, jinja2.environment):
    vars(_module)["compile"] = _compile

__all__ = ["StrategyModule"]
