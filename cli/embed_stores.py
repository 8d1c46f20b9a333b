"""`embed` on whole stores: merge, compact, drop recordings, replace labels, take out damage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.common import DryRunOption, JsonOption, console, print_names, progress, write_summary

__all__ = ["register"]

StoreArgument = Annotated[Path, typer.Argument(help="A store made by `embed extract`.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `embed`."""
    for command in (merge, compact, drop, relabel, repair):
        app.command()(command)


def merge(
    stores: Annotated[list[Path], typer.Argument(help="Stores with the same blocks and windows.")],
    out: Annotated[Path, typer.Option(help="The new store.")],
    mix_splits: Annotated[bool, typer.Option(help="Allow one recording on different sides; the first counts.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Make one store of several. Vectors are copied bit for bit; a recording in several stores is taken once."""
    from embeddings.merge import merge as run_merge
    from embeddings.store import Store

    total = sum(len(Store(path).embedded) for path in stores)
    with progress("merging", total, "recordings") as advance:
        report = run_merge(stores, out, mix_splits=mix_splits, on_recordings=advance)
    console().print(
        f"{out}: {report.n_recordings} recordings, {report.n_rows} windows in {report.n_shards} shards, "
        f"from {len(stores)} stores."
    )
    print_names("In several stores, taken once with the labels of all", list(report.twice))
    write_summary(json_path, asdict(report))


def compact(store_path: StoreArgument, json_path: JsonOption = None) -> None:
    """Rewrite small shards into large ones, and remove what dropped recordings and interrupted runs left."""
    from embeddings.merge import compact as run_compact
    from embeddings.store import Store

    store = Store(store_path)
    with progress("compacting", len(store.embedded), "recordings") as advance:
        report = run_compact(store, on_recordings=advance)
    console().print(
        f"{store_path}: {report.n_shards_before} shards became {report.n_shards}; {report.n_rows} windows; "
        f"{report.n_rows_removed} rows that no longer counted and {report.n_leftovers} leftover files removed."
    )
    write_summary(json_path, asdict(report))


def drop(
    store_path: StoreArgument,
    recordings: Annotated[
        list[str], typer.Option(help="A file name, path or content hash; * and ? match; a .txt file lists several.")
    ],
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Take recordings out. Their rows are gone for readers at once, and from the disk at the next `embed compact`.

    Extracting a source that names them brings them back.
    """
    from embeddings.drop import drop as run_drop
    from embeddings.drop import matching
    from embeddings.store import Store

    store = Store(store_path)
    gone = matching(store, _patterns(recordings))
    n_rows = store.n_rows
    names = [recording.filename for recording in gone]
    if dry_run:
        print_names("Would drop", names)
        return
    run_drop(store, gone)
    print_names("Dropped", names)
    console().print(f"{store_path}: {len(store.embedded)} recordings, {store.n_rows} of {n_rows} windows are left.")
    write_summary(json_path, {"store": str(store_path), "dropped": names, "n_rows": store.n_rows})


def relabel(
    store_path: StoreArgument,
    table: Annotated[Path, typer.Argument(help="A table in BirdCLEF's layout; recordings are matched by filename.")],
    resplit: Annotated[bool, typer.Option(help="Also divide the recordings anew, by the new labels.")] = False,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Replace labels and the other columns of a table. Neither vectors nor audio are touched."""
    from embeddings.relabel import relabelled, store_catalogue
    from embeddings.store import Store

    store = Store(store_path)
    report = relabelled(store.catalogue, table, resplit=resplit, split_settings=store.split_settings)
    verb = "Would change" if dry_run else "Changed"
    if not dry_run:
        store_catalogue(store, report.recordings)
    console().print(
        f"{verb} {len(report.changed)} of {len(report.recordings)} recordings; {report.n_same} are labelled as before."
    )
    print_names("To mend", report.problems)
    print_names("In the table, not in the store", report.unmatched)
    print_names("In the store, not in the table, left as they are", report.unnamed)
    write_summary(
        json_path,
        {
            "store": str(store_path),
            "changed": report.changed,
            "n_same": report.n_same,
            "unmatched": report.unmatched,
            "unnamed": report.unnamed,
            "problems": report.problems,
        },
    )


def repair(store_path: StoreArgument, json_path: JsonOption = None) -> None:
    """Take damaged shards out, so that the next `embed extract` computes exactly those again. Nothing is deleted."""
    from embeddings.layout import StoreLayout
    from embeddings.repair import take_out_catalogue, take_out_damage
    from embeddings.store import Store

    StoreLayout(store_path)  # a store at all?
    lost_catalogue = take_out_catalogue(store_path)
    store = Store(store_path)
    with progress("reading", len(store.shards) + len(store.torn), "shards") as advance:
        report = take_out_damage(store, on_shard=advance)
    write_summary(json_path, asdict(report))
    out = console()
    if lost_catalogue:
        out.print(
            f"The catalogue was damaged and has been taken out. No vector is lost: run `embed extract SOURCE --out "
            f"{store_path}` for every source; recordings that have rows are not embedded again."
        )
        raise typer.Exit(1)
    if not report.kept_in:
        out.print(f"{store_path} is sound; nothing was changed.")
        return
    print_names("Shards taken out, whose recordings are to be embedded again", report.shards)
    print_names("Blocks taken out of shards", [f"{block}: {shard}" for block, shard in report.blocks])
    out.print(f"{report.leftovers} leftover files. All were moved to {report.kept_in}; delete it when all is well.")
    if report.found_any:
        out.print(f"Now run the extraction again, as before: embed extract SOURCE --out {store_path}")


def _patterns(given: list[str]) -> list[str]:
    """The patterns themselves, and the lines of those that are lists."""
    patterns = []
    for one in given:
        if one.endswith(".txt") and Path(one).is_file():
            lines = Path(one).read_text(encoding="utf-8").splitlines()
            patterns += [line.strip() for line in lines if line.strip()]
        else:
            patterns.append(one)
    return patterns
