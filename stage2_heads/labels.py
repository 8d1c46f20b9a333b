"""What is known of a recording's species, and how that becomes the truth that heads learn and are scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.errors import InputError
from embeddings.recordings import Recording, is_no_call

__all__ = ["RecordingLabels", "class_set", "label_names", "primary_codes", "target_matrix"]


@dataclass(frozen=True)
class RecordingLabels:
    """A recording as stage two knows it: its identity and its species, never its sound.

    recording      content hash
    primary_label  "" when unlabelled;  secondary_labels: species also heard in it
    source         recordings with one source, or one xeno-canto id, are never divided between folds
    """

    recording: str
    primary_label: str = ""
    secondary_labels: tuple[str, ...] = ()
    scientific_name: str = ""
    common_name: str = ""
    xeno_canto_id: str = ""
    source: str = ""

    @classmethod
    def of(cls, recording: Recording) -> RecordingLabels:
        """Take over what a catalogue says of the recording."""
        return cls(
            recording=recording.recording,
            primary_label=recording.primary_label,
            secondary_labels=tuple(recording.secondary_labels),
            scientific_name=recording.scientific_name,
            common_name=recording.common_name,
            xeno_canto_id=recording.xeno_canto_id,
            source=recording.source,
        )


def class_set(recordings: Sequence[RecordingLabels]) -> tuple[str, ...]:
    """The species that a head learns: primary labels of its fitting recordings, sorted, without "no call"."""
    return tuple(sorted({r.primary_label for r in recordings if r.primary_label and not is_no_call(r.primary_label)}))


def label_names(recordings: Sequence[RecordingLabels]) -> dict[str, tuple[str, str]]:
    """Label -> (scientific name, common name), from the recordings that have it as primary label."""
    names: dict[str, tuple[str, str]] = {}
    for r in recordings:
        if r.primary_label and not any(names.get(r.primary_label, ("", ""))):
            names[r.primary_label] = (r.scientific_name, r.common_name)
    return names


def target_matrix(
    recordings: Sequence[RecordingLabels], labels: Sequence[str], secondary_weight: float = 1.0
) -> np.ndarray:
    """Truth per recording and class.

    labels            classes, the columns;  labels outside them are ignored
    secondary_weight  0..1, the target of a secondary label (the primary label's is 1)
    Returns float32 (n_recordings, n_labels) in [0, 1].
    Raises InputError when a class is named twice or the weight is out of range.
    """
    if not 0 <= secondary_weight <= 1:
        raise InputError(f"secondary_weight={secondary_weight} must lie between 0 (ignored) and 1 (like the primary).")
    column = _columns(labels)
    targets = np.zeros((len(recordings), len(labels)), dtype=np.float32)
    for i, r in enumerate(recordings):
        for label in r.secondary_labels:
            if label in column:
                targets[i, column[label]] = secondary_weight
        if r.primary_label in column:
            targets[i, column[r.primary_label]] = 1.0
    return targets


def primary_codes(recordings: Sequence[RecordingLabels], labels: Sequence[str]) -> np.ndarray:
    """Column of each recording's primary label, int64 (n_recordings,); -1 when it is none of `labels`."""
    column = _columns(labels)
    return np.array([column.get(r.primary_label, -1) for r in recordings], dtype=np.int64)


def _columns(labels: Sequence[str]) -> dict[str, int]:
    column = {label: i for i, label in enumerate(labels)}
    if len(column) != len(labels):
        twice = sorted({label for label in labels if list(labels).count(label) > 1})
        raise InputError(f"classes named twice: {', '.join(twice)}. Each class is one column.")
    return column
