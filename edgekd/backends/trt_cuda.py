"""The two dozen calls of the CUDA driver that an inference needs, typed and checked, through ctypes.

A board has the driver's own library and no Python package around it. The driver's interface is used and not the
runtime's: `libcuda.so.1` is wherever a GPU works and keeps its name, `libcudart` has another one with each CUDA.
TensorRT works on the device's primary context, which is the one retained here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass

from edgekd.errors import BackendMissing, BuildError, DeviceError

LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_SPIN = 1  # CU_CTX_SCHED_SPIN
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no order with the legacy default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76  # CU_DEVICE_ATTRIBUTE_...
_NAME_BYTES = 256
_SIGNATURES: dict[
    str, Sequence[type]
] = {  # every one returns a CUresult; a pointer is filled in or handed over
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (c_void_p, c_int),
    "cuDevicePrimaryCtxSetFlags_v2": (c_int, c_uint),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The device that an engine is built for: an engine is good for no other."""

    name: str
    capability: str  # "8.7"
    driver: int  # 12060 is 12.6
    memory_mib: int
    integrated: bool  # it shares the machine's memory, as on a Jetson


class Cuda:
    """The first GPU, its primary context, and what can be asked of them; handles and addresses are plain integers."""

    def __init__(self) -> None:
        """Reach the driver.

        Raises:
            BackendMissing: there is no driver here.
            DeviceError: the driver finds no device that works.

        """
        self._library = _load()
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        # A thread that sleeps until the GPU is done is woken late, and its CPU time says nothing of the inference.
        self._call("cuDevicePrimaryCtxSetFlags_v2", self._device, _SPIN)
        self._context = self._filled("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", self._context)
        self.gpu = self._gpu()

    def close(self) -> None:
        """Let go of the primary context."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def device_memory(self, size_bytes: int) -> int:
        """Allocate memory on the GPU.

        Raises:
            BuildError: there is not enough.

        """
        return self._filled("cuMemAlloc_v2", size_bytes)

    def free_device(self, address: int) -> None:
        """Free what `device_memory` gave."""
        self._call("cuMemFree_v2", address)

    def pinned_memory(self, size_bytes: int) -> int:
        """Allocate host memory that the GPU reads and writes without a detour.

        Raises:
            BuildError: there is not enough.

        """
        return self._filled("cuMemHostAlloc", size_bytes, 0)

    def free_pinned(self, address: int) -> None:
        """Free what `pinned_memory` gave."""
        self._call("cuMemFreeHost", address)

    def copy_in(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from pinned memory to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size_bytes, stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from the GPU to pinned memory."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size_bytes, stream)

    def stream(self) -> int:
        """Make a queue of work."""
        return self._filled("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until a queue is empty."""
        self._call("cuStreamSynchronize", stream)

    def free_stream(self, stream: int) -> None:
        """Free what `stream` gave."""
        self._call("cuStreamDestroy_v2", stream)

    def event(self) -> int:
        """Make a mark that takes the GPU's time."""
        return self._filled("cuEventCreate", 0)

    def record(self, event: int, stream: int) -> None:
        """Queue a mark."""
        self._call("cuEventRecord", event, stream)

    def elapsed_ns(self, start: int, end: int) -> int:
        """Return the GPU's time between two marks that have passed; its resolution is about 500 ns."""
        found_ms = c_float()
        self._call("cuEventElapsedTime", ctypes.byref(found_ms), start, end)
        return round(found_ms.value * 1e6)

    def free_event(self, event: int) -> None:
        """Free what `event` gave."""
        self._call("cuEventDestroy_v2", event)

    def begin_capture(self, stream: int) -> None:
        """Write down what this thread queues from now on, instead of doing it."""
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return what was written down, ready to be launched as one."""
        graph = self._filled_last("cuStreamEndCapture", stream)
        try:
            return self._filled("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Queue all that was written down."""
        self._call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        """Free what `end_capture` gave."""
        self._call("cuGraphExecDestroy", graph)

    def _gpu(self) -> Gpu:
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        total, driver = c_size_t(), c_int()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(driver))
        return Gpu(
            name=name.value.decode(errors="replace"),
            capability=f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}",
            driver=driver.value,
            memory_mib=total.value >> 20,
            integrated=bool(self._attribute(_INTEGRATED)),
        )

    def _attribute(self, which: int) -> int:
        found = c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), which, self._device)
        return found.value

    def _filled(self, name: str, *arguments: int) -> int:
        """Call what fills in its first argument, and return that."""
        found = c_void_p()
        self._call(name, ctypes.byref(found), *arguments)
        return found.value or 0

    def _filled_last(self, name: str, *arguments: int) -> int:
        found = c_void_p()
        self._call(name, *arguments, ctypes.byref(found))
        return found.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            mend = "use a smaller model or batch, or end what else uses the GPU"
            raise BuildError("the GPU has no memory left for this engine", cause=self._words(code), mend=mend)
        if code:
            mend = "look into `dmesg`; where the GPU is lost, only a new process or a reboot helps"
            raise DeviceError(f"CUDA's {name} failed", cause=self._words(code), mend=mend)

    def _words(self, code: int) -> str:
        found = [c_char_p(), c_char_p()]
        for call, text in zip(("cuGetErrorName", "cuGetErrorString"), found):
            getattr(self._library, call)(code, ctypes.byref(text))
        name, description = ((text.value or b"?").decode(errors="replace") for text in found)
        return f"{name} ({code}): {description}"


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(arguments), c_int
    except (OSError, AttributeError) as error:
        raise BackendMissing(
            "this machine has no NVIDIA driver that TensorRT can use",
            cause=str(error),
            mend="install the GPU's driver; in a container, start it with the NVIDIA runtime (`--runtime nvidia`)",
        ) from error
    return library
