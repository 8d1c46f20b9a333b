"""Worker processes that embed: they share out recordings, and a lost one costs only what it had not sealed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from embeddings.errors import StoreError
from embeddings.intake import Completed, Event, Judged, Sealed, ShardTask
from embeddings.recordings import Recording
from embeddings.worker_process import Engines, Failed, Finished, Job, Next, work

__all__ = ["run_workers"]

_STRIKES, _STRIKES_WHEN_KILLED = 2, 3  # a worker may be killed for other reasons than the file that it is at
_LOST_IN_A_ROW = 4
_GRACE_S = 8.0


@dataclass
class _Worker:
    process: Any
    connection: Connection
    heartbeat: Any
    core: int | None = None
    unsettled: dict[str, Recording | ShardTask] = field(default_factory=dict)
    has_asked: bool = False
    current: str = ""  # what its decoder is at
    finished: bool = False
    stalled: bool = False


def run_workers(
    job: Job,
    names: Sequence[str],
    tasks: Iterable[Recording | ShardTask],
    on_event: Callable[[Event], None],
    *,
    n_workers: int,
    engines: Mapping[str, Any] | None = None,
    on_engines: Callable[[Mapping[str, Any]], None] = lambda records: None,
) -> list[str]:
    """Let worker processes do the tasks (all recordings, or all shards to complete). Returns what the user must know.

    names       the blocks to embed
    engines     block -> record of an engine that was chosen before; without it one worker chooses, then others start
    on_engines  is told what was chosen
    A task whose worker dies is done again by another; a recording at which workers die again and again is refused.
    Ctrl-C: what is whole gets sealed, within seconds, and KeyboardInterrupt goes on.
    Raises whatever error a worker could not handle (InputError, StoreError, OSError of a full disk).
    """
    return _Crew(job, tuple(names), on_event, n_workers, dict(engines or {}), on_engines).run(deque(tasks))


class _Crew:
    def __init__(
        self,
        job: Job,
        names: tuple[str, ...],
        on_event: Callable[[Event], None],
        n_workers: int,
        engines: dict[str, Any],
        on_engines: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._job, self._names, self._on_event, self._n = job, names, on_event, max(1, n_workers)
        self._engines, self._on_engines = engines, on_engines
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)  # an Event would leave a semaphore behind when we are killed
        self._cores = _cores_for(self._n)
        self._workers: list[_Worker] = []
        self._todo: deque[Recording | ShardTask] = deque()
        self._strikes: Counter[str] = Counter()
        self._lost_in_a_row = 0
        self._problems: list[str] = []

    def run(self, todo: deque[Recording | ShardTask]) -> list[str]:
        self._todo = todo
        try:
            while True:
                self._hire()
                if not self._workers:
                    return self._problems
                self._attend(timeout_s=1.0)
        except BaseException:
            self._stop.value = 1
            deadline = time.monotonic() + _GRACE_S
            while self._workers and time.monotonic() < deadline:
                try:
                    self._attend(timeout_s=0.2)
                except Exception:
                    continue  # the first error is the one that is told
            raise
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()

    def _hire(self) -> None:
        knows_engines = set(self._engines) >= set(self._names)
        n_wanted = self._n if knows_engines else 1
        while self._todo and len(self._workers) < n_wanted:
            ours, theirs = self._context.Pipe()
            heartbeat = self._context.RawValue("d", 0.0)
            core = next((c for c in self._cores if c not in {w.core for w in self._workers}), None)
            process = self._context.Process(
                target=work,
                args=(theirs, self._job, self._names, dict(self._engines), heartbeat, self._stop, core),
                name="embed",
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, heartbeat, core))
            if not knows_engines:
                return

    def _attend(self, timeout_s: float) -> None:
        """Answer the workers, notice who is gone, and end who hangs."""
        by_handle = {w.connection: w for w in self._workers} | {w.process.sentinel: w for w in self._workers}
        seen = {id(worker): worker for handle in wait(list(by_handle), timeout_s) if (worker := by_handle[handle])}
        for worker in seen.values():
            is_gone = not worker.process.is_alive()
            for message in _messages(worker.connection):
                self._hear(worker, message)
            if is_gone:
                self._workers.remove(worker)
                worker.process.join()
                if not worker.finished and not self._stop.value:
                    self._replace(worker)
        self._dismiss_the_late()
        now = time.monotonic()
        for worker in self._workers:
            since = worker.heartbeat.value
            if since and now - since > self._job.stalled_s:
                worker.stalled = True
                worker.process.kill()

    def _dismiss_the_late(self) -> None:
        """Do not wait for workers that are still loading when the others have taken all there was."""
        if not self._todo:
            for worker in self._workers:
                if not worker.has_asked and not worker.finished:
                    worker.finished = True
                    worker.process.kill()

    def _hear(self, worker: _Worker, message: Any) -> None:
        match message:
            case Next():
                worker.has_asked = True
                self._assign(worker)
            case Engines(records):
                self._engines.update(records)
                self._on_engines(self._engines)
            case Failed(error):
                worker.finished = True
                raise error
            case Finished():
                worker.finished = True
            case _:
                for key in _settled(message):
                    worker.unsettled.pop(key, None)
                    self._lost_in_a_row = 0
                self._on_event(message)

    def _assign(self, worker: _Worker) -> None:
        task = self._todo.popleft() if self._todo and not self._stop.value else None
        worker.current = _key(task) if task is not None else ""
        if task is not None:
            worker.unsettled[worker.current] = task
        try:
            worker.connection.send(task)
        except OSError:
            return  # it is gone; its sentinel tells

    def _replace(self, worker: _Worker) -> None:
        """Give a lost worker's unsealed tasks to others, the one that it was at first: if it kills again, it kills
        nothing else."""
        self._lost_in_a_row += 1
        why = "hung" if worker.stalled else f"died ({_exit_words(worker.process.exitcode)})"
        suspect = worker.unsettled.pop(worker.current, None)
        self._todo.extendleft(reversed(worker.unsettled.values()))
        if suspect is None:
            if self._lost_in_a_row >= _LOST_IN_A_ROW:
                raise StoreError(
                    f"{self._lost_in_a_row} workers in a row {why}. Is memory short? Try again with fewer --workers; "
                    f"what is sealed is kept."
                )
            self._problems.append(f"a worker {why}; what it had not sealed was embedded again.")
            return
        key = _key(suspect)
        self._strikes[key] += 1
        limit = _STRIKES_WHEN_KILLED if worker.process.exitcode == -signal.SIGKILL else _STRIKES
        place = suspect.path if isinstance(suspect, Recording) else f"shard {suspect.shard}"
        if self._strikes[key] < limit:
            self._problems.append(f"a worker {why} at {place}; what it had not sealed was embedded again.")
            self._todo.appendleft(suspect)
            return
        reason = f"{place}: {self._strikes[key]} workers {why} while they decoded it"
        if isinstance(suspect, Recording):
            self._on_event(Judged(suspect.recording, 0, 0.0, refused=reason))
        else:
            self._on_event(Completed(suspect.shard, 0, reason))


def _cores_for(n_workers: int) -> list[int]:
    """A core for each worker, when there are as many workers as cores; else none, and the system places them.

    Each worker is a few threads of which one works at a time. Left alone, the system keeps putting those of two
    workers on one core while another idles: two pinned workers on two cores embed a quarter more.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == n_workers else []


def _messages(connection: Connection) -> Iterator[Any]:
    try:
        while connection.poll():
            yield connection.recv()
    except (EOFError, OSError):
        return


def _settled(message: Any) -> tuple[str, ...]:
    """Tasks of which nothing more is to be done."""
    match message:
        case Sealed(recordings):
            return recordings
        case Judged(recording, refused=refused) if refused:
            return (recording,)
        case Completed(shard):
            return (shard,)
    return ()


def _key(task: Recording | ShardTask) -> str:
    return task.recording if isinstance(task, Recording) else task.shard


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
