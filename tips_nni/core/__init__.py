"""Search space, path graph, Markov chain, policies, costs and search: numpy and scipy only."""

from tips_nni.core._architecture import Architecture as Architecture
from tips_nni.core._architecture import Axis as Axis
from tips_nni.core._architecture import FeatureMap as FeatureMap
from tips_nni.core._architecture import Gate as Gate
from tips_nni.core._architecture import Operation as Operation
from tips_nni.core._errors import InfeasibleError as InfeasibleError
from tips_nni.core._errors import TipsError as TipsError
from tips_nni.core._errors import closest as closest
from tips_nni.core._errors import unknown as unknown
from tips_nni.core._space import Codes as Codes
from tips_nni.core._space import ElasticDim as ElasticDim
from tips_nni.core._space import SearchSpace as SearchSpace
from tips_nni.core._space import SubnetConfig as SubnetConfig
