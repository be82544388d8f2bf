"""Loading weights: where they go, in which numbers, whether they fit, and how far it is."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from byzerllm.decoding.threads import thread_count
from byzerllm.errors import ByzerLLMError, ModelLoadError, ModelSourceError, NotInstalledError
from byzerllm_backend_transformers.folder import ModelFolder, tensors
from byzerllm_backend_transformers.gguf_header import count_weights
from byzerllm_backend_transformers.tasks import Loading, is_out_of_memory

logger = logging.getLogger(__name__)

_STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
_CONTROL_GROUPS = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)
"""Limit and use of a container's memory, of both versions of control groups."""
# Embeddings, and the head, by their names in most models.
_NEVER_QUANTIZED = ("embed", "lm_head", "wte", "wpe")
# What loading needs beside the weights: buffers, the first activations, the allocator's rounding.
_OVERHEAD = 1.15


def device_of(loading: Loading) -> torch.device:
    """Where the model goes when it goes to one device.

    Raises:
        ModelLoadError: a device that this machine has not.
    """
    given = loading.parameters.device
    if given is None:
        on_gpu = loading.context.gpus > 0
        if on_gpu and not torch.cuda.is_available():
            raise ModelLoadError(
                "the worker reserved a GPU, but torch cannot use one here "
                f"(torch {torch.__version__}); install a torch build for this GPU, or deploy with "
                "gpus_per_worker 0"
            )
        return torch.device("cuda" if on_gpu else "cpu")
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelLoadError(
            f"device {given!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return device


def dtype_of(loading: Loading, device: torch.device) -> torch.dtype:
    """The numbers to compute with: those asked for, else float32 on a CPU and the folder's own, or
    half precision, elsewhere."""
    given = loading.parameters.dtype
    if given != "auto":
        dtype: torch.dtype = getattr(torch, given)
        return dtype
    if device.type == "cpu":
        return torch.float32
    config = loading.folder.config
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    return getattr(torch, stored.removeprefix("torch."), torch.float16)


def set_threads(loading: Loading) -> None:
    """Give torch the threads of this worker."""
    given = loading.parameters.threads
    torch.set_num_threads(given or thread_count(loading.context.cpus))


def check_memory(
    loading: Loading, device: torch.device, dtype: torch.dtype, *, weights: int | None = None
) -> None:
    """Report how much memory the weights will take, and refuse what cannot fit.

    Args:
        weights: bytes of the loaded weights; None counts all that lie in the folder.

    Raises:
        ModelLoadError: more than there is.
    """
    if weights is None:
        weights = weight_bytes(loading.folder, dtype, loading.parameters.quantization)
    needed = int(weights * _OVERHEAD)
    free, place = _free_memory(device)
    loading.report(f"needs about {_gib(needed)} of {_gib(free)} free {place}")
    if needed > free:
        numbers = _numbers(dtype, loading.parameters.quantization)
        raise ModelLoadError(
            f"{loading.folder.path.name} needs about {_gib(needed)} as {numbers}, and {_gib(free)} "
            f"are free {place}; deploy it with quantization=8 or 4, in smaller numbers "
            "(dtype=bfloat16), with more GPUs (gpus_per_worker), or on a larger machine"
        )


def weight_bytes(folder: ModelFolder, dtype: torch.dtype, bits: int | None) -> int:
    """Bytes of the weights once they are loaded."""
    if "quantization_config" in folder.config:
        return folder.weight_bytes
    size = int(torch.empty(0, dtype=dtype).element_size()) * 8
    if folder.gguf:
        return count_weights(folder.path / folder.gguf) * size // 8
    total = 0
    for file in folder.weight_files:
        if file.suffix != ".safetensors":
            # Most pickled weights are of 16 bits.
            total += file.stat().st_size * size // 16
            continue
        for name, stored, shape, length in tensors(file):
            count = length // _STORED_BYTES.get(stored, 2)
            quantized = len(shape) > 1 and not any(part in name for part in _NEVER_QUANTIZED)
            total += count * (bits if bits and quantized else size) // 8
    return total


def _free_memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        return free, "on the GPU" if torch.cuda.device_count() == 1 else "on the GPUs"
    available = psutil.virtual_memory().available
    container = _container_memory()
    if container is not None and container < available:
        return container, "in the container's memory"
    return available, "in main memory"


def _container_memory() -> int | None:
    """Bytes that the control group of this process may still take; None without a limit."""
    for limit, used in _CONTROL_GROUPS:
        try:
            return max(0, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # Not there, or "max".
            continue
    return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"


def _numbers(dtype: torch.dtype, bits: int | None) -> str:
    return f"int{bits}" if bits else str(dtype).removeprefix("torch.")


def quantization_config(loading: Loading, device: torch.device) -> Any:
    """bitsandbytes' configuration for `quantization`, None for none.

    Raises:
        NotInstalledError: the extra is missing.
        ModelLoadError: bitsandbytes cannot run here.
    """
    bits = loading.parameters.quantization
    if bits is None:
        return None
    done = loading.folder.config.get("quantization_config")
    if isinstance(done, Mapping):
        raise ModelLoadError(
            f"the weights in {loading.folder.path} are quantized already "
            f"({done.get('quant_method', 'unknown')}); deploy them without quantization"
        )
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            "quantization needs the package 'bitsandbytes'; run: "
            "pip install 'byzerllm-backend-transformers[quantization]'"
        ) from error
    except Exception as error:
        raise ModelLoadError(f"bitsandbytes cannot be loaded on this platform: {error}") from error
    if bits == 8:
        # It says so in every layer at every token.
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype_of(loading, device),
    )


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)


