"""The cells of an experiment: each training, store and table of scores is made once and kept by what decided it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.experiment import Arm, Experiment, Trial, digest_of
from embeddings.errors import AudioError, InputError
from embeddings.files import read_json, write_atomically

if TYPE_CHECKING:
    from embeddings.recordings import Catalogue, Recording
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.windows import AudioWindow
    from stage2_heads.base import Head

__all__ = ["CellScores", "Cells"]


@dataclass(frozen=True)
class CellScores:
    """Scores of the recordings that a trial held out.

    recordings  content hashes;  labels  the classes;  scores : (n, c) float64 in [0, 1)
    minutes     that the trial's backbones of these blocks took to train;  parameters: numbers that they learnt
    weights     of the blocks in a late fusion
    """

    recordings: tuple[str, ...]
    labels: tuple[str, ...]
    scores: np.ndarray
    minutes: float
    parameters: int = 0
    weights: tuple[float, ...] = ()


class Cells:
    """Makes what an experiment needs below one folder, and finds again what is there.

    Names are digests of everything that decides a cell, so that recipes may be renamed, reordered and added.
    """

    def __init__(
        self,
        experiment: Experiment,
        catalogue: Catalogue,
        folder: Path,
        *,
        judged: Catalogue | None = None,
        device: str = "cpu",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """judged : the catalogue with the labels that heads are fitted on and scored by, where they are others"""
        judged = judged or catalogue
        self._judged = judged
        self._experiment, self._catalogue, self._folder = experiment, catalogue, folder
        self._device, self._say = device, say
        self._content = digest_of(sorted((r.recording, r.labels) for r in judged))

    def scores(self, trial: Trial, arms: list[Arm]) -> dict[Arm, CellScores]:
        """Scores of a trial's arms; trains, extracts and fits what is missing."""
        split = self._experiment.split(self._catalogue, trial)
        blocks = sorted({block for arm in arms for block in arm.blocks})
        paths = {arm: self._scores_path(trial, arm, split) for arm in arms}
        if missing := [arm for arm in arms if not paths[arm].is_file()]:
            folders = {block: self._backbone(trial, block, split) for block in blocks}
            store = self._store(folders, split)
            for arm in missing:
                _write_scores(paths[arm], self._score(arm, store, trial.seed, folders))
        return {arm: _read_scores(path) for arm, path in paths.items()}

    def is_done(self, trial: Trial, arm: Arm) -> bool:
        return self._scores_path(trial, arm, self._experiment.split(self._catalogue, trial)).is_file()

    def backbone_path(self, trial: Trial, kind: str, split: Split) -> Path:
        """Where a trial's training lies, begun or not."""
        settings = self._experiment.settings(trial.recipe, kind, trial.seed)
        from stage1_backbones.targets import labels_digest

        told = labels_digest(self._catalogue.recordings, with_types=settings.with_types)
        return self._folder / "backbones" / f"{kind}-{digest_of(settings.to_json(), split.to_json(), told)}"

    def _scores_path(self, trial: Trial, arm: Arm, split: Split) -> Path:
        made_by = [
            block if block in self._experiment.frozen else self.backbone_path(trial, block, split).name
            for block in arm.blocks
        ]
        # With their values: a later version's defaults may be others.
        head = _new_head(arm, trial.seed)
        fitted = (head.kind, asdict(head.settings), arm.fusion, self._experiment.pool)
        decided = (made_by, split.to_json(), self._content, *fitted, *([arm.silenced] if arm.silenced else []))
        return self._folder / "scores" / f"{digest_of(*decided)}.arrow"

    def _backbone(self, trial: Trial, block: str, split: Split) -> Path:
        """A frozen backbone's name, or the folder of a trained one."""
        if block in self._experiment.frozen:
            return Path(block)
        from stage1_backbones.training import train
        from stage2_heads.metrics import present_cmap

        folder = self.backbone_path(trial, block, split)
        if not (folder / "backbone.json").is_file():
            recordings = [r for r in self._catalogue if split.assignments.get(r.recording) == "train"]
            settings = self._experiment.settings(trial.recipe, block, trial.seed)
            summary = train(
                recordings, settings, folder, split=split, scorer=present_cmap, name=block, device=self._device
            )
            cmap = (
                "" if summary.best_cmap is None else f", cmAP {summary.best_cmap:.3f} on {summary.n_select} kept apart"
            )
            self._say(
                f"  {trial}: {block} trained in {summary.minutes:.1f} min{cmap}, waited for data "
                f"{summary.data_wait:.0%} of the time"
            )
        return folder

    def _store(self, folders: Mapping[str, Path], split: Split) -> Store:
        from embeddings.extract import extract
        from embeddings.store import Store
        from embeddings.windows import WindowPlan
        from stage1_backbones.audio import stream_windows
        from stage1_backbones.hearing import SettlingBackbone
        from stage1_backbones.registry import load_backbone

        path = self._folder / "stores" / digest_of([str(f.name) for f in folders.values()], self._content)
        backbones: list[Any] = []
        for block, folder in folders.items():
            loaded = load_backbone(folder, device=self._device)
            loaded.name = block
            backbones.append(SettlingBackbone(loaded, "auto", None))
        if (path / "store.json").is_file():
            store = Store(path)
        else:
            plan = WindowPlan(backbones[0].window_s, backbones[0].window_s, "shift")
            store = Store.create(path, backbones, plan, dtype="float16", split=split, link=True)
        catalogue = self._judged.with_splits(split.assignments)
        summary = extract(catalogue, backbones, store, stream_windows, link_backbones=True)
        if summary.interrupted:
            raise KeyboardInterrupt  # what is missing must not be scored as if it were not there
        if summary.quarantined:
            self._say(f"  left out, because they do not decode: {', '.join(summary.quarantined)}")
        return store

    def _score(self, arm: Arm, store: Store, seed: int, folders: Mapping[str, Path]) -> CellScores:
        from stage2_heads.pooling import pool_windows
        from stage2_heads.stored_rows import stored_rows

        sides = np.array([r.split for r in store.catalogue])
        reader = store.reader(arm.blocks)
        rows = stored_rows(store, arm.blocks, store.index.rows_of(sides == "train"))
        if arm.fusion == "unheard":
            rows = rows.subset(~rows.heard_by_backbone)
            if not rows.n_recordings:
                raise InputError("fusions: unheard needs recordings that no backbone heard; set select_share above 0.")
        head = _new_head(arm, seed).fit(rows)
        asked = store.index.rows_of(sides == "valid")
        places, group = store.index.recordings_of(asked)
        if arm.silenced:
            vectors, group = self._silenced_windows(
                arm, store, [store.catalogue.recordings[p] for p in places], folders
            )
            windows = head.scores(vectors)
        else:
            windows = head.scores(reader.read(asked))
        return CellScores(
            recordings=tuple(store.catalogue.recordings[place].recording for place in places),
            labels=head.labels_,
            scores=pool_windows(windows, group, len(places), self._experiment.pool),
            minutes=sum(_minutes(folders[block]) for block in arm.blocks),
            parameters=sum(_parameters(folders[block]) for block in arm.blocks),
            weights=tuple(float(w) for w in getattr(head, "weights_", ())),
        )

    def _silenced_windows(
        self, arm: Arm, store: Store, recordings: Sequence[Recording], folders: Mapping[str, Path]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Windows' vectors (n, dim) when the arm's track hears nothing, and the number of each one's recording."""
        from stage1_backbones.audio import stream_windows
        from stage1_backbones.hearing import SettlingBackbone
        from stage1_backbones.registry import load_backbone

        backbones: list[Any] = []
        for block in arm.blocks:
            loaded: Any = load_backbone(folders[block], device=self._device)
            if hasattr(loaded, "network"):
                loaded.network.silenced = arm.silenced
            backbones.append(SettlingBackbone(loaded, "auto", None))
        rates_hz = sorted({backbone.sample_rate_hz for backbone in backbones})
        vectors, group = [], []
        for number, recording in enumerate(recordings):
            windows: list[AudioWindow] = []
            with suppress(AudioError):  # told when the store was made; windows before the error are there too
                windows.extend(stream_windows(recording.path, store.plan, rates_hz))
            heard = {rate: np.stack([window.waveforms[rate] for window in windows]) for rate in rates_hz}
            vectors.append(np.hstack([b.embed(heard[b.sample_rate_hz]) for b in backbones]))
            group += [number] * len(windows)
        return np.concatenate(vectors), np.array(group)


def _new_head(arm: Arm, seed: int) -> Head:
    from dataclasses import fields

    from stage2_heads.heads import HEADS, create_head

    settings = {"seed": seed} if "seed" in {f.name for f in fields(HEADS[arm.head].load_class().settings_type)} else {}
    if arm.fusion in ("late", "equal"):
        weights = "chosen" if arm.fusion == "late" else "equal"
        return create_head("fused", head=arm.head, settings=settings, weights=weights)
    return create_head(arm.head, **settings)


def _minutes(folder: Path) -> float:
    """What a training took; a frozen backbone's name is no folder and took none."""
    if not (folder / "summary.json").is_file():
        return 0.0
    return float(read_json(folder / "summary.json", what="training summary")["minutes"])


def _parameters(folder: Path) -> int:
    """Numbers that a training learnt, without the classifier's; a frozen backbone's name is no folder."""
    if not (folder / "weights.safetensors").is_file():
        return 0
    from stage1_backbones.registry import load_backbone

    network = load_backbone(folder, device="cpu").network  # type: ignore[attr-defined]
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("classifier."))


def _write_scores(path: Path, cell: CellScores) -> None:
    import pyarrow as pa

    columns: dict[str, Any] = {"recording": list(cell.recordings)}
    columns |= {label: cell.scores[:, i] for i, label in enumerate(cell.labels)}
    about = {
        "minutes": str(cell.minutes),
        "parameters": str(cell.parameters),
        "weights": " ".join(str(w) for w in cell.weights),
    }
    table = pa.table(columns).replace_schema_metadata(about)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    write_atomically(path, write)


def _read_scores(path: Path) -> CellScores:
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    labels = tuple(table.column_names[1:])
    return CellScores(
        recordings=tuple(table.column("recording").to_pylist()),
        labels=labels,
        scores=np.stack([table.column(label).to_numpy() for label in labels], axis=1),
        minutes=float(about["minutes"]),
        parameters=int(about.get("parameters", 0)),
        weights=tuple(float(w) for w in about["weights"].split()),
    )
