"""A device session on file: recorded while it happens, and replayed as a device where there is no board.

An order is found by its content (`asked.py`): digests of files, runtime, precision, threads, shapes and the whole
protocol with its seed; never by a path, or by its place in the session. So the same command with the same seeds finds
exactly its own records, in whatever order it asks. The same question asked again gets the next answer recorded; one
that was never recorded, or not as often, is an error.

Nothing is guessed from something similar. A student that was trained anew has other weights, so that neither its
outputs nor its accuracy are those on the cassette, though it would be as fast. A plan, a gate and a profile replay
from the files alone; for a run, what the host trained and exported lies on the cassette too (`results.py`).
"""

from edgekd.devices.cassette.recording import RecordedDevice, record
from edgekd.devices.cassette.replaying import CassetteDevice
from edgekd.devices.cassette.tape import recorded_profile

__all__ = ["CassetteDevice", "RecordedDevice", "record", "recorded_profile"]
