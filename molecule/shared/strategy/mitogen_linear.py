"""Ansible's strategy `mitogen_linear`, found beside the test bed.

It keeps one Python running on each host instead of starting one for every task: a third of the processor time, measured
on the role postgresql. The scenario `site` runs the same roles as users do, with Ansible's own strategy.
"""

from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]
