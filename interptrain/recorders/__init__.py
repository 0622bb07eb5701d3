"""What takes reports: one file a sink."""

from interptrain.recorders.jsonl import JSONLRecorder
from interptrain.recorders.memory import MemoryRecorder

__all__ = ["JSONLRecorder", "MemoryRecorder"]
