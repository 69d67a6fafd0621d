"""The YAML specs: their schema, loading with line numbers, and the built-in search spaces and strategies."""

from tips_nni.specs._models import BackboneSpec as BackboneSpec
from tips_nni.specs._models import ConstraintsSpec as ConstraintsSpec
from tips_nni.specs._models import DataSpec as DataSpec
from tips_nni.specs._models import DepthSpec as DepthSpec
from tips_nni.specs._models import ExportSpec as ExportSpec
from tips_nni.specs._models import PolicySpec as PolicySpec
from tips_nni.specs._models import RatioSpec as RatioSpec
from tips_nni.specs._models import ResolutionSpec as ResolutionSpec
from tips_nni.specs._models import RunSpec as RunSpec
from tips_nni.specs._models import SamplingSpec as SamplingSpec
from tips_nni.specs._models import SearchSpec as SearchSpec
from tips_nni.specs._models import SpaceSpec as SpaceSpec
from tips_nni.specs._models import StrategySpec as StrategySpec
from tips_nni.specs._models import TrainingSpec as TrainingSpec
