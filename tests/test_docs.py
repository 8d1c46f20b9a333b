"""The documentation does what it says: its pages build without a network, and its commands and code run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.accuracy_page import accuracy_page
from cli.pictures import SAME

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_line(line: str) -> str:
    """A command of ours, in this process."""
    from cli import backbones, embed, heads, soundscape

    apps = {"embed": embed.app, "heads": heads.app, "backbones": backbones.app}
    words = shlex.split(line, comments=True)
    app = apps.get(words[0], soundscape.app)
    arguments = words[1:] if words[0] in apps else words[3:]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.output


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Where the tutorial was followed to its end, and what each command said."""
    folder, before = tmp_path_factory.mktemp("tutorial"), Path.cwd()
    os.chdir(folder)
    try:
        lines = [line for block in blocks(DOCS / "tutorial.md", "bash") for line in block.splitlines()]
        return folder, {line: run_line(line) for line in lines}
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_the_tutorial_runs_and_finds_the_birds(tutorial):
    import csv

    folder, said = tutorial
    assert len(said) >= 10
    with open(folder / "birds" / "soundscape" / "annotations.csv", newline="") as handle:
        boxes = list(csv.DictReader(handle))
    with open(folder / "predictions" / "predictions.csv", newline="") as handle:
        detections = list(csv.DictReader(handle))
    assert len(boxes) > 5
    assert detections

    def sings(detection: dict[str, str]) -> bool:
        return any(
            box["label"] == detection["label"]
            and float(box["start_s"]) < float(detection["end_s"])
            and float(box["end_s"]) > float(detection["start_s"])
            for box in boxes
        )

    assert np.mean([sings(d) for d in detections]) > 0.5
    assert (folder / "predictions" / "audacity" / "20240501_043000.wav.txt").is_file()
    again = next(line for line in said if line.startswith("embed extract"))
    os.chdir(folder)
    try:
        assert "0 recordings embedded" in run_line(again)
    finally:
        os.chdir(ROOT)


@pytest.mark.slow
def test_a_head_of_ones_own_is_what_the_page_says(tutorial, monkeypatch, tmp_path):
    monkeypatch.chdir(tutorial[0])
    names: dict[str, object] = {}
    for code in blocks(DOCS / "howto" / "own_head.md", "python"):
        exec(code, names)
    scores, head = names["scores"], names["head"]
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (4, 4)
    assert ((scores >= 0) & (scores < 1)).all()
    head.save(tmp_path / "head")  # type: ignore[attr-defined]
    assert {p.name for p in (tmp_path / "head").iterdir()} >= {"head.json", "head.safetensors", "heard.json"}


@pytest.mark.slow
def test_the_first_pages_picture_is_drawn_by_its_commands(tmp_path, monkeypatch):
    from PIL import Image

    (commands,) = blocks(ROOT / "README.md", "bash")
    assert commands in (DOCS / "index.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        run_line(line)
    (drawn,) = (tmp_path / "predictions" / "pictures").iterdir()
    with Image.open(drawn) as mine, Image.open(DOCS / "what_sang_when.png") as shown:
        assert mine.size == shown.size
        mine, shown = (np.asarray(picture.convert("RGB"), int) for picture in (mine, shown))
    detected = [int(SAME[i : i + 2], 16) for i in (1, 3, 5)]
    share, wanted = ((np.abs(picture - detected).max(axis=2) < 12).mean() for picture in (mine, shown))
    assert share == pytest.approx(wanted, rel=0.1)  # as much is detected as the first page shows
    assert wanted > 0.03


@pytest.mark.slow
def test_the_readmes_ten_lines_run(tutorial, monkeypatch):
    monkeypatch.chdir(tutorial[0])
    (code,) = blocks(ROOT / "README.md", "python")
    assert sum(not line.startswith(("from", "import")) for line in code.splitlines() if line) == 10
    names: dict[str, object] = {}
    exec(code, names)
    assert names["scores"].shape == (4, 4)  # type: ignore[attr-defined]
    assert len(names["similar"]) == 5  # type: ignore[arg-type]
    assert names["similar"][0].row == 0  # type: ignore[index]


def test_a_backbone_of_ones_own_is_what_the_page_says(synthetic_set, tmp_path):
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.contract import Backbone
    from embeddings.extract import extract
    from embeddings.splits import make_split
    from embeddings.store import Store
    from embeddings.windows import WindowPlan
    from stage1_backbones.audio import stream_windows

    names: dict[str, object] = {}
    for code in blocks(DOCS / "howto" / "own_backbone.md", "python"):
        exec(code, names)
    backbone = names["Loudness"]()  # type: ignore[operator]
    assert isinstance(backbone, Backbone)
    catalogue = read_catalogue(synthetic_set)
    split = make_split(catalogue.recordings)
    store = Store.create(tmp_path / "store", [backbone], WindowPlan(), dtype="float32", split=split, link=False)
    summary = extract(catalogue.with_splits(split.assignments), [backbone], store, stream_windows)
    assert summary.n_embedded == len(catalogue)
    assert (store.reader().read(np.arange(store.n_rows)) > 0).all()
    for line in (
        f"heads fit {tmp_path}/store --head svm --out {tmp_path}/head",
        f"heads score {tmp_path}/head {tmp_path}/store --bootstrap 20",
        f"heads predict {tmp_path}/head {tmp_path}/store --format raven --out {tmp_path}/predictions",
    ):
        run_line(line)


def test_the_page_of_accuracy_says_what_the_tables_say():
    assert (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8") == accuracy_page()


def test_the_pages_build_without_a_network_and_link_to_nothing_that_is_not_there(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("index.html"))
    assert len(pages) > 25
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img)[^>]+src="https?://|<link[^>]+rel="stylesheet"[^>]+href="https?://', html)
    assert "WindowPlan" in (tmp_path / "site" / "reference" / "embeddings" / "index.html").read_text(encoding="utf-8")
