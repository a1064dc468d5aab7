"""Single patches in, fixed batches through a network, single answers out: what a card with fixed buffers needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch


def in_batches(
    patches: Iterable[torch.Tensor], images: torch.Tensor, compute: Callable[[], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The answer to each patch, in order.

    Parameters
    ----------
    patches
        (C, *patch) each; copied, so they may be overwritten once the next one is taken.
    images
        (B, C, *patch): where the network reads. Of a short last batch the rest is zero.
    compute
        The network, once over `images`; its answer, (B, K, *patch), may lie in the same memory each time.
    """
    filled = 0
    for patch in patches:
        images[filled].copy_(patch)
        filled += 1
        if filled == len(images):
            yield from compute()
            filled = 0
    if filled:
        images[filled:].zero_()
        yield from compute()[:filled]
