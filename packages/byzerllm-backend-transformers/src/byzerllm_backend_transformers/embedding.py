"""Texts to vectors: folders of sentence-transformers, and plain encoders of transformers."""

from __future__ import annotations

import asyncio
import functools
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from byzerllm.errors import BackendError, CapabilityError, ModelLoadError, ParameterError
from byzerllm.requests import EmbedRequest, EmbedResult, ModelMeta, Usage
from byzerllm_backend_transformers.encoder import Encoder, check_texts, token_counts
from byzerllm_backend_transformers.folder import ModelFolder
from byzerllm_backend_transformers.loading import device_of, load
from byzerllm_backend_transformers.tasks import Loading

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_EXTRA = ("prompt_name",)
_ANSWERING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Kind:
    """What only texts alike may share a batch: `query` or `document`, and what is put before."""

    task: str
    prompt: str


class Embedding(Encoder):
    """One model of vectors."""

    capability: ClassVar[str] = "embedding"

    def __init__(self, loading: Loading, model: Any) -> None:
        super().__init__(loading, model)
        self._normalized = _normalized(loading, model)
        self._query = _query_instruction(loading, model)
        self._lengths = _lengths(loading.folder)
        self.dimensions = int(model.get_embedding_dimension() or 0)

    @classmethod
    def load(cls, loading: Loading) -> Self:
        _check_type(loading)
        return cls(loading, load(loading, functools.partial(_made, loading)))

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text. Texts longer than `max_seq_length` tokens are cut there.

        Raises:
            ParameterError: no texts, an empty one, one that is no text, or an unknown parameter.
            CapabilityError: the model has no vectors of so many dimensions.
            BackendError: not enough memory, or a vector that is not finite.
        """
        self.check_open()
        if not request.texts:
            raise ParameterError("no texts to embed; give at least one", parameter="texts")
        check_texts(request.texts, "text")
        self._check_dimensions(request.dimensions)
        kind = self._kind(request)
        rows = await self._batches.rows(request.texts, [len(t) for t in request.texts], kind)
        vectors = [vector for vector, _ in rows]
        if request.dimensions is not None and request.dimensions != self.dimensions:
            vectors = await asyncio.to_thread(self._cut, vectors, request.dimensions)
        tokens = sum(count for _, count in rows)
        return EmbedResult(vectors=vectors, usage=Usage(prompt_tokens=tokens))

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            support_stream=False,
            max_model_len=self.max_length,
            architectures=self.folder.architectures,
            model_name=self.folder.path.name,
            embedding_mode=True,
            message_format=False,
            task="embedding",
        )

    def rows(self, kind: Kind, texts: list[str]) -> list[tuple[list[float], int]]:
        """Vector and number of tokens of each text."""
        features = self._model.preprocess(texts, prompt=kind.prompt or None, task=kind.task)
        counts = token_counts(features, len(texts))
        vectors = self.pass_through(features, task=kind.task)["sentence_embedding"].float()
        if self._normalized:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        vectors = vectors.cpu()
        if not bool(torch.isfinite(vectors).all()):
            raise BackendError(
                "the model made a vector that is not finite; deploy it with dtype=float32"
            )
        return list(zip(vectors.tolist(), counts, strict=True))

    def _kind(self, request: EmbedRequest) -> Kind:
        unknown = sorted(set(request.extra) - set(_EXTRA))
        if unknown:
            raise ParameterError.unknown(unknown[0], _EXTRA, where="embedding with transformers")
        task = "query" if request.query else "document"
        prompts = self._model.prompts
        name = request.extra.get("prompt_name")
        if name is not None:
            if name not in prompts:
                raise ParameterError.invalid(
                    "prompt_name",
                    f"the folder has no prompt {name!r}; it has {', '.join(sorted(prompts))}",
                    where="embedding with transformers",
                )
            return Kind(task, prompts[name])
        if request.query:
            return Kind(task, self._query)
        own = (prompts[name] for name in _DOCUMENT_PROMPTS if prompts.get(name))
        return Kind(task, next(own, ""))

    def _cut(self, vectors: list[list[float]], dimensions: int) -> list[list[float]]:
        """The first numbers of each vector."""
        cut = torch.tensor(vectors)[:, :dimensions]
        if self._normalized:
            cut = torch.nn.functional.normalize(cut, dim=-1)
        shorter: list[list[float]] = cut.tolist()
        return shorter

    def _check_dimensions(self, wanted: int | None) -> None:
        own = self.dimensions
        if wanted is None or wanted == own:
            return
        if self._lengths is not None and wanted < own and wanted in self._lengths:
            return
        said = "they may not be cut: its folder says nothing of shorter ones"
        if isinstance(self._lengths, range):
            said = f"or any smaller number of them, not {wanted:,}"
        elif self._lengths is not None:
            said = f"or one of {', '.join(map(str, sorted(self._lengths)))}"
        raise CapabilityError(
            f"model {self.folder.path.name!r} makes vectors of {own} numbers; {said}",
            parameter="dimensions",
        )


def _check_type(loading: Loading) -> None:
    """Refuse a folder whose model makes no vectors of texts.

    Raises:
        ModelLoadError: says what it is.
    """
    folder = loading.folder
    saved = folder.saved_class
    names = folder.architectures
    head = next((n for n in names if n.endswith("ForSequenceClassification")), "")
    if head or saved == "CrossEncoder":
        raise ModelLoadError(
            f"{folder.path} holds {head or saved}, which scores texts and makes no vectors; deploy "
            "it as custom/bge_rerank"
        )
    if saved not in ("", "SentenceTransformer"):
        raise ModelLoadError(
            f"{folder.path} holds a {saved}, which makes several or sparse vectors of a text; "
            f"{loading.family.type} needs one dense vector"
        )
    other = "model_index.json" if (folder.path / "model_index.json").is_file() else ""
    other = other or next((name for name in names if name.endswith(_ANSWERING)), "")
    if folder.gguf or (other and not folder.is_sentence_transformer):
        what = folder.gguf or other
        raise ModelLoadError(
            f"{folder.path} holds {what}, no model of vectors; {loading.family.type} needs a "
            "folder of sentence-transformers or an encoder of transformers"
        )


def _made(loading: Loading, path: os.PathLike[str], **arguments: Any) -> Any:
    """A `SentenceTransformer`; a plain encoder's tokens are pooled as its family does."""
    trust = arguments.pop("trust_remote_code")
    arguments.pop("local_files_only")
    device = None if "device_map" in arguments else str(device_of(loading))
    common = {"trust_remote_code": trust, "local_files_only": True}
    if loading.folder.is_sentence_transformer:
        return sentence_transformers.SentenceTransformer(
            os.fspath(path), device=device, model_kwargs=arguments, **common
        )
    words = Transformer(
        os.fspath(path),
        model_kwargs={**arguments, **common},
        processor_kwargs=dict(common),
        config_kwargs=dict(common),
    )
    pooling = Pooling(words.get_embedding_dimension(), loading.family.pooling)
    return sentence_transformers.SentenceTransformer(modules=[words, pooling], device=device)


