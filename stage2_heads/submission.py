"""A BirdCLEF submission: a row for every five seconds that a sample_submission.csv asks for, a column a species."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embeddings.contract import RowReader
from embeddings.errors import InputError
from embeddings.recordings import Recording
from embeddings.shards import RowTable
from embeddings.windows import WindowPlan
from stage2_heads.base import Head

__all__ = ["Sample", "read_sample", "require_answerable", "score_sample", "write_submission"]

_ROW_ID = re.compile(r"(?P<name>.+)_(?P<end>\d+(?:\.\d+)?)")
_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """What is asked for.

    row_ids  as they stand;  names : the recording of each, without its file ending;  end_s : (n,) where the row ends
    labels   the other columns, in order;  place : of the column row_id among them
    """

    path: Path
    row_ids: tuple[str, ...]
    names: tuple[str, ...]
    end_s: np.ndarray
    labels: tuple[str, ...]
    place: int = 0


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
    if twice := _twice(header):
        raise InputError(f"{path}: {len(twice)} columns occur twice ({_some(twice)}); each must be there once.")
    if not labels or "" in labels:
        raise InputError(f"{path}: {len(labels)} species columns; each must have a name.")
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
    if twice := _twice(row_ids):
        raise InputError(f"{path}: {len(twice)} row_ids occur twice ({_some(twice)}); each must be there once.")
    if not row_ids:
        raise InputError(f"{path} has no rows.")
    return Sample(Path(path), tuple(row_ids), tuple(names), np.array(ends), labels, place)


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
    plan: WindowPlan,
    *,
    fill: float | None = None,
) -> np.ndarray:
    """Scores (n_rows, n_columns) float64 in [0, 1), in the sample's order.

    rows : windows that may be used, by recording and time;  times, place_of_row, recordings, plan: of the store
    fill : score of a species that the head does not know, and of a row that could not be embedded; None refuses
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
    known_columns = np.array(known, np.intp)
    by_name: dict[str, list[int]] = {}
    for i, name in enumerate(sample.names):
        by_name.setdefault(name, []).append(i)
    for name, places in by_name.items():
        if name not in rows_of:
            continue
        ((_, windows),) = rows_of[name].items()
        own = np.array(windows)
        best = _best_windows(sample, places, times.take(own), plan, fill is not None)
        answered = np.array(places, np.intp)[best >= 0]
        used, back = np.unique(own[best[best >= 0]], return_inverse=True)
        if len(used):
            scores[np.ix_(answered, known_columns)] = head.scores(reader.read(used))[back][:, taken]
    return scores


def write_submission(path: Path, sample: Sample, scores: np.ndarray) -> None:
    """Write the sample's columns, every number as exact as it is: rounding could make a score 1."""
    from embeddings.files import write_atomically

    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores < 1).all()):
        raise InputError("scores of a submission must be finite and in [0, 1); these are not, and nothing was written.")

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            first, rest = slice(sample.place), slice(sample.place, None)
            writer.writerow([*sample.labels[first], "row_id", *sample.labels[rest]])
            for row_id, row in zip(sample.row_ids, scores.tolist(), strict=True):
                words = list(map(repr, row))
                writer.writerow([*words[first], row_id, *words[rest]])

    write_atomically(path, write)


def _best_windows(sample: Sample, places: list[int], windows: RowTable, plan: WindowPlan, filled: bool) -> np.ndarray:
    """For each row of a recording, the number of the window that overlaps it most; -1 where it could not be embedded.

    filled : whether such rows are scored without a window; else they are refused, as others without a window are
    """
    row_s = 5.0
    ends = sample.end_s[places]
    starts = ends - row_s
    overlap = np.minimum(windows.end_s, ends[:, None]) - np.maximum(windows.start_s, starts[:, None])
    without = overlap.max(axis=1) <= 0
    # The last window that begins before the row ends, had every window been embedded.
    begin_s = (np.ceil(ends / plan.hop_s) - 1) * plan.hop_s
    end_s = float(windows.end_s.max())
    after = starts >= end_s
    beyond = without & after & (not windows.partial.any())  # of a partial recording nobody knows the end
    between = without & ~after & (begin_s + plan.window_s <= starts)
    for rows, why in (
        (beyond, f"lies beyond its recording, which ends at {end_s:.1f} s."),
        (between, f"falls between two windows, of which one begins every {plan.hop_s:g} s; use --hop-s 5 or less."),
        (
            without & (not filled),
            "has no window: its recording could not be embedded there, because it stops decoding, or its samples are "
            "not finite. Give --fill 0 to score such rows all alike.",
        ),
    ):
        if rows.any():
            first = sample.row_ids[places[int(np.flatnonzero(rows)[0])]]
            others = f" (and {int(rows.sum()) - 1} more)" if rows.sum() > 1 else ""
            raise InputError(f"{sample.path}: row {first}{others} {why}")
    return np.where(without, -1, overlap.argmax(axis=1))


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, n in Counter(names).items() if n > 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
