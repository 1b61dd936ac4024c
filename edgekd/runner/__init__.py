"""What a bundle runs by itself, in parts: `script(kind)` puts them together into its one `run.py`.

The evaluation prepares inputs by the same lines. The parts need the standard library and numpy, and import nothing of
edgekd but each other.
"""

from edgekd.runner.answers_classification import classify, softmax
from edgekd.runner.files import MANIFEST, SCHEMA_VERSION, Refusal, read_manifest, read_verified
from edgekd.runner.from_image import load as load_image
from edgekd.runner.from_image import prepare as preprocess
from edgekd.runner.joined import ENDS as KINDS
from edgekd.runner.joined import script
from edgekd.runner.program import main
from edgekd.runner.student import Student

__all__ = [
    "KINDS", "MANIFEST", "SCHEMA_VERSION", "Refusal", "Student", "classify", "load_image", "main", "preprocess", "read_manifest",
    "read_verified", "script", "softmax",
]  # fmt: skip
