"""The whole way in a few minutes: recordings, two backbones, a store, heads, honest scores, similar calls.

Runs the commands that a user types, in one process: python -m cli.demo --out demo [--data FOLDER]
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import console, make_app, run

if TYPE_CHECKING:
    from embeddings.recordings import Recording

app = make_app("Hear a small set of recordings, from training to similar calls.")

_MARK = ".cisticola-demo"
_MADE = (_MARK, "data", "backbones", "store", "heads", "comparison.json", "scores.json", "similar_calls.json")
_PICTURE = "similar_calls.png"
_NETWORKS = ("efficientnet", "vggish_bigru")
_STATISTICS = "logmel_stats"
_HEADS = ("svm", "mlp", "knn")
_NEIGHBOURS = 5
# Windows to train on, and how many an epoch draws from a recording: about 70 and 90 seconds on two cores.
_TRAINED_WINDOWS = {"efficientnet": 1800, "vggish_bigru": 3600}
_CROPS = {"efficientnet": 1, "vggish_bigru": 2}
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 40


@dataclass(frozen=True)
class _Set:
    """The recordings of a demo: their table, and how many of them there are."""

    table: Path
    n_recordings: int


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything that the demo makes; made anew each time.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder with train_metadata.csv and train_audio. Default: invented birds.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the invented birds, the split and the training.")] = 0,
) -> None:
    """Train both backbones briefly, embed, fit the heads, score them on unheard recordings, find similar calls."""
    began = time.monotonic()
    # Read when torch is first imported. Threads that spin while they wait for each other slow a training down to a
    # tenth as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _make_anew(out)
    recordings = _recordings(data, out, seed)
    for network in _NETWORKS:
        _train(network, recordings, out, seed)
    store = out / "store"
    backbones = [f"--backbone={out / 'backbones' / network}" for network in _NETWORKS]
    _run("embed", "extract", recordings.table, *backbones, f"--backbone={_STATISTICS}", "--out", store)
    _run("embed", "info", store)

    heads = _fit_heads(out, seed)
    comparison = out / "comparison.json"
    _run("heads", "compare", *heads.values(), store, "--split", "valid", "--json", comparison)
    best = _best(comparison, list(_HEADS))
    _run("heads", "score", heads[best], store, "--split", "valid", "--json", out / "scores.json")

    query = _query(store)
    found = out / "similar_calls.json"
    _run(
        *("embed", "search", store, query.path, "--blocks", ",".join(_NETWORKS)),
        *("--exclude-own", "--one-per-recording", "-k", str(_NEIGHBOURS), "--json", found),
    )
    n_same = _draw(found, query, out / _PICTURE)
    _summarise(out, comparison, best, query, n_same, time.monotonic() - began)


def _make_anew(out: Path) -> None:
    """Empty the folder of an earlier demo; refuse any other folder that holds something."""
    from embeddings.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise InputError(f"--out {out} holds other files; name an empty or a new folder. Nothing was changed.")
    for name in (*_MADE, _PICTURE):
        if (out / name).is_dir() and not (out / name).is_symlink():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("Made by python -m cli.demo, which empties this folder when it runs again.\n")


def _recordings(data: Path | None, out: Path, seed: int) -> _Set:
    from embeddings.errors import InputError

    if data is None:
        from cli.synthetic import SPECIES, write_synthetic_set

        began = time.monotonic()
        table = write_synthetic_set(out / "data", seed=seed)
        n_recordings = _n_rows(table)
        console().print(
            f"Synthesised {n_recordings} recordings of {len(SPECIES)} invented species, eight birds each, in "
            f"{time.monotonic() - began:.0f} s: {out / 'data'}"
        )
    else:
        table = data / "train_metadata.csv"
        if not table.is_file():
            raise InputError(f"--data {data} has no train_metadata.csv; name a folder that BirdCLEF could have made.")
        n_recordings = _n_rows(table)
    return _Set(table, n_recordings)


def _n_rows(table: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(table, dtype=str, keep_default_na=False))


def _train(network: str, recordings: _Set, out: Path, seed: int) -> None:
    # About two thirds are fitted on: a fifth validates, and of the rest a part chooses the epoch.
    crops = _CROPS[network]
    n_fitted = max(1, round(0.67 * recordings.n_recordings))
    epochs = max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, round(_TRAINED_WINDOWS[network] / (n_fitted * crops))))
    _run(
        *("backbones", "train", recordings.table, "--backbone", network, "--out", out / "backbones" / network),
        *("--epochs", str(epochs), "--crops-per-recording", str(crops), "--seed", str(seed)),
        *("--recipe", "plain"),  # the default one varies its windows more than a minute of training can use
    )


def _fit_heads(out: Path, seed: int) -> dict[str, Path]:
    """All heads on both networks, and the SVM on each block alone: name -> folder."""
    heads: dict[str, Path] = {}
    wanted = [(head, head, ",".join(_NETWORKS)) for head in _HEADS]
    wanted += [(f"svm-{block}", "svm", block) for block in (*_NETWORKS, _STATISTICS)]
    for name, head, blocks in wanted:
        heads[name] = out / "heads" / name
        _run(
            *("heads", "fit", out / "store", "--head", head, "--blocks", blocks, "--split", "train"),
            *("--out", heads[name], "--seed", str(seed)),
        )
    return heads


def _run(command: str, *arguments: str | Path) -> None:
    """Show a command line as a user types it, and run it in this process, where torch is imported already."""
    from importlib import import_module

    words = [str(argument) for argument in arguments]
    console().print(f"\n$ {command} {' '.join(words)}", style="bold", soft_wrap=True)
    code = import_module(f"cli.{command}").app(words, standalone_mode=False)
    # 1 says that something was quarantined or left out, and by name which; a demo on real recordings goes on.
    if code not in (None, 0, 1):
        raise typer.Exit(code)


def _query(store_path: Path) -> Recording:
    """The first recording, by name, on the validation side with one species in it."""
    from embeddings.errors import InputError
    from embeddings.store import Store

    store = Store(store_path)
    embedded = store.embedded
    unheard = [r for r in store.catalogue if r.split == "valid" and r.recording in embedded]
    if not unheard:
        raise InputError(f"{store_path} holds no validation recordings: give --data at least two recordings a label.")
    alone = [r for r in unheard if not r.secondary_labels]
    return min(alone or unheard, key=lambda r: r.filename)


def _draw(found: Path, query: Recording, picture: Path) -> int:
    """Draw a search's result. Returns how many of the calls are of the query's species."""
    from cli.pictures import calls_of_search, draw_similar_calls
    from embeddings.files import read_json

    name = query.common_name or query.primary_label
    call, neighbours = calls_of_search(
        read_json(found, what="search result"), query.primary_label, name, query.filename
    )
    draw_similar_calls(call, neighbours, picture)
    return sum(neighbour.same is True for neighbour in neighbours)


def _figure(comparison: Path, head: str, metric: str) -> float | None:
    from embeddings.files import read_json

    value: float | None = read_json(comparison, what="comparison")["heads"][head]["recording"][metric]["value"]
    return value


def _best(comparison: Path, heads: list[str]) -> str:
    """The head with the highest present-only cmAP, the first of equals."""
    return max(heads, key=lambda head: _figure(comparison, head, "cmap_present") or 0.0)


def _summarise(out: Path, comparison: Path, best: str, query: Recording, n_same: int, seconds: float) -> None:
    from rich.table import Table

    from embeddings.files import read_json

    told = read_json(comparison, what="comparison")["heads"][best]
    figures = Table(title="What the demo shows, on recordings that nothing was fitted on", title_justify="left")
    figures.add_column("heard by")
    for heading in ("head", "top-1", "cmAP, species present"):
        figures.add_column(heading, justify="left" if heading == "head" else "right")
    both = " + ".join(_NETWORKS)
    rows = [("hand-made log-mel statistics", "svm", f"svm-{_STATISTICS}")]
    rows += [(network, "svm", f"svm-{network}") for network in _NETWORKS]
    rows += [(both, head, head) for head in _HEADS]
    for heard_by, head, name in rows:
        values = [_figure(comparison, name, metric) for metric in ("top_1", "cmap_present")]
        figures.add_row(heard_by, head, *("-" if v is None else f"{v:.2f}" for v in values))
    screen = console()
    screen.print()
    screen.print(figures)
    screen.print(
        f"{told['recording']['top_1']['n']} recordings scored. {n_same} of the {_NEIGHBOURS} calls nearest to "
        f"{query.filename} are of its species, {query.common_name or query.primary_label}.\n"
        f"The best of the three heads, {best}, was picked on these same recordings, which flatters it a little."
    )
    places = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    places.add_row("similar calls", str(out / _PICTURE))
    places.add_row("figures", f"{comparison}, {out / 'scores.json'}")
    places.add_row("store", str(out / "store"))
    places.add_row("backbones, with curves", str(out / "backbones"))
    places.add_row("heads", str(out / "heads"))
    screen.print(places)
    screen.print(f"Done in {seconds / 60:.1f} minutes.")


def main() -> None:
    """Entry point of `python -m cli.demo`."""
    run(app)


if __name__ == "__main__":
    main()
