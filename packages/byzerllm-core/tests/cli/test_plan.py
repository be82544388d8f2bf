import msgspec
import pytest

from byzerllm.cli.plan import Step, make_plan
from byzerllm.errors import ModelExistsError
from byzerllm.runtime.deployment import DeploymentSpec


def spec(model: str, **fields: object) -> DeploymentSpec:
    return DeploymentSpec(model=model, backend="echo", project="demo", **fields)  # type: ignore[arg-type]


def deployed(wanted: DeploymentSpec) -> dict[str, object]:
    """As `ByzerLLM.models` lists it."""
    fields = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    return {**fields, **wanted.masked(), "fingerprint": wanted.fingerprint(), "state": "ready"}


def plan(wanted: list[DeploymentSpec], running: list[DeploymentSpec]) -> list[tuple[str, str, str]]:
    steps = make_plan("demo", {s.model: s for s in wanted}, [deployed(s) for s in running])
    return [(step.action, step.model, step.reason) for step in steps]


def test_add_keep_remove() -> None:
    kept, added, removed = spec("kept"), spec("added"), spec("removed")
    assert plan([kept, added], [kept, removed]) == [
        ("remove", "removed", "not in the file"),
        ("add", "added", ""),
        ("keep", "kept", ""),
    ]


def test_only_workers_differ() -> None:
    assert plan([spec("m", num_workers=3)], [spec("m")]) == [("scale", "m", "num_workers 1 → 3")]


def test_what_changes_is_named() -> None:
    old = spec("m", infer_params={"delay": "1"})
    new = spec("m", infer_params={"delay": "2"}, num_workers=2, node="10.0.0.7")
    assert plan([new], [old]) == [("change", "m", "infer_params, num_workers, node")]


def test_a_changed_secret_is_seen_and_not_shown() -> None:
    old = spec("m", infer_params={"saas.api_key": "old-secret"})
    new = spec("m", infer_params={"saas.api_key": "new-secret"})
    assert plan([new], [old]) == [("change", "m", "infer_params")]


def test_what_was_deployed_by_hand_is_taken_over() -> None:
    by_hand = msgspec.structs.replace(spec("m"), project="")
    (step,) = make_plan("demo", {"m": spec("m")}, [deployed(by_hand)])
    assert step == Step("change", "m", "was deployed by hand", spec("m"), takes_over=True)


def test_others_models_are_left_alone() -> None:
    others = msgspec.structs.replace(spec("theirs"), project="other")
    by_hand = msgspec.structs.replace(spec("hand"), project="")
    assert plan([], [others, by_hand]) == []


def test_anothers_name_is_refused() -> None:
    others = msgspec.structs.replace(spec("m"), project="other")
    with pytest.raises(ModelExistsError, match="'m' belongs to the project 'other'"):
        plan([spec("m")], [others])
