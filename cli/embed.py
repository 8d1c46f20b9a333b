"""`embed`: recordings into a store of embeddings, and questions to that store that need no head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import embed_export, embed_extract, embed_search, embed_stores
from cli.common import (
    JsonOption,
    console,
    engine_words,
    make_app,
    print_names,
    progress,
    run,
    write_summary,
)

if TYPE_CHECKING:
    from embeddings.store import Store

app = make_app("Embed recordings once, into a store; then inspect, check and search it.")
embed_extract.register(app)

StoreArgument = Annotated[Path, typer.Argument(help="A store made by `embed extract`.")]


@app.command()
def info(store_path: StoreArgument, json_path: JsonOption = None) -> None:
    """What a store holds: recordings, windows, blocks, labels, splits, flags, quarantine."""
    from collections import Counter

    from rich.table import Table

    from embeddings.shards import FLAGS, shard_metadata
    from embeddings.store import Store

    store = Store(store_path)
    embedded = store.embedded
    recordings = [r for r in store.catalogue if r.recording in embedded]
    splits = Counter(r.split or "none" for r in recordings)
    bad = store.quarantine.files()
    bytes_on_disk = sum(p.stat().st_size for p in store.path.rglob("*.arrow"))
    facts: dict[str, Any] = {
        "store": str(store.path),
        "recordings": len(recordings),
        "windows": store.n_rows,
        "windows_plan": store.plan.to_json(),
        "dtype": store.dtype,
        "shards": len(store.shards),
        "bytes": bytes_on_disk,
        "blocks": [
            {
                "name": b.name,
                "dim": b.dim,
                "fingerprint": b.fingerprint.digest,
                "shards_missing": len(store.missing_shards(b.name)),
            }
            for b in store.blocks.values()
        ],
        "labels": dict(Counter(r.primary_label for r in recordings if r.primary_label).most_common()),
        "split": {**store.split_settings, "recordings": dict(splits)},
        "flags": {flag: int(getattr(store.rows, flag).sum()) for flag in FLAGS},
        "quarantined": {entry.path: entry.reason for entry in bad},
        "engines": _engines_of(store),
        "provenance": shard_metadata(store.row_path(store.shards[0])) if store.shards else {},
    }
    write_summary(json_path, facts)
    table = Table(title=str(store.path), show_header=False, title_justify="left")
    names = store.catalogue.names()
    common = [f"{names[label][1] or label} {n}" for label, n in facts["labels"].items()]
    table.add_row("recordings", f"{len(recordings)}, {sum(1 for r in recordings if r.primary_label)} labelled")
    table.add_row(
        "windows", f"{store.n_rows} of {store.plan.window_s:g} s every {store.plan.hop_s:g} s, last: {store.plan.last}"
    )
    for b in facts["blocks"]:
        missing = f", {b['shards_missing']} shards missing" if b["shards_missing"] else ""
        table.add_row(f"block {b['name']}", f"{b['dim']} numbers, fingerprint {b['fingerprint'][:12]}{missing}")
    table.add_row("on disk", f"{bytes_on_disk / 1e6:.1f} MB in {len(store.shards)} shards, {store.dtype}")
    table.add_row(
        "split", ", ".join(f"{side} {n}" for side, n in sorted(splits.items())) + f" ({store.split_settings['kind']})"
    )
    table.add_row("labels", f"{len(common)}: " + ", ".join(common[:12]) + (" ..." if len(common) > 12 else ""))
    table.add_row("flagged windows", ", ".join(f"{flag} {n}" for flag, n in facts["flags"].items()))
    table.add_row("quarantined", str(len(bad)))
    if facts["provenance"]:
        versions = ", ".join(f"{k} {v}" for k, v in facts["provenance"]["versions"].items())
        table.add_row("made by", versions)
        for name, record in facts["engines"].items():
            table.add_row(f"engine of {name}", "; ".join(record))
    console().print(table)
    print_names("Quarantined", [f"{entry.path}: {entry.reason} ({entry.when})" for entry in bad])
    print_names("Torn shards", list(store.torn.values()))


@app.command()
def verify(store_path: StoreArgument, json_path: JsonOption = None) -> None:
    """Read the whole store: checksums, counts, fingerprints, backbones. Exit code 1 when something is damaged."""
    from embeddings.store import Store
    from embeddings.verify import verify_store

    store = Store(store_path)
    with progress("verifying", len(store.shards), "shards") as advance:
        report = verify_store(store, on_shard=advance)
    write_summary(json_path, {**vars(report), "ok": report.ok})
    print_names("Damage", report.problems)
    print_names("Notes", report.notes)
    verdict = "sound" if report.ok else "DAMAGED"
    console().print(
        f"{store.path} is {verdict}: {report.n_recordings} recordings, {report.n_rows} windows, "
        f"{report.n_shards} shards read."
    )
    if not report.ok:
        console().print(f"Take the damage out with: embed repair {store.path}; then extract again as before.")
        raise typer.Exit(1)


def _engines_of(store: Store) -> dict[str, list[str]]:
    """Block -> the engines that made its shards, in words, each once."""
    from embeddings.shards import shard_metadata

    engines: dict[str, dict[str, None]] = {name: {} for name in store.blocks}
    for name in store.blocks:
        for shard in store.shards:
            if store.vector_path(name, shard).is_file():
                record = shard_metadata(store.vector_path(name, shard)).get("engines", {}).get(name)
                engines[name][engine_words(record)] = None
    return {name: list(words) for name, words in engines.items()}


embed_search.register(app)
embed_export.register(app)
embed_stores.register(app)


def main() -> None:
    """Entry point of `embed`."""
    run(app)


if __name__ == "__main__":
    main()