def check_trust(loading: Loading) -> None:
    """Refuse a folder whose code would have to run, unless that was asked for.

    Raises:
        ModelLoadError: names the parameter; or the code is not there.
    """
    if not needs_remote_code(loading):
        return
    if not loading.folder.own_code:
        raise ModelLoadError(
            f"the model in {loading.folder.path} (model_type {loading.folder.model_type!r}) is "
            "known neither to the installed transformers nor by code in the folder; fetch it with "
            "its *.py files, and deploy it with trust_remote_code=true if you trust its authors"
        )
    if loading.parameters.trust_remote_code:
        return
    raise _untrusted(loading)


def _untrusted(loading: Loading) -> ModelLoadError:
    return ModelLoadError(
        f"the model in {loading.folder.path} runs Python code of its own, which transformers has "
        "not; if you trust its authors, deploy with --infer_params trust_remote_code=true"
    )


def needs_remote_code(loading: Loading) -> bool:
    """Whether the installed transformers cannot run the folder without the code in it."""
    folder = loading.folder
    if folder.gguf or (folder.path / "model_index.json").is_file():
        return False
    known = folder.model_type in transformers.CONFIG_MAPPING
    return not known and (folder.own_code or loading.family.remote_code)


def model_arguments(loading: Loading) -> dict[str, Any]:
    """Arguments of `from_pretrained` for one model: place, numbers, quantization, trust.

    Checks trust, memory and platform on the way; see their functions for what is raised.
    """
    check_trust(loading)
    set_threads(loading)
    device = device_of(loading)
    dtype = dtype_of(loading, device)
    check_memory(loading, device, dtype)
    parameters = loading.parameters
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": parameters.trust_remote_code,
        "local_files_only": True,
    }
    several = loading.context.gpus > 1
    map_ = parameters.device_map or ("auto" if several else None)
    if map_ is not None:
        arguments["device_map"] = map_
    elif device.type != "cpu":
        arguments["device_map"] = {"": str(device)}
    quantization = quantization_config(loading, device)
    if quantization is not None:
        arguments["quantization_config"] = quantization
        arguments.setdefault("device_map", {"": str(device)})
    if parameters.attn_implementation is not None:
        arguments["attn_implementation"] = parameters.attn_implementation
    if loading.folder.gguf:
        arguments |= _gguf_arguments(loading)
    return arguments


