"""How a worker process comes by its ears: backbones that settle on an engine at their first batch, and the decoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from embeddings.contract import Backbone
    from embeddings.windows import WindowStream

__all__ = ["Hearing", "SettlingBackbone"]


class SettlingBackbone:
    """A backbone that chooses its engine on the first real batch, and remembers why.

    `engine_record` is None until then: afterwards what `choose_engine` found, as plain JSON values.
    Everything else is the backbone's own.
    """

    def __init__(self, backbone: Any, asked: str, threads: int | None, record: Mapping[str, Any] | None = None) -> None:
        """record : what was found earlier, on this machine with these packages; the engine is then taken from it."""
        self._backbone, self._asked, self._threads = backbone, asked, threads
        self.engine_record = dict(record) if record else None
        if record and hasattr(backbone, "use_engine"):
            backbone.use_engine(record["engine"], threads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """As the backbone's own. Raises EngineError when the engine that was asked for does not pass the gate."""
        if self.engine_record is None and not hasattr(self._backbone, "use_engine"):
            self.engine_record = {"engine": "own"}  # somebody else's backbone, with one way to run
        if self.engine_record is None:
            from stage1_backbones.engines import choose_engine

            choice = choose_engine(self._backbone, waveforms, self._asked, threads=self._threads)
            self.engine_record = choice.to_json()
        return self._backbone.embed(waveforms)


@dataclass(frozen=True)
class Hearing:
    """What a worker is told, small enough to be sent to it: where each block's backbone lies, and how to run it.

    references  block name -> folder of a backbone, or the name of a frozen one
    threads     cores that each worker may use
    """

    references: Mapping[str, str]
    device: str = "auto"
    engine: str = "auto"
    threads: int = 1

    def __call__(self, names: Sequence[str], engines: Mapping[str, Any]) -> tuple[list[Backbone], WindowStream]:
        """Load the named blocks' backbones. `engines` are records of choices that were made before."""
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # before any library reads it
        from stage1_backbones.audio import stream_windows
        from stage1_backbones.registry import load_backbone

        loaded: list[Backbone] = []
        for name in names:
            backbone: Any = load_backbone(self.references[name], device=self.device)
            backbone.name = name
            loaded.append(SettlingBackbone(backbone, self.engine, self.threads, engines.get(name)))
        return loaded, stream_windows
