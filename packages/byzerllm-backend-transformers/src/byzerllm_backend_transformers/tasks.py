"""What all tasks of this backend share: a loaded model that computes on a thread of its own."""

from __future__ import annotations

import abc
import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from byzerllm.backend import Backend, BackendContext
from byzerllm.errors import BackendError, ModelLoadError
from byzerllm_backend_transformers.families import Family
from byzerllm_backend_transformers.folder import ModelFolder
from byzerllm_backend_transformers.parameters import TransformersParameters

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What a task is loaded from.

    Attributes:
        given_up: set when nobody waits for the model any more; looked at between steps.
    """

    context: BackendContext
    folder: ModelFolder
    family: Family
    given_up: threading.Event

    @property
    def parameters(self) -> TransformersParameters:
        parameters: TransformersParameters = self.context.parameters
        return parameters

    def report(self, phase: str) -> None:
        """Tell the one who waits what goes on.

        Raises:
            ModelLoadError: nobody waits any more.
        """
        if self.given_up.is_set():
            raise ModelLoadError("loading was given up")
        self.context.report(phase)


class Task(Backend):
    """One loaded model. `load` is called on a thread; everything else on the worker's loop.

    Class attributes:
        capability: what the model does, as errors name it.
    """

    capability: ClassVar[str]

    def __init__(self, loading: Loading) -> None:
        self.folder = loading.folder
        self.family = loading.family
        self.parameters = loading.parameters
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._closed = False

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        raise NotImplementedError("tasks are made by TransformersBackend.create")

    @classmethod
    @abc.abstractmethod
    def load(cls, loading: Loading) -> Self:
        """Load the model. Blocking."""

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` on the model's thread, one call after the other.

        A caller that leaves does not stop a computation; long ones look at an event between steps.

        Raises:
            BackendError: the model is closed, or there is not enough memory for this request.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work, *arguments)
        except Exception as error:
            if is_out_of_memory(error):
                raise BackendError(out_of_memory_text(error)) from error
            raise

    @property
    def closed(self) -> bool:
        """No answer is wanted any more; long computations look at it between steps."""
        return self._closed

    def check_open(self) -> None:
        """Raise BackendError when the model is closed."""
        if self._closed:
            raise BackendError(f"model {self.folder.path.name!r} is closed")

    async def health(self) -> None:
        self.check_open()

    async def close(self) -> None:
        """Free the model; repeatable."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
            self.free()

    def free(self) -> None:
        """Drop what holds memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no room, on a GPU or in main memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # Two wordings of torch's allocator for main memory.
    said = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)


def out_of_memory_text(error: BaseException) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"not enough memory for this request ({first}); ask for less, or deploy with a smaller "
        "worker_concurrency, with quantization, or with more memory"
    )
