"""The samplers that requests name, as diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from byzerllm.errors import ParameterError, did_you_mean, listed

_EVEN = {"use_karras_sigmas": False}
_KARRAS = {"use_karras_sigmas": True}
# Latents are not bounded as pixels are.
_UNCLIPPED = {"clip_sample": False}


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers and what differs from the folder's own settings."""

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS: dict[str, Sampler] = {
    "unpic": Sampler("UniPCMultistepScheduler", _EVEN),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler"),
    "euler": Sampler("EulerDiscreteScheduler", _EVEN),
    "ddim": Sampler("DDIMScheduler", _UNCLIPPED),
    "ddpm": Sampler("DDPMScheduler", _UNCLIPPED),
    "deis": Sampler("DEISMultistepScheduler", _EVEN),
    "dpm2": Sampler("KDPM2DiscreteScheduler", _EVEN),
    "dpm2-a": Sampler("KDPM2AncestralDiscreteScheduler", _EVEN),
    "dpm++_2m": Sampler("DPMSolverMultistepScheduler", _EVEN),
    "dpm++_2m_karras": Sampler("DPMSolverMultistepScheduler", _KARRAS),
    "heun": Sampler("HeunDiscreteScheduler", _EVEN),
    "heun_karras": Sampler("HeunDiscreteScheduler", _KARRAS),
    "lms": Sampler("LMSDiscreteScheduler", _EVEN),
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}),
}
"""By the names of the seed's table, `unpic` being UniPC as it is spelled there."""

_SPELLINGS = {"unipc": "unpic", "pndm:w": "pndm"}


def sampler_named(name: str, *, where: str) -> str:
    """The name of a sampler as `SAMPLERS` spells it.

    Raises:
        ParameterError: there is none; names the nearest and all.
    """
    lower = name.strip().lower()
    found = _SPELLINGS.get(lower, lower)
    if found not in SAMPLERS:
        raise ParameterError.invalid(
            "sampler_name",
            f"there is no sampler {name!r}{did_you_mean(lower, SAMPLERS)}; "
            f"allowed: {listed(SAMPLERS)}",
            where=where,
        )
    return found


def new_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler without history, with the noise schedule that the model was trained on.

    Args:
        name: one of `SAMPLERS`.
        config: the configuration of the folder's own scheduler.
    """
    sampler = SAMPLERS[name]
    return getattr(diffusers, sampler.scheduler).from_config(config, **sampler.settings)
