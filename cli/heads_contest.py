"""`heads compare STORE --head ...`: kinds of heads on a store's blocks, all fitted and scored in one run."""

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
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Print the ranking, and write it as CSV, Markdown and a page of HTML into `out`.

    blocks : sets of blocks, each as `a+b`; none: each alone, the trained ones together, all together
    Raises InputError for options that do not go together, and for kinds and blocks that there are not.
    """
    from embeddings.errors import InputError

    if len(paths) != 1:
        raise InputError(f"--head fits new heads on one store, but {len(paths)} paths are named; name the store only.")
    if split or valid_fold:
        raise InputError("--split and --valid-fold are for fitted heads; with --head give --folds, or nothing.")
    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise InputError(f"--seeds {seeds} must be whole numbers between commas, such as 0,1,2.")
    store_path, all_seeds = paths[0], [int(part) for part in seeds.split(",")]
    from cli.contest_report import contest_table, write_contest
    from embeddings.store import Store
    from stage2_heads.tournament import entries_of, run_contest

    store = Store(store_path)
    sets = [tuple(block.name for block in store.choose_blocks(names.split("+"))) for names in blocks]
    entries = entries_of(store, heads, sets)
    with progress("fitting and scoring", len(entries) * len(all_seeds), "heads") as advance:
        contest = run_contest(
            store,
            entries,
            folds=folds,
            seeds=all_seeds,
            pool=pool,
            secondary_weight=secondary_weight,
            n_bootstrap=bootstrap,
            bootstrap_seed=seed,
            progress=lambda entry, seed: advance(1),
        )
    printer = console()
    printer.print(contest_table(contest))
    for note in contest.notes:
        printer.print(note)
    if out is not None:
        printer.print("Report: " + ", ".join(str(path) for path in write_contest(contest, out)))
    write_summary(json_path, {"store": str(store_path), **contest.to_json()})
