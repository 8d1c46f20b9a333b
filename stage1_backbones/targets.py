"""What a network learns to say of a recording: its species, and beside them the kinds of call, where they are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from embeddings.call_types import kinds_of
from embeddings.errors import InputError
from embeddings.recordings import Recording, is_no_call

__all__ = ["TYPE_PREFIX", "class_names", "labels_digest", "n_species", "target_matrix", "words_of"]

TYPE_PREFIX = "type: "


def class_names(recordings: Iterable[Recording], *, with_types: bool = False) -> tuple[str, ...]:
    """The classes: primary labels in alphabetical order, then kinds of call, each "type: ...".

    Raises InputError when kinds of call are wanted and no recording says any.
    """
    recordings = tuple(recordings)
    species = sorted({r.primary_label for r in recordings if not is_no_call(r.primary_label)})
    kinds = sorted({kind for r in recordings for kind in kinds_of(r.types)}) if with_types else []
    if with_types and not kinds:
        raise InputError(
            f"none of {len(recordings)} training recordings says a kind of call; with_types needs a table with a "
            "`type` column, such as BirdCLEF's train_metadata.csv."
        )
    return (*species, *(TYPE_PREFIX + kind for kind in kinds))


def n_species(labels: Sequence[str]) -> int:
    """How many of the classes are species: they come first."""
    return sum(not label.startswith(TYPE_PREFIX) for label in labels)


def words_of(labels: Sequence[str]) -> str:
    """How many classes of which sort, for people."""
    n = n_species(labels)
    return f"{n} labels" if n == len(labels) else f"{n} labels and {len(labels) - n} kinds of call"


def labels_digest(recordings: Iterable[Recording], *, with_types: bool = False) -> str:
    """What a training is told of its recordings, as a digest: other labels make another training."""
    told = sorted(
        (r.recording, r.primary_label, sorted(r.secondary_labels), sorted(kinds_of(r.types)) if with_types else [])
        for r in recordings
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def target_matrix(recordings: Sequence[Recording], labels: Sequence[str], secondary_weight: float) -> np.ndarray:
    """1 for the primary label and each kind of call, `secondary_weight` for other labels, 0 elsewhere.

    Kinds of call of a recording that says none are unknown: NaN, which a loss must leave out.
    Returns float32 (n, n_labels).
    """
    column = {label: i for i, label in enumerate(labels)}
    first_type = n_species(labels)
    targets = np.zeros((len(recordings), len(labels)), np.float32)
    for row, recording in zip(targets, recordings, strict=True):
        for label in recording.secondary_labels:
            if label in column:
                row[column[label]] = secondary_weight
        if recording.primary_label in column:  # a recording without a call is of no class
            row[column[recording.primary_label]] = 1.0
        if first_type == len(labels):
            continue
        kinds = kinds_of(recording.types)
        if not kinds:
            row[first_type:] = np.nan
        for kind in kinds:
            if TYPE_PREFIX + kind in column:
                row[column[TYPE_PREFIX + kind]] = 1.0
    return targets
