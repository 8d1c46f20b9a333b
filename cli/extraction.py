"""An extraction as commands ask for one: what is named is read, resolved and embedded into a store, and told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.common import console, describe_named_backbones, engine_words, print_names, progress

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from embeddings.contract import BlockSource
    from embeddings.extract import ExtractionSummary, Workers
    from embeddings.identity import HashCache
    from embeddings.recordings import Catalogue
    from embeddings.splits import Split
    from embeddings.store import Store

__all__ = ["Extracted", "extract_into"]


@dataclass(frozen=True)
class Extracted:
    """What came of it. recordings : content hashes of those that the source names, embedded now or before"""

    summary: ExtractionSummary
    store: Store
    recordings: frozenset[str]


def extract_into(
    source: Path | list[Path],
    out: Path,
    *,
    backbone: list[str] | None = None,
    audio: Path | None = None,
    label_folders: bool = False,
    hop_s: float | None = None,
    last: str | None = None,
    dtype: str = "float16",
    engine: str = "auto",
    workers: int | None = None,
    seal_s: float = 60.0,
    seed: int | None = None,
    valid_fold: str = "",
    mix_splits: bool = False,
    link_backbones: bool = False,
    retry_quarantined: bool = False,
    rehash: bool = False,
    device: str = "auto",
    dry_run: bool = False,
) -> Extracted | None:
    """`embed extract` for other commands, with its options; says what it did. None after a dry run."""
    from contextlib import closing
    from itertools import chain

    from embeddings.catalogue_sources import read_catalogue, read_unlabelled
    from embeddings.extract import extract as run_extraction
    from embeddings.identity import HashCache
    from embeddings.store import HASHES, Store
    from embeddings.windows import WindowPlan
    from embeddings.writing import Sealing

    store = Store(out) if (out / "store.json").is_file() else None
    cache_path = out / HASHES if not dry_run else None
    references, sources = _sources(backbone or [], store)
    sealing = Sealing(after_s=seal_s)
    cache = HashCache(cache_path, rehash=rehash)
    is_labelled = label_folders or (isinstance(source, Path) and source.suffix.lower() == ".csv")
    with progress("reading", None, "files") as advance:
        if is_labelled or dry_run:
            catalogue = read_catalogue(source, audio=audio, label_folders=label_folders, cache=cache, on_hashed=advance)
            n_files, parts = len(catalogue) + len(catalogue.rejected), iter([catalogue])
        else:  # nothing depends on all of them being known: embed the first while the others are read
            n_files, parts = read_unlabelled(source, cache=cache)
        catalogue = next(parts)
    split, sides = _sides(catalogue, sources, store, seed, valid_fold, mix_splits)

    if store is not None:
        _require_same_plan(store, hop_s, last)
        plan = store.plan
    else:
        plan = WindowPlan(sources[0].window_s, 5.0 if hop_s is None else hop_s, last or "shift")
    if dry_run:
        n_new = len(catalogue) - (len(store.embedded & {r.recording for r in catalogue}) if store else 0)
        console().print(
            f"Would embed {n_new} of {len(catalogue)} recordings with "
            f"{', '.join(b.name for b in sources)} into {out}, a window every {plan.hop_s:g} s."
        )
        print_names("To mend", list(catalogue.problems))
        return None
    if store is None:
        store = Store.create(out, sources, plan, dtype=dtype, split=split, link=link_backbones)
    summary: ExtractionSummary | None = None
    asked: set[str] = set()
    ahead = closing(_read_ahead(chain([catalogue], parts), cache))
    with ahead as identified, progress("embedding", n_files, "windows") as advance:
        for part in identified:
            asked |= {r.recording for r in part}
            crew = _crew(store, references, workers, device, engine, len(part))
            done = run_extraction(
                _with_recorder_notes(part.with_splits(sides), store),
                sources,
                store,
                workers=crew,
                settings={"engine": engine, "workers": crew.n, "seal_s": seal_s},
                sealing=sealing,
                retry_quarantined=retry_quarantined and summary is None,
                link_backbones=link_backbones,
                on_progress=advance,
            )
            if summary is None:
                summary = done
            else:
                summary.add(done)
            if summary.interrupted:
                break
    assert summary is not None
    _print_extraction(summary, store)
    return Extracted(summary, store, frozenset(asked))


def _print_extraction(summary: ExtractionSummary, store: Store) -> None:
    out = console()
    out.print(
        f"{summary.n_embedded} recordings embedded ({summary.n_windows} windows of {summary.audio_s / 60:.1f} min of "
        f"audio in {summary.elapsed_s:.1f} s), {summary.n_already} were there, {len(summary.quarantined)} quarantined."
    )
    for name, record in summary.engines.items():
        if record and "reference" in record:
            out.print(f"Engine of {name}: {engine_words(record)}.")
    if not store.catalogue.n_labelled:
        out.print("No labels: fine for search and prediction. For folders named by label add --label-folders.")
    print_names("To mend", summary.problems)
    print_names("Flagged", [f"{name}: {', '.join(flags)}" for name, flags in summary.flagged.items()])
    print_names("Quarantined", [f"{name}: {reason}" for name, reason in summary.quarantined.items()])
    print_names("Shards that still lack a block", [f"{shard}: {why}" for shard, why in summary.incomplete.items()])
    out.print(f"Store: {store.path} ({store.n_rows} windows, blocks {', '.join(store.blocks)}).")
    if summary.interrupted:
        out.print("Interrupted. What is sealed stays; the same command goes on from there.")


def _read_ahead(parts: Iterator[Catalogue], cache: HashCache) -> Generator[Catalogue, None, None]:
    """Identify the next part of the recordings in a thread, while this one is embedded."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="hash") as thread:
        try:
            part = next(parts, None)
            while part is not None:
                following = thread.submit(next, parts, None)
                yield part
                part = following.result()
        finally:
            cache.abandon()  # on Ctrl-C nobody waits for it