def check_gguf(loading: Loading) -> None:
    """Raise NotInstalledError for a GGUF file without the package that reads it."""
    if loading.folder.gguf and importlib.util.find_spec("gguf") is None:
        raise NotInstalledError(
            f"reading {loading.folder.gguf} needs the package 'gguf'; run: "
            "pip install 'byzerllm-backend-transformers[gguf]'"
        )


def _gguf_arguments(loading: Loading) -> dict[str, Any]:
    """The file's weights as whole numbers; transformers otherwise keeps them packed, which few
    models and devices compute with."""
    if loading.parameters.quantization is not None:
        raise ModelLoadError(
            "quantization is for folders in transformers' format; a GGUF file is quantized when it "
            "is made: deploy it without, or on the backend llama_cpp, which computes with its "
            "packed weights"
        )
    arguments: dict[str, Any] = {"gguf_file": loading.folder.gguf}
    config = getattr(transformers, "GgufConfig", None)  # Older ones always dequantize.
    if config is not None:
        arguments["quantization_config"] = config(dequantize=True)
    return arguments


def load(
    loading: Loading,
    from_pretrained: Callable[..., Any],
    arguments: Mapping[str, Any] | None = None,
    *,
    complete: bool = False,
) -> Any:
    """`from_pretrained(folder, **arguments)` with its progress reported and its errors named.

    Args:
        complete: refuse weights that lack some of the model's, which transformers would make up.

    Raises:
        ModelSourceError: the folder cannot be read as what it should be.
        ModelLoadError: no memory, or what else transformers says.
    """
    given = model_arguments(loading) if arguments is None else arguments
    with _progress(loading), explained(loading):
        if not complete:
            return from_pretrained(loading.folder.path, **given)
        model, told = from_pretrained(loading.folder.path, output_loading_info=True, **given)
    missing = sorted(told["missing_keys"])
    if missing:
        raise ModelSourceError(
            f"the weights in {loading.folder.path} lack {len(missing)} tensors that the model of "
            f"its config has ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "weights and config.json do not belong together, or some weights were not fetched"
        )
    return model


@contextmanager
def explained(loading: Loading, what: str = "") -> Iterator[None]:
    """Turns what loading raises into one error that names the folder."""
    folder = loading.folder
    path = f"{what}{folder.path / folder.gguf}"
    hint = "; is the file whole?" if folder.gguf else ""
    try:
        yield
    except ByzerLLMError:
        raise
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"loading {path} needs the package {error.name!r}; run: pip install {error.name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise _untrusted(loading) from error
        raise ModelSourceError(f"{path} cannot be loaded: {_first_lines(error)}{hint}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelLoadError(
                f"not enough memory to load {loading.folder.path.name}: {_first_lines(error)}"
            ) from error
        raise ModelLoadError(f"{path} cannot be loaded: {_first_lines(error)}{hint}") from error


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


@contextmanager
def _progress(loading: Loading) -> Iterator[None]:
    """Reports transformers' own progress instead of drawing bars."""
    loading.report("loading weights")

    def bar(factory: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> _Bar:
        return _Bar(loading, *arguments, **options)

    before = transformers.utils.logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


class _Bar:
    """What transformers uses of tqdm, told in steps of a tenth.

    Args:
        iterable: what is gone through, None where `update` is called.
        desc: what is done; lower case in reports.
        total: number of steps where the iterable does not know.
    """

    def __init__(
        self,
        loading: Loading,
        iterable: Iterable[Any] | None = None,
        desc: str = "loading",
        total: int | None = None,
        **ignored: Any,
    ) -> None:
        self._loading = loading
        self._iterable = iterable
        self._what = desc[:1].lower() + desc[1:]
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._done = 0.0
        self._tenth = -1

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, count: float = 1) -> None:
        self._done += count
        tenth = int(self._done * 10 / self._total) if self._total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self._loading.report(f"{self._what} {tenth * 10} %")

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Closing, descriptions and postfixes: nothing to draw, nothing to do."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: None
