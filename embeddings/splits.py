"""Who trains and who validates: a split that depends on content, label and seed, and keeps relatives together."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from embeddings.errors import InputError
from embeddings.recordings import Recording

__all__ = ["Split", "inner_slice", "join_splits", "k_fold_split", "make_split"]

VALID_SHARE = 0.2
INNER_SHARE = 0.15
_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """A division of recordings, as it is written into backbones and stores.

    kind         "stratified" (8:2 per label), "fold" (a published fold validates), "k-fold" (one of k made here
                 validates; "k-fold by author" and the like when a column keeps recordings together) or "all"
    valid_fold   the published fold, or "2 of 5"
    assignments  content hash -> "train", "valid" or "both"
    """

    kind: str
    seed: int
    valid_fold: str
    assignments: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "seed": self.seed,
            "valid_fold": self.valid_fold,
            "assignments": dict(self.assignments),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Split:
        return cls(value["kind"], value["seed"], value["valid_fold"], value["assignments"])


def make_split(
    recordings: Sequence[Recording], *, seed: int = 0, valid_fold: str = "", everything: bool = False
) -> Split:
    """Divide recordings 8:2 within each label, or by a published fold.

    Recordings that share a `source` or a xeno-canto id stay on one side. A label with fewer than two such groups
    goes into both sides ("both"): it can be trained, and scoring will say that nothing unheard is left of it.
    Recordings without a primary label belong to no side.
    Raises InputError when `valid_fold` is not among the folds of the table.
    """
    recordings = [r for r in recordings if r.primary_label]
    if everything:
        return Split("all", seed, "", {r.recording: "train" for r in recordings})
    if valid_fold:
        folds = Counter(r.fold for r in recordings if r.fold)
        if valid_fold not in folds:
            known = ", ".join(sorted(folds)) or "none: the table has no `fold` column"
            raise InputError(f"--valid-fold {valid_fold} is not a published fold; the table has {known}.")
        sides = {r.recording: "valid" if r.fold == valid_fold else "train" for r in recordings}
        return Split("fold", seed, valid_fold, sides)
    return Split("stratified", seed, "", _hold_out(recordings, VALID_SHARE, f"valid/{seed}", lonely="both"))


def k_fold_split(recordings: Sequence[Recording], *, folds: int, fold: int, seed: int = 0, group: str = "") -> Split:
    """Fold number `fold` (1 .. folds) of `folds` validates, the others train.

    group : a field of the recordings (author, source, recorder, ...); recordings that share it share a fold, as do
            those of one `source` or one xeno-canto id always. Labels are spread evenly over folds.
    Raises InputError when the numbers make no sense, the field is not known, or a label would have nothing to train
    on in some fold.
    """
    if folds < 2 or not 1 <= fold <= folds:
        raise InputError(f"fold {fold} of {folds}: folds must be 2 or more, and fold one of 1..{max(folds, 2)}.")
    recordings = [r for r in recordings if r.primary_label]
    numbers = _fold_numbers(recordings, folds, seed, group)
    by_label: dict[str, set[int]] = defaultdict(set)
    for recording, number in zip(recordings, numbers, strict=True):
        by_label[recording.primary_label].add(number)
    narrow = sorted(label for label, present in by_label.items() if len(present) < 2)
    if narrow:
        together = f" once recordings of one {group} are kept together" if group else ""
        raise InputError(
            f"{len(narrow)} labels would have no recording to train on in some fold{together}: "
            f"{', '.join(narrow[:_SHOWN])}. Each needs recordings in two folds: group by something finer, add "
            f"recordings, or leave those labels out of the table."
        )
    sides = {
        r.recording: "valid" if number == fold - 1 else "train" for r, number in zip(recordings, numbers, strict=True)
    }
    return Split(f"k-fold by {group}" if group else "k-fold", seed, f"{fold} of {folds}", sides)


def inner_slice(
    recordings: Sequence[Recording], seed: int = 0, share: float = INNER_SHARE
) -> tuple[list[Recording], list[Recording]]:
    """Cut training recordings into those to fit on and those kept apart, to judge by while training.

    About `share` of each label's groups are held out; a label with one group only is fitted on and not judged by.
    """
    sides = _hold_out(recordings, share, f"inner/{seed}", lonely="train")
    fit = [r for r in recordings if sides[r.recording] == "train"]
    select = [r for r in recordings if sides[r.recording] == "valid"]
    return fit, select


def join_splits(splits: Mapping[str, Split], *, mixed: bool = False) -> dict[str, str]:
    """Content hash -> side, over the splits of several backbones (name -> split).

    Raises InputError when two backbones disagree on a recording, unless `mixed` allows it: then a recording that
    any of them trained on counts as training.
    """
    sides: dict[str, str] = {}
    decided_by: dict[str, str] = {}
    for name, split in splits.items():
        for recording, side in split.assignments.items():
            known = sides.setdefault(recording, side)
            decided_by.setdefault(recording, name)
            if known == side:
                continue
            if not mixed:
                raise InputError(
                    f"backbones {decided_by[recording]!r} and {name!r} were trained on different splits: recording "
                    f"{recording[:12]} is {known!r} in one and {side!r} in the other. Train them with the same --seed "
                    f"and --valid-fold, or pass --mix-splits to count what any of them trained on as training."
                )
            sides[recording] = "train" if "train" in (known, side) else "both"
    return sides


def _fold_numbers(recordings: Sequence[Recording], folds: int, seed: int, group: str) -> list[int]:
    """0 .. folds - 1 for each recording; the groups of a label are dealt out one by one, to the emptiest fold first."""
    texts = {f.name for f in fields(Recording) if f.type == "str"} - {"recording", "filename", "primary_label", "split"}
    if group and group not in texts:
        raise InputError(f"group={group!r} is not a column to group by; there are {', '.join(sorted(texts))}.")
    members: dict[int, list[Recording]] = defaultdict(list)
    for number, recording in zip(_groups(recordings, group), recordings, strict=True):
        members[number].append(recording)
    ordered = sorted(members.values(), key=lambda g: (-len(g), _draw(f"folds/{seed}", "", min(r.recording for r in g))))
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * folds)
    totals, fold_of = [0] * folds, {}
    for group_members in ordered:
        label_counts = Counter(r.primary_label for r in group_members)
        chosen = min(
            range(folds), key=lambda f: (sum(n * counts[label][f] for label, n in label_counts.items()), totals[f])
        )
        for label, n in label_counts.items():
            counts[label][chosen] += n
        totals[chosen] += len(group_members)
        fold_of.update({r.recording: chosen for r in group_members})
    return [fold_of[r.recording] for r in recordings]


def _hold_out(recordings: Sequence[Recording], share: float, salt: str, *, lonely: str) -> dict[str, str]:
    """Side of every recording when `share` of each label's groups (at least one) is held out."""
    members: dict[int, list[Recording]] = defaultdict(list)
    for group, recording in zip(_groups(recordings), recordings, strict=True):
        members[group].append(recording)

    by_label: dict[str, list[list[Recording]]] = defaultdict(list)
    for group_members in members.values():
        label_counts = Counter(r.primary_label for r in group_members)
        by_label[min(label_counts, key=lambda label: (-label_counts[label], label))].append(group_members)

    sides: dict[str, str] = {}
    for label, groups in by_label.items():
        groups.sort(key=lambda g: _draw(salt, label, min(r.recording for r in g)))
        n_held_out = max(1, round(share * len(groups))) if len(groups) > 1 else 0
        for place, group_members in enumerate(groups):
            side = "valid" if place < n_held_out else "train"
            side = lonely if len(groups) == 1 else side
            sides.update({r.recording: side for r in group_members})
    return sides


def _draw(salt: str, label: str, recording: str) -> str:
    return hashlib.sha256(f"{salt}/{label}/{recording}".encode()).hexdigest()


def _groups(recordings: Sequence[Recording], column: str = "") -> list[int]:
    """A group number per recording: one for all that are linked by source, xeno-canto id or another column."""
    parent = list(range(len(recordings)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[tuple[str, str], int] = {}
    for i, recording in enumerate(recordings):
        for key in _links(recording, column):
            parent[root(i)] = root(first_with.setdefault(key, i))
    return [root(i) for i in range(len(recordings))]


def _links(recording: Recording, column: str) -> Iterable[tuple[str, str]]:
    if column and getattr(recording, column):
        yield column, getattr(recording, column)
    if recording.source:
        yield "source", recording.source
    if recording.xeno_canto_id:
        yield "xeno-canto", recording.xeno_canto_id
