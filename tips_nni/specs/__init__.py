"""The YAML specs: their schema, loading with line numbers, and the built-in search spaces and strategies."""

from tips_nni.specs._kind import kind_of_file as kind_of_file
from tips_nni.specs._library import is_path as is_path
from tips_nni.specs._library import load_space as load_space
from tips_nni.specs._library import load_strategy as load_strategy
from tips_nni.specs._library import space_for as space_for
from tips_nni.specs._library import space_names as space_names
from tips_nni.specs._library import strategy_names as strategy_names
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
from tips_nni.specs._run import ARCHITECTURE as ARCHITECTURE
from tips_nni.specs._run import RUN_SPEC as RUN_SPEC
from tips_nni.specs._run import check_shares as check_shares
from tips_nni.specs._run import load_run as load_run