def _normalized(loading: Loading, model: Any) -> bool:
    """Whether vectors are scaled to length 1; a module of the folder that does so is taken out."""
    modules = [name for name, module in model.named_children() if _is(module, "Normalize")]
    for name in modules:
        delattr(model, name)
    given = loading.parameters.normalize_embeddings
    own = bool(modules) or loading.family.normalized
    return own if given is None else given


def _is(module: Any, name: str) -> bool:
    return type(module).__name__ == name


def _query_instruction(loading: Loading, model: Any) -> str:
    given = loading.parameters.query_instruction
    if given is not None:
        return given
    own = model.prompts.get("query")
    if own:
        return str(own)
    vocabulary = loading.folder.config.get("vocab_size")
    return loading.family.query_instructions.get(vocabulary or 0, "")


def _lengths(folder: ModelFolder) -> range | frozenset[int] | None:
    """The lengths to which the folder says that vectors may be cut (Matryoshka); None for none.

    In config.json `matryoshka_dimensions` names them and `is_matryoshka` allows all, as vLLM reads
    them; sentence-transformers tags its README with the loss that the model was trained with.
    """
    named = folder.config.get("matryoshka_dimensions")
    if isinstance(named, list):
        return frozenset(int(length) for length in named)
    card = folder.path / "README.md"
    trained = card.is_file() and "loss:MatryoshkaLoss" in card.read_text(errors="replace")
    if folder.config.get("is_matryoshka") or trained:
        return range(1, 1 << 20)
    return None
