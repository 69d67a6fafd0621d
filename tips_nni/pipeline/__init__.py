"""The stages of a run, from a spec to the report, and what else the command line offers."""

from tips_nni.pipeline._convert import convert_backbone as convert_backbone
from tips_nni.pipeline._explain import explain_run as explain_run
from tips_nni.pipeline._explain import explain_space as explain_space
from tips_nni.pipeline._export import export as export
from tips_nni.pipeline._front import Measurements as Measurements
from tips_nni.pipeline._front import anytime_model as anytime_model
from tips_nni.pipeline._latency import check_target as check_target
from tips_nni.pipeline._latency import fit_packs as fit_packs
from tips_nni.pipeline._latency import predict_latency as predict_latency
from tips_nni.pipeline._latency import print_targets as print_targets
from tips_nni.pipeline._latency import quality_table as quality_table
from tips_nni.pipeline._listing import check as check
from tips_nni.pipeline._listing import print_spaces as print_spaces
from tips_nni.pipeline._listing import print_strategies as print_strategies
from tips_nni.pipeline._measure import MeasureOptions as MeasureOptions
from tips_nni.pipeline._measure import measure_latency as measure_latency
from tips_nni.pipeline._prepare import Parts as Parts
from tips_nni.pipeline._prepare import describe_network as describe_network
from tips_nni.pipeline._prepare import prepare as prepare
from tips_nni.pipeline._run import run as run
from tips_nni.pipeline._trained import load_parts as load_parts
from tips_nni.pipeline._trained import load_trained as load_trained
