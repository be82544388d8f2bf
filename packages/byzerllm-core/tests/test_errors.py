from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from ray import cloudpickle

from byzerllm import errors
from byzerllm.errors import (
    ByzerLLMError,
    ModelNotFoundError,
    OverloadedError,
    ParameterError,
    StreamInterruptedError,
    did_you_mean,
    error_types,
    listed,
)

OWN = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, ByzerLLMError)
}


def drawn() -> dict[str, tuple[str, set[str]]]:
    """The tree of the module's docstring: each class, its parent and its other bases."""
    found: dict[str, tuple[str, set[str]]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}([│├└─ ]*)([A-Z]\w+Error)(?: \(([\w, ]+)\))?(?: {2,}|$| )", line)
        if match is None:
            continue
        depth = len(match[1])
        above = [(other, name) for other, name in above if other < depth]
        parent = above[-1][1] if above else "Exception"
        found[match[2]] = (parent, set((match[3] or "").split(", ")) - {""})
        above.append((depth, match[2]))
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    real = {
        name: (
            cls.__bases__[0].__name__,
            {base.__name__ for base in cls.__bases__[1:]},
        )
        for name, cls in OWN.items()
    }
    assert drawn() == real


def test_all_is_complete_and_sorted() -> None:
    assert errors.__all__ == sorted(OWN)


def test_error_types() -> None:
    assert {name: cls for name, cls in error_types().items() if name in OWN} == OWN


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("name", OWN)
def test_every_error_pickles(name: str, dumps: object) -> None:
    details = {"text": "so far", "retry_after": 1.5, "nested": {"a": [1, 2]}}
    error = OWN[name]("what happened", **details)
    assert callable(dumps)
    found = pickle.loads(dumps(error))
    assert type(found) is OWN[name]
    assert found.message == str(found) == "what happened"
    assert found.details == details
    assert repr(found) == repr(error)


def test_details_are_attributes() -> None:
    error = OverloadedError("full", retry_after=2.0)
    assert error.retry_after == 2.0
    with pytest.raises(AttributeError, match="OverloadedError has no attribute 'text'"):
        error.text  # noqa: B018
    assert StreamInterruptedError("broke", text="so far").text == "so far"


def test_copies_keep_cause_notes_and_details() -> None:
    error = ParameterError("x", parameter="top_p")
    found = copy.deepcopy(error)
    assert found.parameter == "top_p"
    assert found.details is not error.details


def test_builtin_bases_catch_them() -> None:
    for name, builtin in {
        "ParameterError": ValueError,
        "NotInstalledError": ImportError,
        "ModelNotFoundError": LookupError,
        "RequestTimeoutError": TimeoutError,
        "ContextLengthError": ValueError,
    }.items():
        with pytest.raises(builtin, match="said"):
            raise OWN[name]("said", detail=1)


def test_messages_name_the_wrong_thing_and_the_allowed() -> None:
    unknown = ParameterError.unknown("top_q", {"top_p": 1, "top_k": 2}, where="generation")
    assert str(unknown) == (
        "unknown parameter 'top_q' for generation (did you mean 'top_p'?); allowed: top_k, top_p"
    )
    assert unknown.parameter == "top_q"
    invalid = ParameterError.invalid("n", "at least 1 (got 0)", where="deploy")
    assert str(invalid) == "parameter 'n' for deploy: at least 1 (got 0)"
    model = ModelNotFoundError.unknown("chta", iter(["chat", "emb"]))
    assert str(model) == "no model 'chta' (did you mean 'chat'?); deployed: chat, emb"
    assert model.model == "chta"
    assert "nothing is deployed" in str(ModelNotFoundError.unknown("chat", []))


def test_unknown_takes_what_can_be_read_once() -> None:
    error = ParameterError.unknown("top_q", iter(["top_p"]), where="generation")
    assert "allowed: top_p" in str(error)


def test_did_you_mean_and_listed() -> None:
    assert did_you_mean("lru", ["lru_cache"]) == ""
    assert did_you_mean("round_robn", ["lru", "round_robin"]) == " (did you mean 'round_robin'?)"
    assert listed([]) == "none"
    assert listed({"b", "a"}) == "a, b"
