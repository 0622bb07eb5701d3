"""What takes reports: one file a sink. A logging library is imported when its recorder is made."""

from interptrain.recorders.jsonl import JSONLRecorder, read_alarms, read_curves
from interptrain.recorders.memory import MemoryRecorder
from interptrain.recorders.notebook import CurvesDisplay
from interptrain.recorders.tensorboard import TensorBoardRecorder
from interptrain.recorders.wandb import WandbRecorder

__all__ = [
    "CurvesDisplay",
    "JSONLRecorder",
    "MemoryRecorder",
    "TensorBoardRecorder",
    "WandbRecorder",
    "read_alarms",
    "read_curves",
]
