"""What `heads update` is worth: each kind of head before and after more recordings, beside a head fitted anew on all.

    python -m benchmarks.updating STORE --block birdnet --out docs/experiments/updating_NAME

Recordings are divided into three parts: one is scored, one fitted on, one comes later; each part is scored once. Then a
species comes later: a head fitted without it learns its recordings, and nothing else.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows

__all__ = ["main"]

_KINDS = ("svm", "logistic", "online", "prototypes", "knn")
_PARTS = 3
_NEW_SPECIES = 5  # a part
_REPLICATES = 1000
_COLUMNS = {
    "before": "fitted on the first half",
    "after": "after the update",
    "anew": "fitted anew on both",
    "others_before": "other species, before",
    "others_after": "other species, after",
    "new": "the new species, after",
    "new_anew": "the new species, fitted anew",
}


@dataclass
class _Asked:
    """A figure in the making: of each recording asked about, whether it was named rightly, and whose it is."""

    hits: list[float] = field(default_factory=list)
    recordings: list[int] = field(default_factory=list)

    def words(self) -> str:
        """top-1 with a 95 % interval over recordings, and n."""
        from stage2_heads.bootstrap import bayesian_weights, interval

        names, group = np.unique(self.recordings, return_inverse=True)
        hits, counts = np.bincount(group, weights=self.hits), np.bincount(group)
        weights = bayesian_weights(len(names), _REPLICATES)
        value = hits.sum() / counts.sum()
        low, high = interval((hits @ weights) / (counts @ weights), value)
        return f"{value:.3f} ({low:.3f}-{high:.3f}) of {len(names)}"


class _Set:
    """A store's labelled recordings, and heads on one block of it."""

    def __init__(self, store: Store, block: str, seed: int) -> None:
        from stage2_heads.labels import RecordingLabels

        self._store, self._block = store, block
        self.recordings = [RecordingLabels.of(r) for r in store.catalogue]
        self.primary = np.array([r.primary_label for r in self.recordings])
        self.labels = tuple(sorted(set(self.primary) - {""}))
        rng = np.random.default_rng(seed)
        self.part = np.full(len(self.primary), -1)
        for label in self.labels:
            mine = rng.permutation(np.flatnonzero(self.primary == label))
            self.part[mine] = (np.arange(len(mine)) + rng.integers(_PARTS)) % _PARTS

    def rows(self, chosen: np.ndarray, labels: tuple[str, ...]) -> LabelledRows:
        """Windows of these recordings, (n_recordings,) bool."""
        from stage2_heads.rows import label_rows

        reader = self._store.reader([self._block])
        rows = self._store.index.rows_of(chosen)
        places, code = self._store.index.recordings_of(rows)
        recordings = [self.recordings[place] for place in places]
        return label_rows(reader, rows, code, recordings, blocks=reader.blocks, labels=labels)

    def ask(self, head: Head, chosen: np.ndarray, *figures: tuple[_Asked, np.ndarray]) -> None:
        """Score these recordings; each figure takes those of its own mask, (n_recordings,) bool."""
        from stage2_heads.metrics import top_k_hits
        from stage2_heads.pooling import pool_windows

        rows = self._store.index.rows_of(chosen)
        places, code = self._store.index.recordings_of(rows)
        scores = pool_windows(head.scores(self._store.reader([self._block]).read(rows)), code, len(places), "mean")
        column = {label: i for i, label in enumerate(head.labels_)}
        hits = top_k_hits(scores, np.array([column[label] for label in self.primary[places]]), 1)
        for figure, mask in figures:
            figure.hits += hits[mask[places]].tolist()
            figure.recordings += places[mask[places]].tolist()


def _measure(data: _Set, kind: str) -> dict[str, _Asked]:
    from stage2_heads.heads import create_head
    from stage2_heads.updating import update_head

    found = {name: _Asked() for name in _COLUMNS}
    everyone = np.ones(len(data.part), dtype=bool)
    for k in range(_PARTS):
        asked, first, later = (data.part == (k + shift) % _PARTS for shift in range(_PARTS))
        head = create_head(kind).fit(data.rows(first, data.labels))
        data.ask(head, asked, (found["before"], everyone))
        update_head(head, data.rows(later, data.labels))
        data.ask(head, asked, (found["after"], everyone))
        anew = create_head(kind).fit(data.rows(first | later, data.labels))
        data.ask(anew, asked, (found["anew"], everyone))
        for label in np.random.default_rng(k).permutation(data.labels)[:_NEW_SPECIES]:
            new = data.primary == label
            others = tuple(name for name in data.labels if name != label)
            head = create_head(kind).fit(data.rows((first | later) & ~new, others))
            data.ask(head, asked & ~new, (found["others_before"], everyone))
            head.add_classes([str(label)])
            update_head(head, data.rows((first | later) & new, head.labels_))
            data.ask(head, asked, (found["others_after"], ~new), (found["new"], new))
            data.ask(anew, asked & new, (found["new_anew"], everyone))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print as it goes, and write OUT.csv and OUT.md."""
    from embeddings.files import write_atomically
    from embeddings.store import Store

    parser = argparse.ArgumentParser(prog="python -m benchmarks.updating", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--block", default="birdnet")
    parser.add_argument("--out", type=Path, required=True, help="where .csv and .md go, without the suffix")
    parser.add_argument("--title", default="Heads that learn more recordings")
    given = parser.parse_args(arguments)
    data = _Set(Store(given.store), given.block, seed=0)
    table = []
    for kind in _KINDS:
        figures = {name: asked.words() for name, asked in _measure(data, kind).items()}
        table.append({"head": kind, **{_COLUMNS[name]: words for name, words in figures.items()}})
        print(table[-1], flush=True)
    columns = list(table[0])
    lines = [
        f"# {given.title}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row.values()) + " |" for row in table),
        "",
        f"Top-1 of recordings on {given.block}, with a 95 % interval (Bayesian bootstrap over recordings) and how many "
        f"those are; {_PARTS} parts, each scored once, one division. A species comes later {_PARTS} times "
        f"{_NEW_SPECIES} times: a head fitted without it learns its recordings and nothing else; recordings of other "
        "species are then asked about several times each.",
    ]

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as sink:
            writer = csv.DictWriter(sink, columns)
            writer.writeheader()
            writer.writerows(table)

    write_atomically(given.out.with_suffix(".csv"), write_csv)
    write_atomically(given.out.with_suffix(".md"), lambda path: path.write_text("\n".join(lines) + "\n"))


if __name__ == "__main__":
    main()
