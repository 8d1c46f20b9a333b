"""A recording's scores over time as a strip a species: the few best ones, in as many cells as a picture has pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stage2_heads.predict import Detecting
    from stage2_heads.stretches import Stretch

__all__ = ["CELLS", "Strips"]

CELLS = 1200
_MOST_STRIPS, _FEWEST_STRIPS, _NEAR = 8, 3, 0.5  # shown without a detection: half the threshold is reached


@dataclass(frozen=True, eq=False)
class Strips:
    """A recording's scores over time, best species first.

    columns   numbers of the classes shown;  n_more : detected classes that are not shown
    scores    (classes, cells) of the window whose middle is nearest, the best of several; not a number where none is
    found     (classes, cells) bool: it is a detection, or one of them
    end_s     where the last window ends, and the last cell
    """

    columns: np.ndarray
    n_more: int
    scores: np.ndarray
    found: np.ndarray
    end_s: float

    @classmethod
    def of(cls, stretches: Iterable[Stretch], detecting: Detecting, start_s: np.ndarray, end_s: np.ndarray) -> Strips:
        """Those detected come first, each by its highest score; then the next best that come near their thresholds.

        start_s, end_s : (n,) of all windows, in order of time
        Of all windows, only their cells are kept, not their scores.
        """
        looked_for, cells = detecting.classes, _cells(start_s, end_s)
        n = len(looked_for)
        scores, found = np.full((CELLS, n), np.nan, np.float32), np.zeros((CELLS, n), bool)
        for stretch in stretches:
            for window, (a, b) in enumerate(islice(cells, len(stretch.scores))):
                scores[a:b] = np.fmax(scores[a:b], stretch.scores[window].astype(np.float32))
                found[a:b] |= stretch.found[window]
        near = _NEAR * detecting.thresholds
        best, detected = np.nan_to_num(scores).max(axis=0), found.max(axis=0)
        order = [i for i in np.lexsort((-best, ~detected)).tolist() if looked_for[i]]
        shown = [
            i
            for place, i in enumerate(order[:_MOST_STRIPS])
            if detected[i] or best[i] >= near[i] or place < _FEWEST_STRIPS
        ]
        n_more = int(detected[looked_for].sum()) - int(detected[shown].sum())
        return cls(
            np.array(shown, int), n_more, scores[:, shown].T.copy(), found[:, shown].T.copy(), float(end_s.max())
        )


def _cells(start_s: np.ndarray, end_s: np.ndarray) -> Iterator[tuple[int, int]]:
    """The cells of each window: where windows overlap, each has what is nearer to its middle."""
    between = np.minimum(end_s[:-1], (end_s[:-1] + start_s[1:]) / 2)
    first_s = np.concatenate([start_s[:1], np.maximum(start_s[1:], between)])
    stop_s = np.concatenate([between, end_s[-1:]])
    scale = CELLS / float(end_s.max())
    first = np.clip(np.floor(first_s * scale + 1e-6), 0, CELLS - 1).astype(int)
    stop = np.clip(np.ceil(stop_s * scale - 1e-6).astype(int), first + 1, CELLS)
    return zip(first.tolist(), stop.tolist(), strict=True)
