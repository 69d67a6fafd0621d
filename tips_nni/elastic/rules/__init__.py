"""How a layer of each class is narrowed. A file for each kind of layer; the classes of a rule say which."""

from tips_nni.elastic.rules._attention import AttentionRule as AttentionRule
from tips_nni.elastic.rules._attention import between_channels as between_channels
from tips_nni.elastic.rules._attention import head_axes as head_axes
from tips_nni.elastic.rules._attention import head_size as head_size
from tips_nni.elastic.rules._attention import projections as projections
from tips_nni.elastic.rules._channelwise import BlurRule as BlurRule
from tips_nni.elastic.rules._channelwise import PReLURule as PReLURule
from tips_nni.elastic.rules._channelwise import ScaleRule as ScaleRule
from tips_nni.elastic.rules._norms import BatchNormRule as BatchNormRule
from tips_nni.elastic.rules._norms import GroupNormRule as GroupNormRule
from tips_nni.elastic.rules._norms import LayerNormRule as LayerNormRule
from tips_nni.elastic.rules._parts import PartsRule as PartsRule
from tips_nni.elastic.rules._rule import LayerRule as LayerRule
from tips_nni.elastic.rules._rule import channel_axis as channel_axis
from tips_nni.elastic.rules._rule import find_rule as find_rule
from tips_nni.elastic.rules._rule import register_rule as register_rule
from tips_nni.elastic.rules._rule import rule_for as rule_for
from tips_nni.elastic.rules._rule import shallow as shallow
from tips_nni.elastic.rules._rule import take as take
from tips_nni.elastic.rules._standard import ConvRule as ConvRule
from tips_nni.elastic.rules._standard import LinearRule as LinearRule

for rule in (
    AttentionRule(),
    ConvRule(),
    LinearRule(),
    BatchNormRule(),
    LayerNormRule(),
    GroupNormRule(),
    BlurRule(),
    ScaleRule(),
    PReLURule(),
    PartsRule(),
):
    register_rule(rule)
