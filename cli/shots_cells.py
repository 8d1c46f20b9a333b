"""The fits of a learning curve: what each is fitted on, what it is scored on, and its scores, kept as they are made."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cli.experiment import digest_of
from embeddings.errors import InputError
from embeddings.files import write_atomically
from stage2_heads.shots import Shots, class_ranks

if TYPE_CHECKING:
    from embeddings.store import Store, StoreReader
    from stage2_heads.base import Head
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.rows import LabelledRows

__all__ = ["CurveCell", "CurveCells", "CurveOptions"]

_POOL = "mean"
_BATCH_ROWS = 4096
_CELL_FORMAT = 1
_SHOWN = 12
_MANY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class CurveOptions:
    """What `heads fit` was asked, as far as it makes a difference to a curve. Names as on the command line."""

    heads: tuple[str, ...]
    shots: tuple[Shots, ...]
    seeds: tuple[int, ...]
    blocks: tuple[str, ...] | None
    windows: str
    secondary_weight: float
    fusion: str
    settings: tuple[str, ...]
    folds: tuple[str, ...]


@dataclass(frozen=True)
class _Fold:
    """One division of the store: what may be fitted on, and the fixed recordings that are scored.

    rows, group  (m,) row numbers of the scored windows, and the place of each one's recording in `scored`
    """

    fitting: LabelledRows
    scored: tuple[RecordingLabels, ...]
    rows: np.ndarray
    group: np.ndarray
    n_heard: int


@dataclass(frozen=True)
class CurveCell:
    """One fit: a head, a number of shots, a seed and a fold."""

    head: str
    shots: Shots
    seed: int
    fold: int


class CurveCells:
    """The fits of a curve. Each one's scores are a file, named by all that decides them, so a resumed call and one with
    more shots, seeds or heads fit only what is missing; equal draws of a head that itself draws nothing are one file.
    """

    def __init__(self, options: CurveOptions, store: Store, reader: StoreReader, folder: Path) -> None:
        self._options, self._store, self._reader, self._folder = options, store, reader, folder
        self._heads = {
            (name, seed): _unfitted_head(name, options, len(reader.blocks), seed)
            for name in options.heads
            for seed in options.seeds
        }
        divided = [_divide(store, reader, options, fold) for fold in options.folds]
        self.labels = tuple(sorted({label for fold in divided for label in fold.fitting.labels}))
        self.folds = [_divide(store, reader, options, fold, self.labels) for fold in options.folds]
        self._ranks = {
            (fold, seed): class_ranks(self.folds[fold].fitting.recordings, seed)
            for fold in range(len(self.folds))
            for seed in options.seeds
        }
        self._known = [[asdict(r) for r in fold.fitting.recordings] for fold in self.folds]
        self._paths: dict[CurveCell, Path] = {}

    def all(self) -> list[CurveCell]:
        """Seeds first, so that all heads' curves grow together."""
        options = self._options
        return [
            CurveCell(head, shots, seed, fold)
            for seed in options.seeds
            for fold in range(len(self.folds))
            for shots in options.shots
            for head in options.heads
        ]

    def missing(self) -> list[CurveCell]:
        """One cell a file that is not there or cannot be read."""
        by_path = {self._path(cell): cell for cell in reversed(self.all())}
        return [cell for path, cell in reversed(by_path.items()) if self._read(path, cell) is None]

    def make(self, cell: CurveCell) -> None:
        """Fit a cell's head on its draw, score the fold's unheard side, keep the scores."""
        from safetensors.numpy import save_file

        from stage2_heads.pooling import pool_windows

        fold = self.folds[cell.fold]
        unfitted = self._heads[cell.head, cell.seed]
        fitted = type(unfitted)(unfitted.settings).fit(fold.fitting.subset(self._drawn(cell)))
        windows = [
            fitted.scores(self._reader.read(fold.rows[start : start + _BATCH_ROWS]))
            for start in range(0, len(fold.rows), _BATCH_ROWS)
        ]
        scores = pool_windows(np.concatenate(windows), fold.group, len(fold.scored), _POOL)
        write_atomically(self._path(cell), lambda path: save_file({"scores": scores}, str(path)))

    def read(self, cell: CurveCell) -> np.ndarray:
        """(n_scored, n_classes) of a cell that is made."""
        scores = self._read(self._path(cell), cell)
        if scores is None:
            raise InputError(f"{self._path(cell)} was changed meanwhile; run the same command again.")
        return scores

    def draw_size(self, shots: Shots) -> tuple[int, float]:
        """Classes that have so many recordings in every fold, and the mean number of recordings that a draw holds."""
        most = _MANY if shots is None else shots
        sizes = [int((ranks < most).sum()) for ranks in self._ranks.values()]
        if shots is None:
            return len(self.labels), float(np.mean(sizes))
        return sum(n >= shots for n in self._fewest().values()), float(np.mean(sizes))

    def classes_with_few(self) -> list[str]:
        """A sentence a number of shots that some class does not reach."""
        lines, fewest = [], self._fewest()
        for shots in self._options.shots:
            short = sorted((n, label) for label, n in fewest.items() if shots is not None and n < shots)
            if short:
                named = ", ".join(f"{label} {n}" for n, label in short[:_SHOWN]) + ", ..." * (len(short) > _SHOWN)
                lines.append(
                    f"{shots} shots: {len(short)} of {len(self.labels)} classes have fewer recordings to draw from and "
                    f"give all they have ({named})."
                )
        return lines

    def _fewest(self) -> dict[str, int]:
        """Recordings of each class to draw from, in the fold that has fewest."""
        counts = [Counter(r.primary_label for r in fold.fitting.recordings) for fold in self.folds]
        return {label: min(count[label] for count in counts) for label in self.labels}

    def _drawn(self, cell: CurveCell) -> np.ndarray:
        return self._ranks[cell.fold, cell.seed] < (_MANY if cell.shots is None else cell.shots)

    def _path(self, cell: CurveCell) -> Path:
        if cell not in self._paths:
            self._paths[cell] = self._folder / f"{self._digest(cell)}.safetensors"
        return self._paths[cell]

    def _digest(self, cell: CurveCell) -> str:
        fold, head = self.folds[cell.fold], self._heads[cell.head, cell.seed]
        drawn = self._drawn(cell)
        heard = fold.fitting.heard_by_block[drawn].tolist()
        chosen = [known for known, d in zip(self._known[cell.fold], drawn, strict=True) if d]
        decided = (
            *(_CELL_FORMAT, head.kind, head._settings_json(), self.labels, _POOL),
            *([fingerprint.digest for _, fingerprint in self._reader.blocks], asdict(self._store.plan)),
            *(self._options.windows, self._options.secondary_weight),
            sorted(zip([r["recording"] for r in chosen], chosen, heard, strict=True), key=lambda known: known[0]),
            [r.recording for r in fold.scored],
        )
        return digest_of(*decided)

    def _read(self, path: Path, cell: CurveCell) -> np.ndarray | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            scores = load_file(str(path))["scores"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        fits = scores.shape == (len(self.folds[cell.fold].scored), len(self.labels)) and np.isfinite(scores).all()
        return scores if fits else None


def _divide(
    store: Store, reader: StoreReader, options: CurveOptions, fold: str, labels: tuple[str, ...] | None = None
) -> _Fold:
    """The training side to draw from, and the recordings of the other side that nothing here has heard.

    All recordings of the training side count as heard, drawn or not, so that every cell is scored on the same ones.
    """
    from cli.heads_common import rows_of_split
    from embeddings.contract import Heard
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import guard
    from stage2_heads.stored_rows import stored_rows

    names = [name for name, _ in reader.blocks]
    sides = []
    for side in ("train", "valid"):
        rows = rows_of_split(store, side, fold)
        places, recording_of_row = store.index.recordings_of(rows)
        known = [RecordingLabels.of(store.catalogue.recordings[place]) for place in places]
        sides.append((rows, recording_of_row, known))
    (rows, _, known), (valid_rows, valid_recording_of_row, valid_known) = sides
    fitting = stored_rows(
        store, names, rows, labels=labels, windows=options.windows, secondary_weight=options.secondary_weight
    )
    heard = Heard(
        trained_on=frozenset(r.recording for r in known),
        xeno_canto_ids=frozenset(r.xeno_canto_id for r in known if r.xeno_canto_id),
    )
    split = guard(valid_known, heard.union(store.heard(names)), fitting.labels)
    place = np.where(split.scored, np.cumsum(split.scored) - 1, -1)[valid_recording_of_row]
    return _Fold(
        fitting=fitting,
        scored=tuple(r for r, kept in zip(valid_known, split.scored, strict=True) if kept),
        rows=valid_rows[place >= 0],
        group=place[place >= 0],
        n_heard=split.n_heard_left_out,
    )


def _unfitted_head(name: str, options: CurveOptions, n_blocks: int, seed: int) -> Head:
    """The head as `heads fit` would make it, with those of the settings that it has, if any of the heads has them."""
    from cli.heads_common import head_settings, unfitted_head
    from stage2_heads.heads import HEADS, create_head

    create_head(name)  # an unknown name is told first
    known = {
        head: {field.name for field in fields(HEADS[head].load_class().settings_type)}
        for head in options.heads
        if head in HEADS
    }
    own = [
        setting
        for setting in options.settings
        if setting.partition("=")[0] in known[name]
        or not any(setting.partition("=")[0] in names for names in known.values())
    ]
    return unfitted_head(name, options.fusion, n_blocks, head_settings(name, own, seed))
