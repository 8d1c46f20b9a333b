"""Labels, names and paths with brackets and colons in them are printed as they are, by every command."""

from __future__ import annotations

import csv
import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

LABELS = {"glaris1": "[red]x[/red]", "ticlen1": "[/]", "belhol1": "[bold]b", "reedro1": ":bee:"}
FOLDER = Path("[", "x]")  # a path with [/x] in it


def run(command: str, *words: object) -> str:
    """What a command prints, without spaces and without the frames of tables."""
    done = CliRunner().invoke(import_module(f"cli.{command}").app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return plain(done.output)


def plain(text: object) -> str:
    return re.sub(r"[\s│┃]", "", str(text))


@pytest.fixture(scope="module")
def made(synthetic_set, tmp_path_factory) -> dict[str, Path]:
    """A table, a store and two heads below a folder with a closing tag in its path."""
    root = tmp_path_factory.mktemp("brackets") / FOLDER
    root.mkdir(parents=True)
    with open(synthetic_set, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    for i, row in enumerate(rows):
        label, kind = LABELS[row["primary_label"]], ["song", "call"][i % 2]
        row |= {
            "primary_label": label,
            "secondary_labels": "[]",
            "common_name": f"[i]{label}",
            "type": f"['[/b], {kind}']",
        }
    table = root / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    audio = synthetic_set.parent / "train_audio"
    store = root / "store"
    words = ("--audio", audio, "--backbone", "logmel_stats", "--workers", 1, "--out", store)
    said = run("embed", "extract", table, *words)
    assert plain(f"Store: {store}") in said
    for kind, quick in {"svm": ("--set", "min_updates=300"), "knn": ()}.items():
        said = run("heads", "fit", store, "--head", kind, *quick, "--split", "train", "--out", root / kind)
        assert plain(f"Head: {root / kind}") in said
    return {"root": root, "table": table, "audio": audio, "store": store, "svm": root / "svm", "knn": root / "knn"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("embed info {store}", LABELS.values()),
        ("embed verify {store}", ["{store}"]),
        ("embed search {store} --row 0 -k 12 --html {root}/a.html", [*LABELS.values(), "{root}/a.html"]),
        ("embed drop {store} --recordings * --dry-run", []),
        ("embed relabel {store} {table} --dry-run", []),
        ("embed repair {store}", ["{store}issound"]),
        ("embed export {store} --out {root}/rows.csv --no-vectors", ["{root}/rows.csv"]),
        ("embed merge {store} --out {root}/merged", ["{root}/merged"]),
        ("heads fit {store} --out {root}/new --dry-run", []),
        ("heads fit {store} --shots 1,2 --seeds 2 --out {root}/curve", ["{root}/curve"]),
        ("heads info {svm}", [f"[i]{label}" for label in LABELS.values()]),
        ("heads score {svm} {store} --split valid", [*LABELS.values(), "{svm}on{store}"]),
        ("heads compare {svm} {knn} {store} --split valid", ["{store}"]),
        ("heads compare {store} --head svm,knn --folds 2 --out {root}/contest", ["{root}/contest"]),
        ("heads tune {svm} {store} --out {root}/tuned", [*LABELS.values(), "{root}/tuned"]),
        ("heads predict {svm} {store} --threshold 0.001 --out {root}/said", [*LABELS.values(), "{root}/said/pred"]),
        ("heads update {knn} {store} --split valid --out {root}/updated", ["{root}/updated"]),
        (
            "backbones train {table} --audio {audio} --backbone efficientnet --target type --dry-run --out {root}/b",
            ["[/b]", "{root}/b"],
        ),
    ],
    ids=lambda value: " ".join(value.split()[:2]) if isinstance(value, str) else "",
)
def test_what_has_brackets_in_it_is_printed_as_it_is(made, words, shown):
    said = run(*(word.format(**made) for word in words.split()))
    for text in shown:
        assert plain(text.format(**made)) in said


def test_a_bar_shows_what_it_is_told(monkeypatch):
    from rich.console import Console

    from cli import common

    shown = Console(force_terminal=True, width=200, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    monkeypatch.setattr("rich.console.Console", lambda **_: shown)
    with common.progress("scoring [/x]", 2, "windows") as advance:
        advance(1)
    assert "scoring [/x]" in shown.export_text()
