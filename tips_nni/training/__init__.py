"""Training of supernets: data, the Lightning module, checkpoints and measurement."""

from tips_nni.training._alone import train_alone as train_alone
from tips_nni.training._checkpoint import CHECKPOINT as CHECKPOINT
from tips_nni.training._checkpoint import load_policy_state as load_policy_state
from tips_nni.training._checkpoint import load_weights as load_weights
from tips_nni.training._data import ImageData as ImageData
from tips_nni.training._data import load_data as load_data
from tips_nni.training._distill import distillation_loss as distillation_loss
from tips_nni.training._fit import TrainingSummary as TrainingSummary
from tips_nni.training._fit import train as train
from tips_nni.training._measure import accuracy as accuracy
from tips_nni.training._measure import load_batches as load_batches
from tips_nni.training._measure import measure_subnets as measure_subnets
from tips_nni.training._module import SupernetModule as SupernetModule
from tips_nni.training._module import gradient_norms as gradient_norms
from tips_nni.training._optimizer import check_training as check_training
from tips_nni.training._trainer import process_rank as process_rank
from tips_nni.training._trainer import root_device as root_device
