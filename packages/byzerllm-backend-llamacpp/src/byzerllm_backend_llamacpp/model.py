"""A loaded GGUF model: its weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from byzerllm.errors import CapabilityError, ModelSourceError, ParameterError
from byzerllm_backend_llamacpp import log
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.parameters import LlamaCppParameters

_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
_NUMA = {"disabled": 0, "distribute": 1, "isolate": 2, "numactl": 3}
_NO_TOKEN = -1

_initialised = threading.Lock()
_numa_set = False


def initialise(parameters: LlamaCppParameters) -> None:
    """Set up what llama.cpp has once per process: its log, its devices, its NUMA strategy."""
    global _numa_set
    log.install(verbose=parameters.verbose)
    with _initialised:
        llama_cpp.llama_backend_init()
        if parameters.numa != "disabled" and not _numa_set:
            llama_cpp.llama_numa_init(_NUMA[parameters.numa])
            _numa_set = True


class Model:
    """Weights in memory. Blocking; not for an event loop.

    Args:
        file: the GGUF file, the first part of a split model.
        parameters: how to load it.
        gpu_layers: layers for the GPU; -1 is all.
        progress: takes the share loaded, 0 to 1; returning False gives up.

    Raises:
        ModelSourceError: llama.cpp cannot load the file or an adapter.
        CapabilityError: an architecture that this backend cannot run.
    """

    def __init__(
        self,
        file: Path,
        parameters: LlamaCppParameters,
        *,
        gpu_layers: int = 0,
        progress: Callable[[float], bool] = lambda share: True,
    ) -> None:
        self.file = file
        self._pieces: dict[int, bytes] = {}
        log.forget_errors()
        self.handle = _load(file, parameters, gpu_layers, progress)
        try:
            self._read_vocabulary()
            self.adapters = [self._adapter(path) for path in parameters.lora_path]
        except BaseException:
            self.close()
            raise

    def _read_vocabulary(self) -> None:
        if llama_cpp.llama_model_has_encoder(self.handle):
            raise CapabilityError(
                f"{self.file.name!r} is an encoder-decoder model, which the llama_cpp backend "
                "does not run; use the backend transformers"
            )
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.trained_context: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.embedding_size: int = llama_cpp.llama_model_n_embd_out(self.handle)
        self.bos: int = llama_cpp.llama_vocab_bos(self.vocab)
        self.eos: int = llama_cpp.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self.vocab)
        self.end_tokens = frozenset(
            token
            for token in range(self.vocab_size)
            if llama_cpp.llama_vocab_is_eog(self.vocab, token)
        )

    def _adapter(self, path: str) -> Any:
        if not Path(path).is_file():
            raise ModelSourceError(f"LoRA adapter {path!r} does not exist on this node")
        log.forget_errors()
        adapter = llama_cpp.llama_adapter_lora_init(self.handle, path.encode())
        if not adapter:
            reason = log.last_errors() or "it does not fit this model"
            raise ModelSourceError(f"LoRA adapter {path!r} cannot be loaded: {reason}")
        return adapter

    def close(self) -> None:
        """Free the weights, adapters included; contexts must be gone before."""
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def metadata(self, key: str) -> str:
        """The GGUF metadata value under `key` as text; '' when there is none."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
            if length < size:
                return buffer.raw[:length].decode("utf-8", "replace") if length > 0 else ""
            size = length + 1

    @property
    def architecture(self) -> str:
        return self.metadata("general.architecture")

    @property
    def name(self) -> str:
        return self.metadata("general.name") or self.file.stem

    @property
    def only_embeds(self) -> bool:
        """Whether the model attends in both directions, as embedding models do."""
        return self.metadata(f"{self.architecture}.attention.causal") == "false"

    def pools(self) -> bool:
        """Whether the model says itself how its token vectors become one."""
        return bool(self.metadata(f"{self.architecture}.pooling_type"))

    def cache_bytes_per_token(self, key_bytes: float, value_bytes: float) -> float:
        """Memory of one token in the cache, by the bytes of a key and of a value element."""
        heads = llama_cpp.llama_model_n_head_kv(self.handle)
        all_heads = max(1, llama_cpp.llama_model_n_head(self.handle))
        size = llama_cpp.llama_model_n_embd(self.handle) // all_heads
        attention = f"{self.architecture}.attention"
        key_size = int(self.metadata(f"{attention}.key_length") or size)
        value_size = int(self.metadata(f"{attention}.value_length") or size)
        layers = llama_cpp.llama_model_n_layer(self.handle)
        return float(layers * heads * (key_size * key_bytes + value_size * value_bytes))

    def tokenize(self, text: str, *, special: bool = True, add_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            special: texts of special tokens (`<|im_end|>`) become those tokens.
            add_special: begin and end with what the model wants (BOS, CLS, SEP).
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self.vocab, data, len(data), tokens, room, add_special, special
            )
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise ParameterError(f"a text of {len(data):,} bytes is too long to tokenize")
            room = -count

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Tokens of a prompt, with one BOS where the model wants it, written out or not."""
        tokens = self.tokenize(prompt)
        if self.adds_bos and self.bos != _NO_TOKEN and tokens[:1] != [self.bos]:
            return [self.bos, *tokens]
        return tokens

    def piece(self, token: int) -> bytes:
        """Bytes of a token as they stand in an answer; control tokens have none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._render(token, special=False)
        return piece

    def token_text(self, token: int) -> str:
        """A token for the eye, control tokens included."""
        return self._render(token, special=True).decode("utf-8", "replace")

    def special_text(self, token: int) -> str:
        """Text of a special token such as BOS; '' for none."""
        if token == _NO_TOKEN:
            return ""
        text: bytes = llama_cpp.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace")

    def control_token(self, text: str) -> int | None:
        """The control token that `text` spells, if it is one.

        Such a text never appears in an answer, so a stop string of it must stop by its token.
        """
        tokens = self.tokenize(text)
        if len(tokens) == 1 and llama_cpp.llama_vocab_is_control(self.vocab, tokens[0]):
            return tokens[0]
        return None

    def _render(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length


def _load(
    file: Path,
    parameters: LlamaCppParameters,
    gpu_layers: int,
    progress: Callable[[float], bool],
) -> Any:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.split_mode = _SPLIT_MODES[parameters.split_mode]
    params.main_gpu = parameters.main_gpu
    params.check_tensors = parameters.check_tensors
    params.load_mode = _load_mode(parameters)
    split = _tensor_split(parameters.tensor_split)
    if split is not None:
        params.tensor_split = split

    @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
    def report(share: float, _user_data: ctypes.c_void_p) -> bool:
        return progress(share)

    params.progress_callback = report
    handle = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
    if not handle:
        reason = log.last_errors() or "it was given up"
        raise ModelSourceError(f"llama.cpp cannot load {str(file)!r}: {reason}")
    return handle


def _load_mode(parameters: LlamaCppParameters) -> int:
    modes = {
        (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
        (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
        (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
    }
    return int(modes[parameters.use_mmap, parameters.use_mlock])


def _tensor_split(shares: Sequence[float]) -> Any:
    """A C array of `shares`, filled up to the devices that llama.cpp knows."""
    if not shares:
        return None
    devices = llama_cpp.llama_max_devices()
    if len(shares) > devices:
        raise ParameterError.invalid(
            "tensor_split",
            f"{len(shares)} shares for at most {devices} devices",
            where="backend 'llama_cpp'",
        )
    return (ctypes.c_float * devices)(*shares)
