"""Pictures that are larger than what the model was trained on, in windows.

MultiDiffusion (Bar-Tal, Yariv, Lipman, Dekel: "MultiDiffusion: Fusing Diffusion Paths for
Controlled Image Generation", ICML 2023, https://arxiv.org/abs/2302.08113): each step denoises
overlapping windows of the latents, and a latent that several windows hold gets the mean of what
they say. The mean is taken of the predicted noise. A step of every sampler is affine in it, so that
this is the paper's mean of the denoised windows, and samplers with a history or with noise of
their own work unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How latents are cut.

    Attributes:
        size: height and width of a window in latents, of 8 pixels each.
        stride: latents from one window to the next.
        at_once: windows that are computed together.
        check: called before each computation; raises when nobody wants the picture any more.
    """

    size: int
    stride: int
    at_once: int
    check: Callable[[], None]

    def places(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each window; together they cover everything."""
        return [(rows, columns) for rows in self._spans(height) for columns in self._spans(width)]

    def _spans(self, length: int) -> list[slice]:
        if length <= self.size:
            return [slice(0, length)]
        last = length - self.size
        starts = [*range(0, last, self.stride), last]
        return [slice(start, start + self.size) for start in starts]


@contextmanager
def in_windows(unet: Any, windows: Windows) -> Iterator[None]:
    """Within, the network looks at latents through windows. One thread at a time."""
    plain = unet.forward
    own = vars(unet).get("forward")

    def forward(
        sample: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor]:
        places = windows.places(*sample.shape[-2:])
        total = torch.zeros_like(sample[:, : unet.config.out_channels])
        count = torch.zeros_like(total[:1, :1])
        for first in range(0, len(places), windows.at_once):
            windows.check()
            group = places[first : first + windows.at_once]
            crops = torch.cat([sample[..., rows, columns] for rows, columns in group])
            noise = plain(
                crops,
                timestep,
                encoder_hidden_states=_repeated(encoder_hidden_states, len(group)),
                timestep_cond=_repeated(timestep_cond, len(group)),
                added_cond_kwargs=added_cond_kwargs
                and {name: _repeated(t, len(group)) for name, t in added_cond_kwargs.items()},
                **{**options, "return_dict": False},
            )[0]
            for (rows, columns), part in zip(group, noise.chunk(len(group)), strict=True):
                total[..., rows, columns] += part
                count[..., rows, columns] += 1
        return (total / count,)

    unet.forward = forward
    try:
        yield
    finally:
        if own is None:
            del unet.forward
        else:
            unet.forward = own


def _repeated(tensor: torch.Tensor | None, times: int) -> torch.Tensor | None:
    """The tensor along its first axis once for each window."""
    return None if tensor is None else tensor.repeat(times, *[1] * (tensor.ndim - 1))
