"""Predicted latency: packs for real devices, fitted on measurements, and the table over a search space."""

from tips_nni.latency._fit import DEVICES as DEVICES
from tips_nni.latency._fit import Record as Record
from tips_nni.latency._fit import evaluate as evaluate
from tips_nni.latency._fit import fit_pack as fit_pack
from tips_nni.latency._fit import predict_records as predict_records
from tips_nni.latency._fit import read_records as read_records
from tips_nni.latency._kernels import FEATURES as FEATURES
from tips_nni.latency._kernels import Kernel as Kernel
from tips_nni.latency._kernels import kernel_of as kernel_of
from tips_nni.latency._pack import PredictorPack as PredictorPack
from tips_nni.latency._pack import load_pack as load_pack
from tips_nni.latency._pack import pack_names as pack_names
from tips_nni.latency._table import LatencyTable as LatencyTable
