"""Worker processes: the same store as one process makes, and nothing but the file is lost when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode, load_fakes

from embeddings import workers as worker_module
from embeddings.errors import ContractError, InputError
from embeddings.extract import Workers, extract
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.verify import verify_store
from embeddings.windows import WindowPlan
from embeddings.writing import Sealing

CONTENTS = [f"{8 + 7 * (i % 4)} 0.{i:03d}" for i in range(1, 41)]
SMALL_SHARDS = Sealing(n_bytes=200)


def make_store(path: Path, names: Sequence[str] = ("fake",)) -> Store:
    return Store.create(
        path,
        [FakeBackbone(name) for name in names],
        WindowPlan(),
        dtype="float16",
        split=Split("all", 0, "", {}),
        link=False,
    )


def contents(store: Store) -> list[Any]:
    vectors = store.reader().read(np.arange(store.n_rows)).tolist()
    return list(zip(store.rows.recording, store.rows.start_s, store.rows.partial, map(tuple, vectors), strict=True))


@pytest.fixture
def whole(tmp_path: Path) -> list[Any]:
    """What one process makes of the recordings."""
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "alone")
    extract(catalogue, [FakeBackbone()], store, fake_decode)
    return contents(store)


def load_slow(names: Sequence[str], engines: Mapping[str, Any]) -> Any:
    def decode(path: Path, plan: WindowPlan, rates_hz: Sequence[int]) -> Any:
        for window in fake_decode(path, plan, rates_hz):
            time.sleep(0.02)  # so that there is work left when the second worker has started
            yield window

    return [FakeBackbone(name) for name in names], decode


def test_two_workers_make_the_store_that_one_process_makes(tmp_path: Path, whole: list[Any]) -> None:
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "two")
    progress = []
    summary = extract(
        catalogue,
        [FakeBackbone()],
        store,
        workers=Workers(2, load_slow),
        sealing=SMALL_SHARDS,
        on_progress=lambda n, windows: progress.append((n, windows)),
    )
    assert contents(Store(store.path)) == whole
    assert (summary.n_embedded, summary.n_windows, summary.problems) == (len(CONTENTS), len(whole), [])
    assert np.sum(progress, axis=0).tolist() == [len(CONTENTS), len(whole)]
    assert len({shard.split("-")[0] for shard in store.shards}) == 2  # both have worked
    assert verify_store(Store(store.path)).ok


def test_workers_complete_a_block_and_leave_the_other_alone(tmp_path: Path, whole: list[Any]) -> None:
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "two")
    both = [FakeBackbone(), FakeBackbone("second")]
    extract(catalogue, both[:1], store, workers=Workers(2, load_fakes), sealing=SMALL_SHARDS)
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("blocks/fake/*")}
    (tmp_path / "audio/r003.wav").write_text("3 0.5")  # it has changed since
    summary = extract(catalogue, both, store, workers=Workers(2, load_fakes))
    assert [("r003.wav" in why, "embed drop" in why) for why in summary.incomplete.values()] == [(True, True)]
    (tmp_path / "audio/r003.wav").write_text(CONTENTS[3])
    summary = extract(catalogue, both, store, workers=Workers(2, load_fakes))
    assert summary.incomplete == {}
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("blocks/fake/*")} == before
    store = Store(store.path)
    rows = np.arange(store.n_rows)
    np.testing.assert_array_equal(store.reader(["fake"]).read(rows), store.reader(["second"]).read(rows))


@pytest.mark.parametrize(("fate", "word", "stalled_s"), [("crash", "SIGSEGV", 60.0), ("hang", "hung", 1.5)])
def test_a_file_that_kills_its_decoder_is_quarantined_and_costs_no_other(
    tmp_path: Path, fate: str, word: str, stalled_s: float
) -> None:
    texts = [*CONTENTS[:6], f"10 0.5 {fate}", *CONTENTS[6:12]]
    catalogue = fake_catalogue(tmp_path / "audio", texts)
    store = make_store(tmp_path / "store")
    summary = extract(catalogue, [FakeBackbone()], store, workers=Workers(2, load_fakes, stalled_s=stalled_s))
    assert list(summary.quarantined) == ["r006.wav"]
    assert word in summary.quarantined["r006.wav"]
    assert len(store.embedded) == len(texts) - 1
    assert summary.n_windows == store.n_rows
    again = extract(catalogue, [FakeBackbone()], Store(store.path), workers=Workers(2, load_fakes))
    assert (again.n_embedded, list(again.quarantined)) == (0, ["r006.wav"])


def failing_load(names: Sequence[str], engines: Mapping[str, Any]) -> Any:
    raise InputError("these weights are cut short")


def dying_load(names: Sequence[str], engines: Mapping[str, Any]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def breaking_load(names: Sequence[str], engines: Mapping[str, Any]) -> Any:
    raise ZeroDivisionError("unforeseen")


@pytest.mark.parametrize(
    ("load", "kind", "word"),
    [
        (failing_load, InputError, "cut short"),
        (dying_load, Exception, "fewer --workers"),
        (breaking_load, RuntimeError, "ZeroDivisionError"),
    ],
)
def test_workers_that_cannot_work_end_the_run_with_the_reason(
    tmp_path: Path, load: Any, kind: type[Exception], word: str
) -> None:
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS[:3])
    with pytest.raises(kind, match=word):
        extract(catalogue, [FakeBackbone()], make_store(tmp_path / "store"), workers=Workers(2, load))


class ChoosingBackbone(FakeBackbone):
    engine_record: dict[str, Any] | None = None

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        self.engine_record = self.engine_record or {"engine": "fast", "chosen_by": os.getpid()}
        return super().embed(waveforms)


def load_choosing(names: Sequence[str], engines: Mapping[str, Any]) -> Any:
    backbones = [ChoosingBackbone(name) for name in names]
    for backbone in backbones:
        backbone.engine_record = engines.get(backbone.name)
    return backbones, fake_decode


def test_one_worker_chooses_the_engine_and_all_shards_tell_of_it(tmp_path: Path) -> None:
    from embeddings.shards import shard_metadata

    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "store")
    told: list[Any] = []
    workers = Workers(2, load_choosing, on_engines=lambda records: told.append(dict(records)))
    summary = extract(catalogue, [FakeBackbone()], store, workers=workers, sealing=SMALL_SHARDS)
    assert told == [summary.engines]
    records = [shard_metadata(store.row_path(shard))["engines"] for shard in Store(store.path).shards]
    assert all(record == summary.engines for record in records)


def test_the_wrong_backbones_are_refused_before_any_worker_starts(tmp_path: Path) -> None:
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS[:3])
    with pytest.raises(ContractError, match="differ in weights"):
        extract(catalogue, [FakeBackbone(weights="z")], make_store(tmp_path / "store"), workers=Workers(2, dying_load))


# The last recordings wait two seconds each, or for a file called "go": however fast the machine, there is work left
# when it is interrupted. Whoever runs the tests may ignore Ctrl-C, which children inherit: here it is heard.
SCRIPT = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from fakes import FakeBackbone, fake_catalogue, fake_decode
    from embeddings.extract import Workers, extract
    from embeddings.store import Store
    from embeddings.writing import Sealing

    def slow_decode(path, plan, rates):
        deadline = time.monotonic() + 2
        while path.stem > "r030" and not Path({go!r}).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for window in fake_decode(path, plan, rates):
            time.sleep(0.02)
            yield window

    def load(names, engines):
        return [FakeBackbone(name) for name in names], slow_decode

    if __name__ == "__main__":
        catalogue = fake_catalogue(Path({audio!r}), {texts!r})
        summary = extract(
            catalogue, [FakeBackbone()], Store({store!r}), workers=Workers(2, load), sealing=Sealing(n_bytes=200)
        )
        print("interrupted" if summary.interrupted else "done", summary.n_embedded)
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    make_store(tmp_path / "store")
    text = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent),
        audio=str(tmp_path / "audio"),
        texts=CONTENTS,
        store=str(tmp_path / "store"),
        go=str(tmp_path / "go"),
    )
    (tmp_path / "script.py").write_text(text)
    return [sys.executable, str(tmp_path / "script.py")]


def wait_for_a_shard(process: subprocess.Popen[str], store: Path) -> None:
    deadline = time.monotonic() + 30
    while not list(store.glob("rows/*.arrow")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_ctrl_c_ends_within_seconds_with_what_was_whole_sealed(
    tmp_path: Path, script: list[str], whole: list[Any]
) -> None:
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_a_shard(process, tmp_path / "store")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers
    began = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < worker_module._GRACE_S
    assert said.startswith("interrupted")
    assert int(said.split()[1]) == len(Store(tmp_path / "store").embedded) > 0
    assert verify_store(Store(tmp_path / "store")).ok
    (tmp_path / "go").touch()
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    assert contents(Store(tmp_path / "store")) == whole


def test_workers_end_with_a_killed_parent_and_a_lost_worker_is_replaced(
    tmp_path: Path, script: list[str], whole: list[Any]
) -> None:
    psutil = pytest.importorskip("psutil", reason="needed to see the workers")
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL)
    wait_for_a_shard(process, tmp_path / "store")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    again = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    deadline, victims = time.monotonic() + 30, []
    while not victims and time.monotonic() < deadline:
        time.sleep(0.05)
        victims = [c for c in psutil.Process(again.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    victims[0].kill()
    (tmp_path / "go").touch()
    said, _ = again.communicate(timeout=60)
    assert said.startswith("done")
    assert contents(Store(tmp_path / "store")) == whole
