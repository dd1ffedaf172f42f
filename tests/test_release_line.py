"""callback_plugins/chatbot_release.py: the last lines of a run say where each site stands."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from repository import ROOT

OLD, NEW = "0123456789ab", "ba9876543210"


class Result(SimpleNamespace):
    """What Ansible hands to a plugin when a task has ended on a host."""

    def __init__(self, host: str, **facts: Any) -> None:
        super().__init__(host=SimpleNamespace(get_name=lambda: host), result={"ansible_facts": facts})


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin as ansible-playbook has it."""
    monkeypatch.setenv("CHATBOT_RUN", "{}")
    specification = importlib.util.spec_from_file_location("release", ROOT / "callback_plugins/chatbot_release.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.CallbackModule()


def ended(plugin: Any, host: str, state: str, release: str, site: str = "chat.example.org", tried: str = "") -> None:
    outcome = {"site": site, "state": state, "release": release, "tried": tried}
    plugin.v2_runner_on_ok(Result(host, _chatbot_outcome=outcome))


def test_run_without_a_release_says_nothing(plugin: Any) -> None:
    plugin.v2_runner_on_ok(Result("app1", other=1))
    assert plugin.last_lines() == []


def test_hosts_of_one_site_are_counted(plugin: Any) -> None:
    ended(plugin, "app1", "same", OLD)
    for host in ("app1", "app2"):
        ended(plugin, host, "new", NEW)
    assert plugin.last_lines() == [f"RELEASE ALL NEW: {NEW} serves on 2 of 2 app hosts."]


def test_abandoned_release_is_named(plugin: Any) -> None:
    ended(plugin, "app1", "old", OLD, tried=NEW)
    assert plugin.last_lines() == [f"RELEASE ALL OLD: {OLD} serves on 1 of 1 app host; {NEW} does not."]


def test_lost_host_is_named_and_not_counted(plugin: Any) -> None:
    for host in ("app1", "app2"):
        ended(plugin, host, "old", OLD, tried=NEW)
    plugin.v2_runner_on_unreachable(Result("app2"))
    plugin.v2_runner_on_unreachable(Result("db1"))
    assert plugin.last_lines() == [
        f"RELEASE ALL OLD: {OLD} serves on 1 of 2 app hosts; {NEW} does not."
        " Not reached any more: app2; the next run puts that right."
    ]
    plugin.v2_runner_on_unreachable(Result("app1"))
    (line,) = plugin.last_lines()
    assert line.startswith("RELEASE UNKNOWN. Not reached any more: app1, app2;")


def test_one_site_on_two_releases_is_mixed(plugin: Any) -> None:
    ended(plugin, "app1", "old", OLD, tried=NEW)
    ended(plugin, "app2", "new", NEW)
    assert plugin.last_lines() == [f"RELEASE MIXED: app1 {OLD}, app2 {NEW}."]


def test_two_sites_of_one_inventory_are_told_apart(plugin: Any) -> None:
    ended(plugin, "vps1", "new", NEW, site="b.example.org")
    ended(plugin, "vps2", "same", OLD, site="a.example.org")
    assert plugin.last_lines() == [
        f"RELEASE UNCHANGED at a.example.org: {OLD} serves on 1 of 1 app host.",
        f"RELEASE ALL NEW at b.example.org: {NEW} serves on 1 of 1 app host.",
    ]