def _sources(named: list[str], store: Store | None) -> tuple[dict[str, str], list[BlockSource]]:
    """Block name -> where its backbone lies, and what each is; the blocks that a store has come first."""
    from embeddings.errors import InputError

    references: dict[str, str] = {}
    sources: dict[str, BlockSource] = {}
    for reference, source in describe_named_backbones(named):
        if source.name in sources:
            raise InputError(
                f"two backbones have the name {source.name!r}; give one a name of its own: --backbone NAME=FOLDER."
            )
        references[source.name], sources[source.name] = reference, source
    blocks = list(store.blocks.values()) if store is not None else []
    for block in blocks:
        if block.name not in sources:
            place = str(store.backbone_path(block)) if store is not None else ""
            ((_, source),) = describe_named_backbones([f"{block.name}={place}"])
            references[block.name], sources[block.name] = place, source
    if not sources:
        raise InputError("no backbone; name one or more with --backbone (see `backbones list`).")
    names = list(dict.fromkeys([*(b.name for b in blocks), *sources]))
    return references, [sources[name] for name in names]


def _crew(
    store: Store, references: dict[str, str], asked: int | None, device: str, engine: str, n_tasks: int
) -> Workers:
    """As many workers as asked for, or as there are cores; each with its share of the cores."""
    from embeddings.errors import InputError
    from embeddings.extract import Workers
    from stage1_backbones.hearing import Hearing
    from stage1_backbones.machine import machine_name, resolve_device_early, usable_cores

    if asked is not None and asked < 1:
        raise InputError(f"--workers {asked} embed nothing; give 1 or more.")
    device = resolve_device_early(device)
    n = asked or (usable_cores() if device == "cpu" else 1)
    threads = max(1, usable_cores() // max(1, min(n, n_tasks)))
    machine = machine_name(device)
    return Workers(
        n,
        Hearing(references, device, engine, threads),
        engines=store.engines(machine, engine),
        on_engines=lambda records: store.remember_engines(machine, engine, records),
    )


def _with_recorder_notes(catalogue: Catalogue, store: Store) -> Catalogue:
    """What recorders wrote into names and headers: from the files for new recordings, from the store for the rest."""
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import replace

    from embeddings.recordings import with_recorder_notes
    from stage1_backbones.recorder import recorder_note

    known = {r.recording: vars(r) for r in store.catalogue}
    new = [r.path for r in catalogue if r.recording not in known]
    with ThreadPoolExecutor(8) as pool:
        notes = dict(zip(new, map(vars, pool.map(recorder_note, new)), strict=True))
    notes.update({r.path: known[r.recording] for r in catalogue if r.recording in known})
    return replace(catalogue, recordings=with_recorder_notes(catalogue, notes.__getitem__))


def _sides(
    catalogue: Catalogue,
    backbones: list[BlockSource],
    store: Store | None,
    seed: int | None,
    valid_fold: str,
    mix_splits: bool,
) -> tuple[Split, dict[str, str]]:
    """The side of every recording: the backbones' word first, then the store's, then a split made now."""
    from embeddings.splits import join_splits, make_split

    trained = {b.name: known for b in backbones if (known := getattr(b, "split", None)) is not None}
    first = next(iter(trained.values()), None)
    if first is not None and seed is None and not valid_fold:
        made = make_split(
            catalogue.recordings,
            seed=first.seed,
            valid_fold=first.valid_fold if any(r.fold == first.valid_fold for r in catalogue) else "",
        )
    else:
        made = make_split(catalogue.recordings, seed=seed or 0, valid_fold=valid_fold)
    sides = dict(made.assignments)
    if store is not None:
        sides.update({r.recording: r.split for r in store.catalogue if r.split})
    sides.update(join_splits(trained, mixed=mix_splits))
    return first or made, sides


def _require_same_plan(store: Store, hop_s: float | None, last: str | None) -> None:
    from embeddings.errors import InputError

    for option, asked, there in (("--hop-s", hop_s, store.plan.hop_s), ("--last", last, store.plan.last)):
        if asked is not None and asked != there:
            raise InputError(f"{store.path} was made with {option} {there}, not {asked}. Extract into a new store.")
