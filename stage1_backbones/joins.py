"""Ways to make one vector of a picture track and an audio track, each a module over both tracks' last layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["JOINS", "Join", "Neck"]

_RANK = 64  # of what lets the tracks meet; all joins then have about as many weights
_CROSSED = 128
_HEADS = 4


class Join(nn.Module):
    """Both tracks -> a vector.

    forward(maps, states): maps (n, p, frequency, time) of the picture track, states (n, steps, a) of the audio track;
    returns (n, dim), or (n / segments, dim) from one that joins segments too.
    """

    dim: int

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        raise NotImplementedError


class Neck(nn.Module):
    """x + W2 relu(W1 x), narrow in between and nothing at first: weights for a network that has few of its own."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Linear(dim, rank), nn.Linear(rank, dim)
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors + self.widen(torch.relu(self.narrow(vectors)))


class _Deep(Join):
    """Side by side, then a narrow layer in which they meet."""

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.dim = p + a
        self.neck = Neck(self.dim, _RANK)

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        return self.neck(_side_by_side(maps, states))


class _Crossing(Join):
    """Side by side, and products of the two: a bilinear form of low rank.

    Source: Kim et al. 2017, "Hadamard Product for Low-rank Bilinear Pooling".
    """

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.of_picture, self.of_audio = nn.Linear(p, _CROSSED), nn.Linear(a, _CROSSED)
        self.dim = p + a + _CROSSED

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        picture, audio = maps.mean(dim=(2, 3)), states.mean(dim=1)
        crossed = torch.tanh(self.of_picture(picture)) * torch.tanh(self.of_audio(audio))
        return torch.cat([picture, audio, crossed], dim=1)


class _Weighted(Join):
    """A sum of the two, the audio track brought to the picture's length, with learnt weights that sum to 1."""

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.bring = nn.Linear(a, p)
        self.weights = nn.Parameter(torch.zeros(2))
        self.dim = p

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        of_picture, of_audio = torch.softmax(self.weights, dim=0)
        return of_picture * maps.mean(dim=(2, 3)) + of_audio * self.bring(states.mean(dim=1))


class _Gated(Join):
    """Side by side, each number let through by a gate that looks at both tracks; gates begin open.

    Source: the gated multimodal unit of Arevalo et al. 2017, its gates of low rank as in Joze et al. 2020 (MMTM).
    """

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.dim = p + a
        self.look, self.gate = nn.Linear(self.dim, _RANK), nn.Linear(_RANK, self.dim)
        nn.init.zeros_(self.gate.bias)

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        both = _side_by_side(maps, states)
        return 2 * torch.sigmoid(self.gate(torch.relu(self.look(both)))) * both


class _Attention(nn.Module):
    """Tokens, each with what it asked of another track's tokens added."""

    def __init__(self, own: int, other: int) -> None:
        super().__init__()
        self.ask, self.keys = nn.Linear(own, _RANK), nn.Linear(other, _RANK)
        self.values, self.give = nn.Linear(other, _RANK), nn.Linear(_RANK, own)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (_HEADS, -1)).transpose(1, 2)
            for part in (self.ask(tokens), self.keys(others), self.values(others))
        )
        answer = scaled_dot_product_attention(query, key, value)
        return tokens + self.give(answer.transpose(1, 2).flatten(2))


class _CrossAttention(Join):
    """The picture's places ask the audio's steps, and these ask the places; then side by side.

    Source: Vaswani et al. 2017; both ways as in Lu et al. 2019 (ViLBERT).
    """

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.picture_asks, self.audio_asks = _Attention(p, a), _Attention(a, p)
        self.dim = p + a

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        places = maps.flatten(2).transpose(1, 2)
        return torch.cat(
            [self.picture_asks(places, states).mean(dim=1), self.audio_asks(states, places).mean(dim=1)], dim=1
        )


class _Pool(nn.Module):
    """A weighted mean over steps, the weights from a small network that looks at each; all alike at first.

    Source: Yang et al. 2016, "Hierarchical Attention Networks".
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.look, self.weigh = nn.Linear(dim, _RANK), nn.Linear(_RANK, 1)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, steps: Tensor) -> Tensor:
        """steps : (n, steps, dim).  Returns (n, dim)."""
        weights = torch.softmax(self.weigh(torch.tanh(self.look(steps))), dim=1)
        return (weights * steps).sum(dim=1)


class _Hierarchical(Join):
    """Attention over the frames of each track's segment, then over the segments in a row."""

    def __init__(self, p: int, a: int, segments: int) -> None:
        super().__init__()
        self.frames, self.steps, self.over_segments = _Pool(p), _Pool(a), _Pool(p + a)
        self.dim, self._segments = p + a, segments

    def forward(self, maps: Tensor, states: Tensor) -> Tensor:
        segment = torch.cat([self.frames(maps.mean(dim=2).transpose(1, 2)), self.steps(states)], dim=1)
        return self.over_segments(segment.reshape(-1, self._segments, self.dim))


def _side_by_side(maps: Tensor, states: Tensor) -> Tensor:
    return torch.cat([maps.mean(dim=(2, 3)), states.mean(dim=1)], dim=1)


JOINS: dict[str, Callable[[int, int, int], Join]] = {
    "deep": _Deep,
    "crossing": _Crossing,
    "weighted": _Weighted,
    "gated": _Gated,
    "cross_attention": _CrossAttention,
    "hierarchical": _Hierarchical,
}
"""Name -> what makes the module from the lengths of the picture's and the audio's vectors, and the segments."""
