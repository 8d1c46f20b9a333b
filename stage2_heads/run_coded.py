"""Row numbers and codes that mostly repeat or go on by one, kept by runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

__all__ = ["RunCoded", "run_coded"]

_WORTH = 8  # numbers a run must stand for, on average: at least half of the memory is then saved


class RunCoded(NDArrayOperatorsMixin):
    """An array of whole numbers, read-only, that holds a run of them in 16 bytes.

    Indexed, compared or calculated with, it gives plain arrays, and numpy's functions take it for one.

    first : (n_runs + 1,) int64, where each run begins; the last is the length
    start : (n_runs,) int64, its first number;  step : 0 when a run repeats it, 1 when it goes on by one
    """

    def __init__(self, first: np.ndarray, start: np.ndarray, step: int, dtype: np.dtype) -> None:
        self._first, self._start, self._step, self.dtype = first, start, step, dtype

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @property
    def ndim(self) -> int:
        return 1

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(np.asarray(i) if isinstance(i, RunCoded) else i for i in inputs), **options)

    def min(self) -> int:
        return int(self._start.min())

    def max(self) -> int:
        return int((self._start + self._step * (np.diff(self._first) - 1)).max())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("numbers kept by runs cannot be had without a copy.")
        lengths = np.diff(self._first)
        numbers = np.repeat(self._start.astype(self.dtype), lengths)
        if self._step:
            numbers += np.arange(len(self), dtype=self.dtype)
            numbers -= np.repeat(self._first[:-1].astype(self.dtype), lengths)
        return numbers.astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        places = np.asarray(key)
        if places.dtype.kind != "i" or (
            len(self) and places.size and not 0 <= places.min() <= places.max() < len(self)
        ):
            return np.asarray(self)[key]  # masks, negative places, and the errors of those that are out of reach
        run = np.searchsorted(self._first, places, side="right") - 1
        numbers = self._start[run] + self._step * (places - self._first[run])
        return numbers.astype(self.dtype)


def run_coded(numbers: np.ndarray | RunCoded, step: int) -> np.ndarray | RunCoded:
    """The same numbers by runs when that is much smaller, else as they are. step : 0 or 1, see `RunCoded`."""
    if isinstance(numbers, RunCoded) or len(numbers) < _WORTH:
        return numbers
    begins = np.flatnonzero(np.diff(numbers) != step) + 1
    if _WORTH * (len(begins) + 1) > len(numbers):
        return numbers
    first = np.concatenate([[0], begins, [len(numbers)]])
    return RunCoded(first, numbers[first[:-1]].astype(np.int64), step, numbers.dtype)
