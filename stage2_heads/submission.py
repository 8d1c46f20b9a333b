"""A BirdCLEF submission: a row for every five seconds that a sample_submission.csv asks for, a column a species."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embeddings.contract import RowReader
from embeddings.errors import InputError
from embeddings.recordings import Recording
from embeddings.shards import RowTable
from stage2_heads.base import Head

__all__ = ["Sample", "read_sample", "require_answerable", "score_sample", "write_submission"]

_ROW_ID = re.compile(r"(?P<name>.+)_(?P<end>\d+(?:\.\d+)?)")
_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """What is asked for.

    row_ids  as they stand;  names : the recording of each, without its file ending;  end_s : (n,) where the row ends
    labels   the columns after row_id, in order
    """

    path: Path
    row_ids: tuple[str, ...]
    names: tuple[str, ...]
    end_s: np.ndarray
    labels: tuple[str, ...]


def read_sample(path: Path) -> Sample:
    """Read a sample_submission.csv. Raises InputError that names the line or column that is wrong."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            lines = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV: {error}") from None
    if not lines or "row_id" not in lines[0]:
        found = ", ".join(lines[0][:_SHOWN]) if lines else "nothing"
        raise InputError(f"{path} has no column row_id (found {found}); name BirdCLEF's sample_submission.csv.")
    header, place = lines[0], lines[0].index("row_id")
    labels = tuple(name for i, name in enumerate(header) if i != place)
    if len(set(labels)) != len(labels) or not labels or "" in labels:
        raise InputError(f"{path}: {len(labels)} species columns; each must have a name, and be there once.")
    names, ends, row_ids = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(header):
            raise InputError(f"{path}, line {number}: {len(line)} fields, the header has {len(header)}.")
        parsed = _ROW_ID.fullmatch(line[place])
        if parsed is None:
            raise InputError(
                f"{path}, line {number}: row_id {line[place]!r} is not RECORDING_SECONDS, such as soundscape_29201_5."
            )
        row_ids.append(line[place])
        names.append(parsed["name"])
        ends.append(float(parsed["end"]))
    if len(set(row_ids)) != len(row_ids):
        raise InputError(f"{path}: {len(row_ids) - len(set(row_ids))} row_ids occur twice.")
    if not row_ids:
        raise InputError(f"{path} has no rows.")
    return Sample(Path(path), tuple(row_ids), tuple(names), np.array(ends), labels)


def require_answerable(sample: Sample, head: Head, fill: float | None) -> None:
    """Raises InputError when the head does not know a species and nothing fills in, or `fill` is out of range."""
    if fill is not None and not 0 <= fill < 1:
        raise InputError(f"--fill {fill:g} must lie in 0..1 (1 excluded).")
    unknown = [label for label in sample.labels if label not in set(head.labels_)]
    if unknown and fill is None:
        raise InputError(
            f"{sample.path} asks for {len(unknown)} species that the head does not know ({_some(unknown)}). Fit a head "
            "on them, or give --fill 0 to score them all alike."
        )


def score_sample(
    sample: Sample,
    head: Head,
    reader: RowReader,
    rows: np.ndarray,
    times: RowTable,
    place_of_row: np.ndarray,
    recordings: Sequence[Recording],
    *,
    fill: float | None = None,
) -> np.ndarray:
    """Scores (n_rows, n_columns) float64 in [0, 1), in the sample's order.

    rows : windows that may be used, by recording and time;  times, place_of_row, recordings: of all the store's
    fill : score of a species that the head does not know, and of a row whose recording has no windows; None refuses
    A row takes the window that overlaps its five seconds most.
    Raises InputError that names columns, recordings or rows without an answer, and a name that two recordings have.
    """
    require_answerable(sample, head, fill)
    column_of = {label: i for i, label in enumerate(head.labels_)}
    # A content that lies under several names answers to all of them.
    stems = [{Path(r.filename or r.path.name).stem, *(path.stem for path in r.other_paths)} for r in recordings]
    rows_of: dict[str, dict[int, list[int]]] = {}
    for row, place in zip(rows.tolist(), place_of_row[rows].tolist(), strict=True):
        for stem in stems[place]:
            rows_of.setdefault(stem, {}).setdefault(place, []).append(row)
    if ambiguous := sorted({name for name in sample.names if len(rows_of.get(name, {})) > 1}):
        paths = [str(recordings[place].path) for place in rows_of[ambiguous[0]]]
        raise InputError(
            f"{len(ambiguous)} names of {sample.path} are those of several recordings, such as {ambiguous[0]!r}: "
            f"{_some(paths)}. Predict on the folder that is meant."
        )
    absent = sorted(set(sample.names) - set(rows_of))
    if absent and fill is None:
        raise InputError(
            f"{sample.path} asks for {len(absent)} recordings that are not there or could not be read "
            f"({_some(absent)}). Name the folder that holds them, or give --fill 0 to score their rows all alike."
        )
    scores = np.full((len(sample.row_ids), len(sample.labels)), 0.0 if fill is None else fill)
    known = [i for i, label in enumerate(sample.labels) if label in column_of]
    taken = [column_of[sample.labels[i]] for i in known]
    by_name: dict[str, list[int]] = {}
    for i, name in enumerate(sample.names):
        by_name.setdefault(name, []).append(i)
    for name, places in by_name.items():
        if name not in rows_of:
            continue
        ((_, windows),) = rows_of[name].items()
        own = np.array(windows)
        chosen = own[_best_windows(sample, places, times.start_s[own], times.end_s[own])]
        used, back = np.unique(chosen, return_inverse=True)
        scores[np.ix_(places, known)] = head.scores(reader.read(used))[back][:, taken]
    return scores


def write_submission(path: Path, sample: Sample, scores: np.ndarray) -> None:
    """Write row_id and a column a species, every number as exact as it is: rounding could make a score 1."""
    from embeddings.files import write_atomically

    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores < 1).all()):
        raise InputError("scores of a submission must be finite and in [0, 1); these are not, and nothing was written.")

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["row_id", *sample.labels])
            writer.writerows(
                [row_id, *map(repr, row)] for row_id, row in zip(sample.row_ids, scores.tolist(), strict=True)
            )

    write_atomically(path, write)


def _best_windows(sample: Sample, places: list[int], start_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
    """For each row of a recording, the number of the window that overlaps it most."""
    row_s = 5.0
    ends = sample.end_s[places]
    overlap = np.minimum(end_s[None], ends[:, None]) - np.maximum(start_s[None], ends[:, None] - row_s)
    best = overlap.argmax(axis=1)
    if (beyond := overlap.max(axis=1) <= 0).any():
        first = int(np.flatnonzero(beyond)[0])
        others = f" (and {int(beyond.sum()) - 1} more)" if beyond.sum() > 1 else ""
        where = (
            "lies beyond its recording, which ends at"
            if ends[first] - row_s >= end_s.max()
            else ("falls between two windows; use --hop-s 5 or less for a recording of")
        )
        raise InputError(f"{sample.path}: row {sample.row_ids[places[first]]}{others} {where} {end_s.max():.1f} s.")
    return best


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
