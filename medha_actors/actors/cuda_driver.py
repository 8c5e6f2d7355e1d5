"""CUDA's driver, as far as rings need it: memory that other processes open, pinned memory, and
numbers that a stream writes and waits for.

Called directly, not through torch: torch's memory is cut from larger pieces, opened by the number
that a device has in this process (Ray gives every actor numbers of its own), and a stream that
waits for an event of a dead process may wait for ever. Handles of the driver work for devices that
the opening process does not see, and what waits for a number can be let go by the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medha_actors.actors.lanes import Driver

_HANDLE_BYTES = 64
_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE
_MAPPED = 2  # CU_MEMHOSTREGISTER_DEVICEMAP
_AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ: cyclic, of 32 bits with sign
_BEHIND_ALL = 0  # CU_STREAM_WRITE_VALUE_DEFAULT: with a barrier before it


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * _HANDLE_BYTES),)


_ADDRESS = ctypes.c_uint64
_POINTER = ctypes.c_void_p
_TO_ADDRESS = ctypes.POINTER(_ADDRESS)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), ctypes.c_int),
    "cuCtxSetCurrent": (_POINTER,),
    "cuMemAlloc_v2": (_TO_ADDRESS, ctypes.c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuIpcGetMemHandle": (ctypes.POINTER(_Handle), _ADDRESS),
    "cuIpcOpenMemHandle_v2": (_TO_ADDRESS, _Handle, ctypes.c_uint),
    "cuIpcCloseMemHandle": (_ADDRESS,),
    "cuMemHostRegister_v2": (_POINTER, ctypes.c_size_t, ctypes.c_uint),
    "cuMemHostUnregister": (_POINTER,),
    "cuMemHostGetDevicePointer_v2": (_TO_ADDRESS, _POINTER, ctypes.c_uint),
    "cuMemcpyAsync": (_ADDRESS, _ADDRESS, ctypes.c_size_t, _POINTER),
    "cuStreamWaitValue32_v2": (_POINTER, _ADDRESS, ctypes.c_uint32, ctypes.c_uint),
    "cuStreamWriteValue32_v2": (_POINTER, _ADDRESS, ctypes.c_uint32, ctypes.c_uint),
}


class CudaDriver(Driver):
    """Of one device. Raises RuntimeError, also where there is no driver."""

    def __init__(self, device: torch.device) -> None:
        torch.empty(1, device=device)  # torch makes the context
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"no CUDA driver: {error}") from None
        self._functions = {}
        for name, types in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = types
            function.restype = ctypes.c_int
            self._functions[name] = function
        ordinal = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(ordinal), index)
        self._context = _POINTER()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), ordinal)

    def queue(self) -> Any:
        return torch.cuda.Stream(self.device)

    def current(self) -> Any:
        return torch.cuda.current_stream(self.device)

    def follow(self, queue: Any, other: Any) -> None:
        queue.wait_stream(other)

    def idle(self, queue: Any) -> bool:
        try:
            return bool(queue.query())
        except (
            RuntimeError
        ):  # the device is lost to this process, and nothing runs there
            return True

    def empty(self, shape: Sequence[int], dtype: torch.dtype, queue: Any) -> Tensor:
        with torch.cuda.stream(queue):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def keep(self, tensor: Tensor, queue: Any) -> None:
        tensor.record_stream(queue)

    def copy(self, to: int, source: int, nbytes: int, queue: Any) -> None:
        self._here()
        self._call("cuMemcpyAsync", to, source, nbytes, queue.cuda_stream)

    def copy_now(self, to: int, source: int, nbytes: int) -> None:
        """Behind what torch has queued in this thread; done when it returns."""
        queue = self.current()
        self.copy(to, source, nbytes, queue)
        queue.synchronize()

    def write(self, address: int, number: int, queue: Any) -> None:
        self._here()
        self._call(
            "cuStreamWriteValue32_v2", queue.cuda_stream, address, number, _BEHIND_ALL
        )

    def wait(self, address: int, number: int, queue: Any) -> None:
        self._here()
        self._call(
            "cuStreamWaitValue32_v2", queue.cuda_stream, address, number, _AT_LEAST
        )

    def allocate(self, nbytes: int) -> int:
        self._here()
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        return address.value

    def release(self, address: int) -> None:
        self._here()
        self._call("cuMemFree_v2", address)

    def handle(self, address: int) -> bytes:
        self._here()
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle.bytes)

    def open(self, handle: bytes) -> int:
        self._here()
        address = _ADDRESS()
        given = _Handle((ctypes.c_ubyte * _HANDLE_BYTES).from_buffer_copy(handle))
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, _PEER_ACCESS)
        return address.value

    def close(self, address: int) -> None:
        self._here()
        self._call("cuIpcCloseMemHandle", address)

    def register(self, address: int, nbytes: int) -> int:
        self._here()
        self._call("cuMemHostRegister_v2", address, nbytes, _PORTABLE | _MAPPED)
        mapped = _ADDRESS()
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(mapped), address, 0)
        return mapped.value

    def unregister(self, address: int) -> None:
        self._here()
        self._call("cuMemHostUnregister", address)

    def _here(self) -> None:
        """Threads of Python have no context until torch gives them one."""
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            said = ctypes.c_char_p()
            self._functions["cuGetErrorName"](code, ctypes.byref(said))
            meaning = (said.value or b"an error without a name").decode()
            raise RuntimeError(f"{name}: {meaning}")
