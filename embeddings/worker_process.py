"""A worker process's life: load the backbones, ask for tasks, report what became of them, until there are none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from embeddings.contract import Backbone
from embeddings.errors import CisticolaError
from embeddings.intake import Event, ShardTask, complete_shards, embed_recordings
from embeddings.layout import StoreLayout
from embeddings.windows import WindowStream
from embeddings.writing import Sealing

__all__ = ["STALLED_S", "Engines", "Failed", "Finished", "Job", "Load", "Next", "work"]

Load = Callable[[Sequence[str], Mapping[str, Any]], tuple[Sequence[Backbone], WindowStream]]
"""Called in each worker with block names and the engines chosen already; must survive pickling."""

_OWN = {"engine": "own"}  # of a backbone that knows of no engines
STALLED_S = 60.0  # a decoder that gives no window for so long hangs


@dataclass(frozen=True)
class Job:
    """What every worker of an extraction is told."""

    store: Path
    load: Load
    settings: Mapping[str, Any] = field(default_factory=dict)
    sealing: Sealing = field(default_factory=Sealing)
    stalled_s: float = STALLED_S


@dataclass(frozen=True)
class Next:
    """The worker's decoder is free."""


@dataclass(frozen=True)
class Engines:
    """What was chosen on the first batch, by block."""

    records: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """An error that no worker could get past: the extraction ends with it."""

    error: BaseException


@dataclass(frozen=True)
class Finished:
    """All is sealed, and the worker ends."""


def work(
    connection: Connection,
    job: Job,
    names: tuple[str, ...],
    engines: dict[str, Any],
    heartbeat: Any,
    stop: Any,
    core: int | None,
) -> None:
    """A worker's life: load the backbones, then ask for tasks until there are none."""
    if core is not None:
        os.sched_setaffinity(0, [core])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _quieten()
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    def tasks() -> Iterator[Any]:
        while True:
            send(Next())
            task = connection.recv()
            if task is None:
                return
            yield task

    def pulse(decoding: bool) -> None:
        heartbeat.value = time.monotonic() if decoding else 0.0

    try:
        backbones, decode = job.load(names, engines)
        untold = [b for b in backbones if b.name not in engines]

        def report(event: Event) -> None:
            # A recording that does not decode may come before anything was chosen.
            if chosen := {b.name: record for b in untold if (record := getattr(b, "engine_record", _OWN))}:
                send(Engines(chosen))
                untold[:] = [b for b in untold if b.name not in chosen]
            send(event)

        layout = StoreLayout(job.store)
        watch: dict[str, Any] = {"settings": job.settings, "pulse": pulse, "stop": lambda: bool(stop.value)}
        first, stream = _kind_of_tasks(tasks())
        if isinstance(first, ShardTask):
            complete_shards(layout, stream, backbones, decode, report, **watch)
        elif first is not None:
            embed_recordings(layout, stream, backbones, decode, report, sealing=job.sealing, **watch)
        send(Finished())
        os._exit(0)  # all is sealed; taking torch and an engine down properly would take more than a second
    except (CisticolaError, OSError) as error:
        send(Failed(error))
    except Exception:
        send(Failed(RuntimeError(f"a worker failed:\n{traceback.format_exc()}")))


def _kind_of_tasks(tasks: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The first task, to see what it is, and all of them."""
    first = next(tasks, None)

    def everything() -> Iterator[Any]:
        yield first
        yield from tasks

    return first, everything()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _quieten() -> None:
    """Decoders write their remarks on damaged files straight to the terminal; errors go through the connection."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
