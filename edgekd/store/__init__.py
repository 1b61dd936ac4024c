"""What was computed is kept: results of stages by content, trials in order."""

from edgekd.store.files import replacing, write_text
from edgekd.store.history import TrialLog
from edgekd.store.results import Store

__all__ = ["Store", "TrialLog", "replacing", "write_text"]
