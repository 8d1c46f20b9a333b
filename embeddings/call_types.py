"""Call types: what the `type` column says, in one vocabulary, with sex and age kept apart from the kind of call."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from embeddings.errors import InputError
from embeddings.recordings import Recording

__all__ = ["KINDS", "OTHER", "CallTypes", "Meaning", "call_types", "kinds_of", "meanings_of", "without_rare"]

OTHER = "other"
"""The label of recordings whose types are all outside the vocabulary: never one of the kinds, never dropped unseen."""

KINDS = {
    "song": ("song", "dawn song", "subsong", "flight song", "duet", "canto", "gesang"),
    "call": ("call", "contact call", "excitement call", "ruf"),
    "alarm call": ("alarm call", "alarm", "warning call", "mobbing call", "distress call", "aggressive call"),
    "flight call": ("flight call", "call in flight"),
    "nocturnal flight call": ("nocturnal flight call", "nfc", "night flight call", "nocturnal call"),
    "begging call": ("begging call", "begging"),
    "social call": ("social call", "communication call"),
    "drumming": ("drumming", "drum"),
    "wing beats": ("wing beat", "wing noise", "wing clapping", "wing whirring"),
    "display": ("display", "courtship", "courtship display", "display flight", "bill clapping"),
    "mimicry": ("mimicry", "imitation", "mimic"),
}
"""Kind -> the words for it, in the singular; xeno-canto's vocabulary and what its free field holds most."""

_SEX = {
    "male": "male",
    "female": "female",
    "sex uncertain": "",
    "pair": "male and female",
    "both sexes": "male and female",
}
_AGE = {
    "adult": "adult",
    "juvenile": "juvenile",
    "immature": "juvenile",
    "fledgling": "juvenile",
    "nestling": "nestling",
    "hatchling": "nestling",
    "hatchling or nestling": "nestling",
    "chick": "nestling",
    "age uncertain": "",
    "life stage uncertain": "",
}
_NOTHING = {"", "uncertain", "unknown", "?", "not specified", "undefined"}
_SPLIT = re.compile(r"\s*(?:[,;/+&|]|\band\b)\s*")
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}


@dataclass(frozen=True)
class Meaning:
    """What a raw value says. Fields are "" where it says nothing; `unmapped` is what of it nobody knows."""

    raw: str
    kinds: tuple[str, ...] = ()
    sex: str = ""
    age: str = ""
    unmapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallTypes:
    """A catalogue whose labels are kinds of call, and the account of every raw value.

    recordings  as the catalogue's, with kinds as primary and secondary labels; without a type: unlabelled
    counts      raw value -> recordings that have it;  meanings: raw value -> what it says
    n_without   recordings without a kind of call;  n_other: recordings whose types are all unmapped, labelled OTHER
    """

    recordings: tuple[Recording, ...]
    counts: dict[str, int]
    meanings: dict[str, Meaning]
    n_without: int
    n_other: int


def call_types(catalogue: Iterable[Recording]) -> CallTypes:
    """Label recordings by the kinds of call in their `types`, the first named first.

    Raises InputError when no recording has a type.
    """
    before = tuple(catalogue)
    counts = Counter(raw for recording in before for raw in recording.types)
    if not counts:
        raise InputError(
            f"none of {len(before)} recordings has a type; --target type needs a table with a `type` column, such as "
            "BirdCLEF's train_metadata.csv."
        )
    meanings = {raw: meanings_of(raw) for raw in counts}
    after, n_without, n_other = [], 0, 0
    for recording in before:
        kinds = kinds_of(recording.types)
        n_other += kinds == (OTHER,)
        n_without += not kinds
        first, rest = (kinds[0], kinds[1:]) if kinds else ("", ())
        after.append(replace(recording, primary_label=first, secondary_labels=rest, scientific_name="", common_name=""))
    return CallTypes(tuple(after), dict(counts.most_common()), meanings, n_without, n_other)


def without_rare(recordings: Iterable[Recording], least: int) -> tuple[tuple[Recording, ...], list[str]]:
    """Kinds of fewer than `least` recordings as OTHER, and these left out where even they are too few.

    recordings : labelled by `call_types`; those without a kind are left out
    Returns the recordings, and which kinds were rare.
    """
    labelled = [r for r in recordings if r.primary_label]
    counts = Counter(r.primary_label for r in labelled)
    rare = sorted(label for label, n in counts.items() if n < least and label != OTHER)
    kept = []
    for r in labelled:
        first, *rest = dict.fromkeys(OTHER if label in rare else label for label in r.labels)
        kept.append(replace(r, primary_label=first, secondary_labels=tuple(rest)))
    if sum(r.primary_label == OTHER for r in kept) < least:
        kept = [r for r in kept if r.primary_label != OTHER]
    return tuple(kept), rare


def kinds_of(types: Iterable[str]) -> tuple[str, ...]:
    """Kinds of call that raw values say; OTHER when all are outside the vocabulary, () when none says any.

    >>> kinds_of(["song", "Flightcall, male"]), kinds_of(["whirr"]), kinds_of(["female", "uncertain"])
    (('song', 'flight call'), ('other',), ())
    """
    said = [meanings_of(raw) for raw in types]
    kinds = tuple(dict.fromkeys(kind for meaning in said for kind in meaning.kinds))
    return kinds or ((OTHER,) if any(meaning.unmapped for meaning in said) else ())


@cache
def meanings_of(raw: str) -> Meaning:
    """Read one raw value: case, spelling, plurals, joined parts, sex and age within it.

    >>> meanings_of("Flightcall, adult male")
    Meaning(raw='Flightcall, adult male', kinds=('flight call',), sex='male', age='adult', unmapped=())
    """
    kinds, sexes, ages, unmapped = [], [], [], []
    for part in _SPLIT.split(raw.lower()):
        words, sex, age = _without_sex_and_age(_plain(part))
        sexes += sex
        ages += age
        if words in _KIND_OF:
            kinds.append(_KIND_OF[words])
        elif words not in _NOTHING:
            unmapped.append(words)
    return Meaning(raw, tuple(dict.fromkeys(kinds)), _one(sexes), _one(ages), tuple(unmapped))


def _plain(text: str) -> str:
    """One spelling: spaces for hyphens and underscores, "flight call" for "flightcall", singular words."""
    text = re.sub(r"[\s_\-]+", " ", text.strip(" .'\"()[]?!")).strip()
    text = re.sub(r"\b(flight|alarm|begging|contact|social)(calls?)\b", r"\1 \2", text)
    return re.sub(r"(call|song|beat|duet|drum|alarm)s\b", r"\1", text)


def _without_sex_and_age(text: str) -> tuple[str, list[str], list[str]]:
    """What is left when words of sex and age are taken out, and these."""
    found: dict[int, list[str]] = {0: [], 1: []}
    for i, table in enumerate((_SEX, _AGE)):
        for words in sorted(table, key=len, reverse=True):
            pattern = rf"\b{re.escape(words)}s?\b"
            if re.search(pattern, text):
                text = re.sub(r"\s+", " ", re.sub(pattern, " ", text)).strip()
                found[i] += [table[words]] if table[words] else []
    return text, found[0], found[1]


def _one(values: list[str]) -> str:
    return " and ".join(sorted(set(values)))
