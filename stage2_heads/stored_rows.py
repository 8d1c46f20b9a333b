"""Labelled windows straight from a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stage2_heads.labels import RecordingLabels
from stage2_heads.leaks import heard_mask
from stage2_heads.rows import LabelledRows, label_rows

if TYPE_CHECKING:
    from embeddings.store import Store

__all__ = ["stored_rows"]


def stored_rows(
    store: Store,
    blocks: Sequence[str],
    rows: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    windows: str = "all",
    secondary_weight: float = 1.0,
) -> LabelledRows:
    """Some of a store's windows with their recordings' labels, and which backbones have heard them.

    blocks : names, in the order in which a head is to read them;  rows : (n,) row numbers
    Other arguments and errors as in `stage2_heads.rows.label_rows`.
    """
    reader = store.reader(blocks)
    places, recording_of_row = store.index.recordings_of(rows)
    recordings = [RecordingLabels.of(store.catalogue.recordings[place]) for place in places]
    return label_rows(
        reader,
        rows,
        recording_of_row,
        recordings,
        blocks=reader.blocks,
        labels=labels,
        heard_by_block=np.stack([heard_mask(recordings, store.heard([block])) for block in blocks], axis=1),
        windows=windows,
        rms_dbfs=store.rows.rms_dbfs[rows] if windows == "loudest" else None,
        secondary_weight=secondary_weight,
    )
