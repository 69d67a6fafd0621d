"""nn-Meter's predictor packs: loading, prediction by nn-Meter, the exact table over a search space, and export.

Prediction and building a table need the extra ``nn-meter``; reading packs and finished tables does not.
"""

from tips_nni.latency.nn_meter._export import export_pack as export_pack
from tips_nni.latency.nn_meter._official import official_packs as official_packs
from tips_nni.latency.nn_meter._pack import NnMeterPack as NnMeterPack
from tips_nni.latency.nn_meter._pack import load_nn_meter as load_nn_meter
from tips_nni.latency.nn_meter._predict import Coverage as Coverage
from tips_nni.latency.nn_meter._predict import KernelTime as KernelTime
from tips_nni.latency.nn_meter._predict import Prediction as Prediction
from tips_nni.latency.nn_meter._predict import predict as predict
from tips_nni.latency.nn_meter._table import NnMeterTable as NnMeterTable
