"""Ansible's strategy `mitogen_linear`, found beside the test bed.

It keeps one Python running on each host instead of starting one for every task: a third of the processor time, measured
on the role postgresql. Playbooks that tests run as an operator does, by testbed.verify.play, take Ansible's own
strategy: among them site.yml in check mode, rolling_update.yml, rollback.yml, backup.yml and restore.yml.
"""

from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]
