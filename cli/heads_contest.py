"""`heads compare STORE... --head ...`: kinds of heads on stores' blocks, all fitted and scored in one run."""

from __future__ import annotations

from pathlib import Path

from cli.common import console, progress, write_summary

__all__ = ["hold_contest"]


def hold_contest(
    paths: list[Path],
    *,
    heads: list[str],
    blocks: list[str],
    folds: int,
    seeds: str,
    split: str,
    valid_fold: str,
    pool: str,
    secondary_weight: float,
    bootstrap: int,
    seed: int,
    labels: Path | None,
    target: str,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Print the ranking, and write it as CSV, Markdown and a page of HTML into `out`.

    blocks : sets of blocks, each as `a+b`; none: each alone, the trained ones together, all together
    Raises InputError for options that do not go together, and for kinds and blocks that there are not.
    """
    from embeddings.errors import InputError

    if fitted := [path for path in paths if (path / "head.json").is_file()]:
        raise InputError(f"--head fits new heads, but {fitted[0]} is a fitted one; name stores only.")
    if split or valid_fold:
        raise InputError("--split and --valid-fold are for fitted heads; with --head give --folds, or nothing.")
    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise InputError(f"--seeds {seeds} must be whole numbers between commas, such as 0,1,2.")
    all_seeds = [int(part) for part in seeds.split(",")]
    from cli.contest_report import CURVES, contest_table, write_contest
    from cli.heads_common import open_store
    from stage2_heads.tournament import entries_of, run_contest

    stores = [open_store(path, labels, target) for path in paths]
    sets = [tuple(block.name for block in stores[0].choose_blocks(names.split("+"))) for names in blocks]
    entries = entries_of(stores[0], heads, sets)
    curves = min(CURVES, len(entries)) if out is not None else 0
    with progress("fitting and scoring", len(entries) * len(all_seeds) + curves, "heads") as advance:
        contest = run_contest(
            stores,
            entries,
            folds=folds,
            seeds=all_seeds,
            pool=pool,
            secondary_weight=secondary_weight,
            n_bootstrap=bootstrap,
            bootstrap_seed=seed,
            curves=curves,
            arrange=out is not None,
            progress=lambda entry, seed: advance(1),
        )
    printer = console()
    printer.print(contest_table(contest))
    for note in contest.notes:
        printer.print(note)
    if out is not None:
        printer.print("Report: " + ", ".join(str(path) for path in write_contest(contest, out)))
    asked = {"folds": folds, "pool": pool, "secondary_weight": secondary_weight}
    said = {"labels": str(labels) if labels is not None else "the stores'", "target": target or "species"}
    write_summary(json_path, {"store": [str(path) for path in paths], **said, **asked, **contest.to_json()})
