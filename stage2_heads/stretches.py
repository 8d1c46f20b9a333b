"""Stretches: windows that were scored, cut where a recording ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from embeddings.recordings import Recording
from embeddings.shards import RowTable
from stage2_heads.predict import WindowScores

__all__ = ["Stretch", "stretches"]


@dataclass(frozen=True)
class Stretch:
    """Windows of one recording that were scored together, in order of time.

    start_s, end_s  (n,) seconds;  scores, raw, found : (n, c), see `WindowScores`
    is_last         no window of this recording follows
    """

    recording: Recording
    start_s: np.ndarray
    end_s: np.ndarray
    scores: np.ndarray
    raw: np.ndarray
    found: np.ndarray
    is_last: bool

    def detections(self) -> Iterator[tuple[int, int]]:
        """(window, class) of each, windows in order of time, the best class of a window first."""
        window, column = np.nonzero(self.found)
        order = np.lexsort((-self.scores[window, column], window))
        return zip(window[order].tolist(), column[order].tolist(), strict=True)


def stretches(
    batches: Iterator[WindowScores], times: RowTable, place_of_row: np.ndarray, recordings: Sequence[Recording]
) -> Iterator[Stretch]:
    """Cut batches where a recording ends.

    times : of all rows of the store;  place_of_row : (n_rows,) numbers of `recordings`
    """
    held: Stretch | None = None
    for batch in batches:
        places = place_of_row[batch.rows]
        edges = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
        for first, stop in pairwise(edges):
            rows, part = batch.rows[first:stop], slice(first, stop)
            recording = recordings[int(places[first])]
            if held is not None:
                yield replace(held, is_last=held.recording is not recording)
            scores, raw, found = batch.scores[part], batch.raw[part], batch.found[part]
            held = Stretch(recording, times.start_s[rows], times.end_s[rows], scores, raw, found, is_last=False)
    if held is not None:
        yield replace(held, is_last=True)
