"""How much a passage has to do with a query: cross-encoders."""

from __future__ import annotations

import functools
import os
from typing import Any, ClassVar, Self

import sentence_transformers

from byzerllm.errors import BackendError, ModelLoadError, ModelSourceError, ParameterError
from byzerllm.requests import ModelMeta, RerankRequest, RerankResult, Usage
from byzerllm_backend_transformers.encoder import Encoder, check_texts, token_counts
from byzerllm_backend_transformers.folder import tensors
from byzerllm_backend_transformers.loading import device_of, load
from byzerllm_backend_transformers.tasks import Loading


class Reranking(Encoder):
    """One cross-encoder."""

    capability: ClassVar[str] = "rerank"

    def __init__(self, loading: Loading, model: Any) -> None:
        super().__init__(loading, model)
        name = model.default_prompt_name
        self._prompt = model.prompts.get(name) if name is not None else None

    @classmethod
    def load(cls, loading: Loading) -> Self:
        _check_type(loading)
        model = load(loading, functools.partial(_made, loading))
        _check_head(loading, model)
        return cls(loading, model)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """One raw logit per pair, the higher the closer. Pairs that are too long are cut.

        Raises:
            ParameterError: no pairs, something that is no pair of texts, or an unknown parameter.
            BackendError: not enough memory, or a score that is not finite.
        """
        self.check_open()
        if request.extra:
            raise ParameterError.unknown(
                min(request.extra), (), where="reranking with transformers"
            )
        pairs = [_pair(pair, position) for position, pair in enumerate(request.all_pairs())]
        if not pairs:
            raise ParameterError("no pairs to rank; give at least one", parameter="pairs")
        lengths = [len(query) + len(passage) for query, passage in pairs]
        rows = await self._batches.rows(pairs, lengths)
        return RerankResult(
            scores=[score for score, _ in rows],
            usage=Usage(prompt_tokens=sum(tokens for _, tokens in rows)),
        )

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            support_stream=False,
            max_model_len=self.max_length,
            architectures=self.folder.architectures,
            model_name=self.folder.path.name,
            message_format=False,
            task="rerank",
        )

    def rows(self, kind: Any, texts: list[tuple[str, str]]) -> list[tuple[float, int]]:
        """Score and number of tokens of each pair."""
        features = self._model.preprocess(texts, prompt=self._prompt)
        counts = token_counts(features, len(texts))
        scores = self.pass_through(features)["scores"].float().reshape(len(texts)).cpu()
        if not bool(scores.isfinite().all()):
            raise BackendError(
                "the model made a score that is not finite; deploy it with dtype=float32"
            )
        return list(zip(scores.tolist(), counts, strict=True))


def _pair(pair: Any, position: int) -> tuple[str, str]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ParameterError(f"pair {position} is no pair of a query and a passage: {pair!r:.80}")
    check_texts([pair[0]], f"query of pair {position}")
    check_texts([pair[1]], f"passage of pair {position}", empty=True)
    return pair[0], pair[1]


def _check_type(loading: Loading) -> None:
    """Refuse a folder whose model scores no pairs.

    Raises:
        ModelLoadError: says what it is and what it may be deployed as.
    """
    folder = loading.folder
    if folder.saved_class == "CrossEncoder" or folder.own_code:
        return
    names = folder.architectures
    if not any(name.endswith("ForSequenceClassification") for name in names):
        what = folder.gguf or ", ".join(names) or "a model of unknown kind"
        raise ModelLoadError(
            f"{folder.path} holds {what}, which scores no pairs of texts; {loading.family.type} "
            "needs a cross-encoder (…ForSequenceClassification). A model of vectors is deployed as "
            "custom/bge or custom/auto"
        )


def _made(loading: Loading, path: os.PathLike[str], **arguments: Any) -> Any:
    trust = arguments.pop("trust_remote_code")
    arguments.pop("local_files_only")
    return sentence_transformers.CrossEncoder(
        os.fspath(path),
        device=None if "device_map" in arguments else str(device_of(loading)),
        trust_remote_code=trust,
        local_files_only=True,
        model_kwargs=arguments,
    )


def _check_head(loading: Loading, model: Any) -> None:
    """Refuse scores that nobody trained, and several scores for a pair.

    Raises:
        ModelLoadError: a pair would have more than one score.
        ModelSourceError: the weights of the head are missing, and were made up.
    """
    path = loading.folder.path
    if model.num_labels != 1:
        raise ModelLoadError(
            f"{path} gives {model.num_labels} scores to a pair, a reranker gives one"
        )
    files = sorted(path.glob("*.safetensors"))
    inner = model.transformers_model
    if not files or loading.folder.is_sentence_transformer or inner is None:
        return
    stored = {name for file in files for name, *_ in tensors(file)}
    base = f"{inner.base_model_prefix}."
    made_up = [name for name, _ in inner.named_parameters() if not name.startswith(base)]
    missing = sorted(set(made_up) - stored)
    if missing and loading.parameters.quantization is None:
        raise ModelSourceError(
            f"the weights in {path} lack the head that scores ({', '.join(missing[:3])}); fetch "
            "the whole model, or train it first"
        )
