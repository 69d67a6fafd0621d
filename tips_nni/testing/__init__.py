"""Contract tests for your own plug-ins: subclass them in a test module."""

from tips_nni.testing._policy_contract import PolicyContract as PolicyContract
from tips_nni.testing._rule_contract import LayerRuleContract as LayerRuleContract
from tips_nni.testing._search_contract import SearchContract as SearchContract
