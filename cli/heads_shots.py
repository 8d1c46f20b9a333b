"""`heads fit --shots`: the learning curve of heads, each fitted on a few recordings a class of the training side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cli.common import console, progress, write_summary
from cli.shots_cells import CurveCell, CurveCells, CurveOptions
from cli.shots_report import curve_table, write_curve
from embeddings.errors import InputError
from stage2_heads.shots import CurvePoint, Shots, curve_points, parse_shots, shots_name

__all__ = ["draw_curve"]


def draw_curve(
    store_path: Path,
    out: Path,
    *,
    head: str,
    shots: str,
    seeds: int,
    seed: int,
    blocks: str | None,
    windows: str,
    secondary_weight: float,
    fusion: str,
    settings: Sequence[str],
    split: str,
    valid_fold: str,
    labels: Path | None,
    target: str,
    overwrite: bool,
    json_path: Path | None,
    dry_run: bool,
) -> None:
    """Fit, score and draw; what is finished lies in `out/cells` and is not fitted again. Arguments as of `heads fit`.

    Raises InputError for options that contradict each other, before anything is fitted.
    """
    from cli.heads_common import open_store

    if not shots:
        raise InputError(f"--seeds {seeds} counts the draws of a learning curve; add --shots, such as --shots 1,2,4,8.")
    if split != "train" or overwrite:
        raise InputError("--shots draws from the training side and keeps what is done: leave out --split, --overwrite.")
    if seeds < 1:
        raise InputError(f"--seeds {seeds} must be 1 or more draws of the recordings.")
    options = CurveOptions(
        heads=_names(head, "--head"),
        shots=parse_shots(shots),
        seeds=tuple(range(seed, seed + seeds)),
        blocks=tuple(blocks.split(",")) if blocks else None,
        windows=windows,
        secondary_weight=secondary_weight,
        fusion=fusion,
        settings=tuple(settings),
        folds=_names(valid_fold, "--valid-fold") if valid_fold else ("",),
    )
    if out.exists() and not (out.is_dir() and ((out / "cells").is_dir() or not any(out.iterdir()))):
        raise InputError(f"--out {out} exists and is not a learning curve; name a new folder.")
    store = open_store(store_path, labels, target)
    reader = store.reader(options.blocks)
    cells = CurveCells(options, store, reader, out / "cells")
    todo, names = cells.missing(), [name for name, _ in reader.blocks]
    what = (
        f"{', '.join(options.heads)} on {' + '.join(names)}, {', '.join(map(shots_name, options.shots))} recordings of "
        f"each of {len(cells.labels)} classes, {len(options.seeds)} draws"
    )
    screen = console()
    few = cells.classes_with_few()
    for line in few:
        screen.print(line)
    if dry_run:
        screen.print(f"Would fit {what}: {len(cells.all())} cells, {len(todo)} fits to do. Nothing was fitted.")
        return
    with progress("fitting", len(todo), "fits") as advance:
        for cell in todo:
            cells.make(cell)
            advance(1)

    points = _points(cells, options)
    title = f"{store.path.resolve().name}: {what}"
    classes = {number: cells.draw_size(number) for number in options.shots}
    n_heard = sum(fold.n_heard for fold in cells.folds)
    ranked = f"Each of {len(cells.folds)} folds is ranked by itself; figures are means over folds."
    unpublished = store.heard(names).unpublished
    notes = [
        *few,
        *([unpublished] if unpublished else []),
        *([ranked] if len(cells.folds) > 1 else []),
        f"Recordings of the scored side left out because they were heard: {n_heard}.",
    ]
    paths = write_curve(points, classes, out, title=title, notes=notes)
    screen.print(curve_table(points, classes, title))
    screen.print(
        f"Scored {points[0].n} recordings; {n_heard} were left out as heard. Curve: {', '.join(map(str, paths))}"
    )
    write_summary(
        json_path,
        {
            "out": str(out),
            "store": str(store.path.resolve()),
            "options": asdict(options),
            "n_recordings": points[0].n,
            "left_out": {"heard": n_heard},
            "notes": notes,
            "points": [point.to_json() for point in points],
        },
    )


def _points(cells: CurveCells, options: CurveOptions) -> list[CurvePoint]:
    from stage2_heads.labels import primary_codes, target_matrix

    scored = [recording for fold in cells.folds for recording in fold.scored]
    fold_of = np.repeat(np.arange(len(cells.folds)), [len(fold.scored) for fold in cells.folds])
    tables: dict[tuple[str, Shots], list[np.ndarray]] = {}
    for name in options.heads:
        for number in options.shots:
            tables[name, number] = [
                np.concatenate([cells.read(CurveCell(name, number, s, f)) for f in range(len(cells.folds))])
                for s in options.seeds
            ]
    truth, primary = target_matrix(scored, cells.labels) > 0, primary_codes(scored, cells.labels)
    return curve_points(tables, truth, primary, fold=fold_of)


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"{option} {text}: name each once, separated by commas.")
    return names
