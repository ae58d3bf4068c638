"""Which codeword serves which kernel while a network trains: nearest codes, candidates for a soft choice, revival of dead codewords.

Ties go to the lower code. Equal latents give equal codes, so every process of a distributed run finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kqgen.cluster import VALUE_LIMIT
from kqgen.train_modules import IndexedWeight, LearnedCodebook

_SCORES_AT_ONCE = 1 << 25
CANDIDATES = 4


def nearest(vectors: torch.Tensor, table: torch.Tensor, sign: bool, count: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `count` nearest rows of `table` for every vector, nearest first.

    Shapes: vectors (n, d), table (codes, d) float32; returns codes (n, count) int64, signs (n, count) float32, 1 or -1, and squared
    distances (n, count).
    """
    norms = table.square().sum(1)
    codes, signs, costs = [], [], []
    for part in torch.split(vectors, max(1, _SCORES_AT_ONCE // len(table))):
        dots = part @ table.T
        scores = norms - 2 * (dots.abs() if sign else dots)
        least, found = scores.min(1, keepdim=True) if count == 1 else scores.topk(count, dim=1, largest=False)
        picked = dots.gather(1, found)
        codes.append(found)
        signs.append(torch.where(picked < 0, -1.0, 1.0) if sign else torch.ones_like(picked))
        costs.append((least + part.square().sum(1, keepdim=True)).clamp_min(0))
    return torch.cat(codes), torch.cat(signs), torch.cat(costs)


@torch.no_grad()
def reassign(layer: IndexedWeight, latent: torch.Tensor, cap: float = 1.0) -> torch.Tensor:
    """Gives every kernel its nearest codeword, at most the part `cap` of all kernels at a time, those that gain most; returns the
    part that changed, a () tensor."""
    vectors = latent.detach().flatten(0, 1).flatten(1)
    table = layer.book.table(layer.count)
    codes, signs, costs = (each[:, 0] for each in nearest(vectors, table, layer.book.sign))
    changed = (codes != layer.codes) | (signs != layer.signs)
    limit = int(cap * len(codes))
    if cap < 1 and int(changed.sum()) > limit:
        gains = torch.where(changed, (vectors - layer.hard()).square().sum(1) - costs, -1.0)
        changed = torch.zeros_like(changed).index_fill_(0, gains.topk(limit).indices, True)
    layer.codes.copy_(torch.where(changed, codes, layer.codes))
    layer.signs.copy_(torch.where(changed, signs, layer.signs))
    return changed.float().mean()


@torch.no_grad()
def soften(layer: IndexedWeight, latent: torch.Tensor, temperature: float) -> None:
    """Renews the candidates of the soft choice and sets its temperature; 0 ends it."""
    layer.temperature = temperature
    if temperature <= 0:
        layer.near, layer.near_signs = layer.near[:, :0], layer.near_signs[:, :0]
        return
    table = layer.book.table(layer.count)
    vectors = latent.detach().flatten(0, 1).flatten(1)
    layer.near, layer.near_signs, _ = nearest(vectors, table, layer.book.sign, min(CANDIDATES, len(table)))


@torch.no_grad()
def revive(book: LearnedCodebook, members: Sequence[tuple[IndexedWeight, torch.Tensor]]) -> int:
    """Codewords that no kernel uses go half way from the codewords of the kernels that are served worst to these kernels; returns how
    many there were.

    `members` are the layers of the codebook with their latents. A layer that may use only the first codewords counts for these alone.
    """
    if book.additive:
        return 0
    used = torch.zeros(book.codewords, dtype=torch.int64, device=book.values.device)
    for layer, _ in members:
        used += torch.bincount(layer.codes, minlength=book.codewords)
    dead = (used == 0).nonzero()[:, 0]
    if len(dead) == 0:
        return 0
    vectors = torch.cat([latent.detach().flatten(0, 1).flatten(1) for _, latent in members])
    served = torch.cat([layer.hard() for layer, _ in members])
    errors = (vectors - served).square().sum(1)
    open_to = torch.cat([torch.full_like(layer.codes, layer.count or book.codewords) for layer, _ in members])
    order = errors.topk(min(len(errors), 4 * len(dead))).indices
    taken = 0
    offsets = [0]
    for layer, _ in members:
        offsets.append(offsets[-1] + len(layer.codes))
    for code in dead.tolist():
        while taken < len(order) and int(open_to[order[taken]]) <= code:
            taken += 1
        if taken == len(order):
            break
        place = int(order[taken])
        taken += 1
        # Half way: a latent kernel may have drifted far from what the network computes with.
        book.values[code] = ((vectors[place] + served[place]) / (2 * book.step)).clamp(-VALUE_LIMIT, VALUE_LIMIT)
        number = next(index for index in range(len(members)) if place < offsets[index + 1])
        members[number][0].codes[place - offsets[number]] = code
        members[number][0].signs[place - offsets[number]] = 1.0
    return len(dead)
