"""Two or three birds at once, over rain: which blocks still tell them apart, by how loud the rain is.

    python -m benchmarks.mixtures STORE... --rain FOLDER --out FOLDER

STORE: one a fold, made by `backbones compare` or `embed extract` with the blocks to compare. Heads are fitted on each
store's training side; mixtures are made of recordings that neither a head nor a backbone has heard.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from embeddings.store import Store

__all__ = ["Mixture", "main", "mix"]

_SNRS_DB = (10.0, 5.0, 0.0)
_N_SPECIES = (2, 3)
_LEVELS_DB = (-6.0, 0.0)  # of one bird beside another
_WINDOW_S = 5.0
_BATCH = 16
_REPLICATES = 1000


@dataclass(frozen=True)
class Mixture:
    """A window in the making. birds : (samples,) sum of the birds, at rate_hz;  rain : (samples,), both of spread 1"""

    labels: tuple[str, ...]
    birds: np.ndarray
    rain: np.ndarray
    rate_hz: int

    def at(self, snr_db: float) -> np.ndarray:
        """The window whose birds are `snr_db` louder than the rain, its peak at a half."""
        sound = self.birds + 10 ** (-snr_db / 20) * self.rain
        return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def mix(store: Store, rain: Sequence[Path], n: int, rng: np.random.Generator) -> Iterator[Mixture]:
    """`n` mixtures of each number of species, of the store's recordings that no backbone has heard.

    Recordings in which a second species was noted are not used: what sings must be known.
    """
    from stage1_backbones.audio import read_audio

    rate_hz = 48_000
    heard = store.heard()
    known = heard.trained_on | heard.selected_on
    by_label: dict[str, list[Path]] = {}
    for r in store.catalogue:
        unheard = r.recording not in known and r.xeno_canto_id not in heard.xeno_canto_ids - {""}
        if r.split == "valid" and unheard and not r.secondary_labels:
            by_label.setdefault(r.primary_label, []).append(r.path)
    for n_species in _N_SPECIES:
        for _ in range(n):
            labels = tuple(rng.choice(sorted(by_label), n_species, replace=False))
            paths = [by_label[label][int(rng.integers(len(by_label[label])))] for label in labels]
            levels = 10 ** (rng.uniform(*_LEVELS_DB, n_species) / 20)
            birds = sum(
                level * _loudest(read_audio(path, rate_hz), rate_hz) for level, path in zip(levels, paths, strict=True)
            )
            bed = _loudest(read_audio(rain[int(rng.integers(len(rain)))], rate_hz), rate_hz)
            yield Mixture(labels, _of_spread_1(np.asarray(birds)), bed, rate_hz)


def _loudest(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """The window with the most energy above the hum, of spread 1; a shorter recording is repeated."""
    n = round(_WINDOW_S * rate_hz)
    samples = samples if len(samples) >= n else np.resize(samples, n)
    energy = np.concatenate([[0.0], np.cumsum(np.square(np.diff(samples, prepend=samples[:1]), dtype=np.float64))])
    starts = np.arange(0, len(samples) - n + 1, rate_hz // 10)
    start = int(starts[np.argmax(energy[starts + n] - energy[starts])])
    return _of_spread_1(samples[start : start + n])


def _of_spread_1(samples: np.ndarray) -> np.ndarray:
    return samples / max(1e-9, float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


def _heads(store: Store) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Name -> blocks and a linear SVM fitted on them: each block alone, all that were trained, all."""
    from stage2_heads.heads import create_head
    from stage2_heads.stored_rows import stored_rows

    names = tuple(store.blocks)
    trained = tuple(name for name in names if store.heard([name]).trained_on)
    sides = np.array([r.split for r in store.catalogue])
    rows = store.index.rows_of(sides == "train")
    heads: dict[str, tuple[tuple[str, ...], Any]] = {}
    for blocks in dict.fromkeys([*((name,) for name in names), trained, names]):
        labelled = stored_rows(store, blocks, rows)
        if len(blocks) == 1:
            heads[blocks[0]] = (blocks, create_head("svm").fit(labelled))
            continue
        what = " + ".join(blocks)
        heads[f"{what}, late"] = (blocks, create_head("fused", head="svm", settings={}).fit(labelled))
        heads[f"{what}, side by side"] = (blocks, create_head("svm").fit(labelled))
    return heads


