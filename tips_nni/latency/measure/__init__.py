"""Measuring the device that this runs on; needs torch and onnxruntime, so nothing else here imports it."""

from tips_nni.latency.measure._device import Measurement as Measurement
from tips_nni.latency.measure._device import measure_device as measure_device
from tips_nni.latency.measure._device import repeatability as repeatability
from tips_nni.latency.measure._networks import entries_of as entries_of
from tips_nni.latency.measure._networks import sample_subnets as sample_subnets
from tips_nni.latency.measure._runtime import RUNTIMES as RUNTIMES
from tips_nni.latency.measure._runtime import table_rows as table_rows
