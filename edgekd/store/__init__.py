"""What was computed is kept: results of stages by content, trials and verdicts in order."""

from edgekd.store.files import replacing, write_text
from edgekd.store.history import TrialLog
from edgekd.store.measurements import GateLog
from edgekd.store.results import Store

__all__ = ["GateLog", "Store", "TrialLog", "replacing", "write_text"]
