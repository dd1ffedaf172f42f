"""The runbook for a move, followed: what it does between two servers, on the one that has just been rebuilt."""

import pytest
from conftest import data
from testbed.runbook import blocks, perform
from testbed.verify import REPOSITORY

pytestmark = pytest.mark.timeout(900)

CHOICES = {".yml -i": f".yml -e @{REPOSITORY}/molecule/restore/vars/site.yml -i"}


def test_moving_to_another_provider(host, looking, administrator):
    close, restore, verify = blocks("moving-to-another-provider")
    title = {"title": "Written in the last minute"}
    assert administrator.call("POST", "/api/v1/conversations", title)[0] == 201
    before = data()
    perform(host, close, CHOICES)
    assert looking.now() == 503
    output = perform(host, restore, CHOICES)
    assert "all as its manifest says" in " ".join(output.split())
    assert data() == before
    assert looking.now() == 200
    assert ", 0 FAIL" in perform(host, verify, CHOICES)