def _scored(store: Store, mixtures: Sequence[Mixture]) -> dict[str, tuple[tuple[str, ...], dict[float, np.ndarray]]]:
    """Name of a head -> its labels, and the scores (n, c) of all mixtures at each level of rain."""
    import soxr

    from stage1_backbones.registry import load_backbone

    heads = _heads(store)
    vectors: dict[float, dict[str, np.ndarray]] = {snr_db: {} for snr_db in _SNRS_DB}
    for name, block in store.blocks.items():
        backbone = load_backbone(store.backbone_path(block), device="cpu")
        for snr_db in _SNRS_DB:
            made = []
            for start in range(0, len(mixtures), _BATCH):
                some = [
                    soxr.resample(m.at(snr_db), m.rate_hz, backbone.sample_rate_hz) for m in mixtures[start:][:_BATCH]
                ]
                made.append(backbone.embed(np.stack(some).astype(np.float32)))
            vectors[snr_db][name] = np.concatenate(made)
    return {
        what: (
            head.labels_,
            {snr_db: head.scores(np.hstack([vectors[snr_db][name] for name in blocks])) for snr_db in _SNRS_DB},
        )
        for what, (blocks, head) in heads.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixtures", description=__doc__)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--rain", type=Path, required=True, help="folder of rain")
    parser.add_argument("--out", type=Path, required=True, help="folder of mixtures.csv and mixtures.md")
    parser.add_argument("--n", type=int, default=40, help="mixtures a fold and number of species")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from embeddings.store import Store

    rain = sorted(p for p in given.rain.iterdir() if p.is_file())
    truths: list[tuple[str, ...]] = []
    scores: dict[str, dict[float, list[np.ndarray]]] = {}
    labels: tuple[str, ...] = ()
    for fold, path in enumerate(given.stores):
        store = Store(path)
        made = list(mix(store, rain, given.n, np.random.default_rng((given.seed, fold))))
        truths += [m.labels for m in made]
        for what, (own, by_snr) in _scored(store, made).items():
            labels = labels or own
            assert own == labels, "folds know different labels"
            for snr_db, values in by_snr.items():
                scores.setdefault(what, {}).setdefault(snr_db, []).append(values)
    cells = _cells(truths, labels, {w: {s: np.concatenate(v) for s, v in by.items()} for w, by in scores.items()})
    _write(cells, given.out, f"{len(given.stores)} folds, {given.n} mixtures a fold and number of species")


def _cells(
    truths: Sequence[tuple[str, ...]], labels: tuple[str, ...], scores: dict[str, dict[float, np.ndarray]]
) -> list[dict[str, Any]]:
    """A figure for each head, number of species and level of rain; the same weights of mixtures throughout."""
    from stage2_heads.bootstrap import bayesian_weights, interval
    from stage2_heads.levels import Level
    from stage2_heads.score_table import ScoreTable

    truth = np.array([[label in one for label in labels] for one in truths])
    cells = []
    for what, by_snr in scores.items():
        for n_species in _N_SPECIES:
            mine = truth.sum(axis=1) == n_species
            n = int(mine.sum())
            weights = np.hstack([np.ones((n, 1)), bayesian_weights(n, _REPLICATES, 0)])
            for snr_db, values in by_snr.items():
                level = Level(truth[mine], ScoreTable.of(values[mine]), np.full(n, -1), np.arange(n))
                found = level.figures(weights).metrics["cmap_present"]
                low, high = interval(found[1:], float(found[0]))
                cell = {"blocks": what, "species": n_species, "snr_db": snr_db, "n": n}
                cells.append({**cell, "cmap": float(found[0]), "low": low, "high": high})
    return cells


def _write(cells: list[dict[str, Any]], folder: Path, title: str) -> None:
    from cli.figures import figure_words
    from stage2_heads.score_report import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "mixtures.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)
    columns = [(n, snr) for n in _N_SPECIES for snr in _SNRS_DB]
    by = {(c["blocks"], c["species"], c["snr_db"]): c for c in cells}
    lines = [
        "# Two or three birds at once, over rain",
        "",
        f"cmAP of windows over the classes present, {title}; 95 % intervals from a Bayesian bootstrap over mixtures.",
        "",
        "| linear SVM on | " + " | ".join(f"{n} species, {snr:g} dB" for n, snr in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for what in dict.fromkeys(c["blocks"] for c in cells):
        found = [by[what, n, snr] for n, snr in columns]
        words = [figure_words(Figure(c["cmap"], c["low"], c["high"], c["n"])) for c in found]
        lines.append(f"| {what} | " + " | ".join(words) + " |")
    text = "\n".join(lines) + "\n"
    (folder / "mixtures.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
