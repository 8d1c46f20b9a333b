"""Annotations of long recordings: which calls were boxed, where, and what was looked for; matched to recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path, PurePosixPath

from embeddings.annotation_files import Box, ParsedFile, annotated_name, has_audio_suffix, parse_annotation_file
from embeddings.errors import InputError
from embeddings.recordings import Recording

__all__ = [
    "AnnotatedFile",
    "Annotations",
    "Box",
    "Matched",
    "labels_by_name",
    "match_annotations",
    "read_annotations",
    "renamed",
    "require_one_spelling",
]

SUFFIXES = (".txt", ".tsv", ".csv")
_SHOWN = 20  # bad rows told before "and N more"


@dataclass(frozen=True)
class AnnotatedFile:
    """What is known of one recording, by the name that the annotation gives it.

    name        with or without folder and suffix;  where: the file that says so
    boxes       none: somebody listened, and found nothing
    looked_for  species that were looked for, None: all;  says_looked_for: False when the file says nothing of it
    unlike      where several annotations of the recording were united that contradict each other: what each says
    """

    name: str
    where: str
    boxes: tuple[Box, ...] = ()
    looked_for: frozenset[str] | None = None
    says_looked_for: bool = False
    unlike: str = ""


@dataclass(frozen=True)
class Annotations:
    """All that was read.

    problems   sentences on files that are no annotations and were left out
    n_views    rows that show a selection again in Raven's second view, counted once
    n_nothing  timed rows that say "no call here": no boxes
    """

    files: tuple[AnnotatedFile, ...]
    problems: tuple[str, ...] = ()
    n_views: int = 0
    n_nothing: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Boxes per label, most first."""
        return dict(Counter(box.label for f in self.files for box in f.boxes).most_common())


@dataclass(frozen=True)
class Matched:
    """Annotations by the place of their recording in a catalogue.

    unmatched      those of no recording there, as `name (file)`
    by_name_alone  those whose folder is called otherwise than the recording's, as `name (file): recording`
    """

    by_place: dict[int, AnnotatedFile]
    unmatched: tuple[str, ...]
    by_name_alone: tuple[str, ...] = ()


def read_annotations(source: Path, *, label_column: str = "") -> Annotations:
    """Read boxes from a file, or from all files below a folder.

    source        Raven selection tables and Audacity label tracks (.txt, .tsv; one a recording and named like it, or a
                  Raven table with `Begin File` or `Begin Path`), or CSV tables with filename, start_s, end_s, label
    label_column  the column that holds labels; default: Label, Species, Annotation, Common Name, ...
    Files that are no annotations are left out and told. Raises InputError when nothing is left, and when any row
    cannot be meant as it stands: labels guessed from it would be worse than none.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a Raven or Audacity .txt, a .csv, or a folder of them.")
    inside = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    paths = [p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise InputError(f"no annotations in {source}: looked for {', '.join(SUFFIXES)}.")
    parsed: list[tuple[Path, ParsedFile]] = []
    problems: list[str] = []
    for path in paths:
        below = path.relative_to(source) if source.is_dir() else Path(path.name)
        try:
            parsed.append((path, parse_annotation_file(path, annotated_name(PurePosixPath(below)), label_column)))
        except InputError as error:
            problems.append(str(error))
    bad = [row for _, found in parsed for row in (*found.bad, *_contradictions(found))]
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        rows = "\n  ".join(bad[:_SHOWN])
        n_rows = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
        raise InputError(f"{n_rows} of annotations cannot be meant so; mend or delete:\n  {rows}{more}")
    files = _joined(parsed)
    if not files:
        raise InputError(" ".join(problems) or f"{source} has no rows, and names no recording.")
    return Annotations(files, tuple(problems), sum(f.n_views for _, f in parsed), sum(f.n_nothing for _, f in parsed))


def match_annotations(annotations: Annotations, recordings: Sequence[Recording]) -> Matched:
    """Find each annotation's recording by file name; of several, the one whose folders agree further.

    Names without a suffix stand for a file of any suffix. Annotations of several names of one content are united.
    Raises InputError where a name fits several recordings, or several annotations fit one, and no folder decides.
    """
    names: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for place, recording in enumerate(recordings):
        for path in dict.fromkeys(
            [recording.filename, *(p.as_posix() for p in (recording.path, *recording.other_paths))]
        ):
            parts = PurePosixPath(path).parts
            if parts:
                for last in {parts[-1], _stem(parts[-1])}:
                    names.setdefault(last, []).append((place, (*parts[:-1], last)))
    claims: dict[int, list[tuple[AnnotatedFile, int]]] = {}
    unmatched, by_name_alone = [], []
    for file in annotations.files:
        parts = PurePosixPath(file.name).parts
        agreed: dict[int, int] = {}
        for place, known in names.get(parts[-1], []):
            agreed[place] = max(agreed.get(place, 0), _agreement(parts, known))
        best = [place for place, n in agreed.items() if n == max(agreed.values())]
        if len(best) > 1:
            fits = ", ".join(str(recordings[place].path) for place in best[:3])
            raise InputError(
                f"{_told(file)} fits {len(best)} recordings: {fits}. Name it with its folder, as it is in the store."
            )
        if best:
            claims.setdefault(best[0], []).append((file, agreed[best[0]]))
        else:
            unmatched.append(_told(file))
    by_place = {}
    for place, claimed in claims.items():
        kept = _own(claimed, recordings[place])
        by_place[place] = _united([file for file, _ in kept])
        unmatched += [_told(file) for file, n in claimed if (file, n) not in kept]
        by_name_alone += [
            f"{_told(file)}: {recordings[place].path}"
            for file, n in kept
            if n == 1 and len(PurePosixPath(file.name).parts) > 1
        ]
    return Matched(by_place, tuple(unmatched), tuple(by_name_alone))


def renamed(annotations: Annotations, names: Mapping[str, tuple[str, str]]) -> Annotations:
    """Boxes, and what was looked for, under a class's label where they bear its scientific or common name.

    names : label -> (scientific name, common name).  Capitals do not matter. A name that several classes have is left
    as it is.
    """
    named = labels_by_name(names)
    files = [
        replace(
            file,
            boxes=tuple(replace(box, label=named(box.label)) for box in file.boxes),
            looked_for=None if file.looked_for is None else frozenset(map(named, file.looked_for)),
        )
        for file in annotations.files
    ]
    return replace(annotations, files=tuple(files))


def labels_by_name(names: Mapping[str, tuple[str, str]]) -> Callable[[str], str]:
    """A function that gives a class's label for its label, scientific or common name, and any other name as it is.

    Capitals do not matter.

    names : as in `renamed`
    """
    spelt: dict[str, set[str]] = {}
    for label, others in names.items():
        for name in (label, *others):
            if name:
                spelt.setdefault(name.casefold(), set()).add(label)
    label_of = {name: next(iter(labels)) for name, labels in spelt.items() if len(labels) == 1}
    return lambda name: name if name in names else label_of.get(name.casefold(), name)


def require_one_spelling(annotations: Annotations) -> None:
    """Raises InputError where one species seems to have several labels, which would be classes that exclude each other.

    Labels that differ in capitals and spaces only, and a label that is the scientific or common name of another.
    """
    meant: dict[str, dict[str, str]] = {}
    for box in (box for file in annotations.files for box in file.boxes):
        meant.setdefault(_folded(box.label), {}).setdefault(box.label, box.where)
    for box in (box for file in annotations.files for box in file.boxes):
        for name in {_folded(box.scientific_name), _folded(box.common_name)} - {"", _folded(box.label)}:
            if name in meant:
                meant[name].setdefault(box.label, box.where)
    if several := [labels for labels in meant.values() if len(labels) > 1]:
        said = "; ".join(" and ".join(f"{label!r} ({where})" for label, where in labels.items()) for labels in several)
        raise InputError(f"one species under several labels: {said}. Give each species one label.")


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def _own(claimed: list[tuple[AnnotatedFile, int]], recording: Recording) -> list[tuple[AnnotatedFile, int]]:
    """Those of several annotations that are of this recording. int : how many parts of the path agree."""
    with_folder = [(file, n) for file, n in claimed if len(PurePosixPath(file.name).parts) > 1]
    most = max((n for _, n in with_folder), default=1)
    if most == 1 and len({PurePosixPath(file.name).parent for file, _ in with_folder}) > 1:
        said = ", ".join(_told(file) for file, _ in with_folder[:3])
        raise InputError(
            f"{len(with_folder)} annotations fit the one recording {recording.path}: {said}. Some belong to other "
            "recordings of that name: take those out, or name folders as they are in the store."
        )
    return [(file, n) for file, n in claimed if n == most or (file, n) not in with_folder]


def _told(file: AnnotatedFile) -> str:
    return f"{file.name} ({file.where})"


def _united(files: Sequence[AnnotatedFile]) -> AnnotatedFile:
    if len(files) == 1:
        return files[0]
    told = [file for file in files if file.says_looked_for]
    sets = [file.looked_for for file in told]
    looked_for = None if not told or None in sets else frozenset().union(*(s for s in sets if s is not None))
    boxes = tuple(box for file in files for box in file.boxes)
    unlike = "; ".join(part for part in (*(file.unlike for file in files), _unlike(files)) if part)
    return AnnotatedFile(files[0].name, files[0].where, boxes, looked_for, bool(told), unlike)


def _unlike(files: Sequence[AnnotatedFile]) -> str:
    """Which two annotations of one recording contradict each other, and how; "" when none do."""
    for empty, full in permutations(files, 2):
        sought = [box for box in full.boxes if empty.looked_for is None or box.label in empty.looked_for]
        if sought and not empty.boxes:
            return f"{_told(empty)} says that nothing is there, but {full.name} has a box at {sought[0].where}"
    for one, other in combinations(files, 2):
        if (one.says_looked_for, one.looked_for) != (other.says_looked_for, other.looked_for):
            return f"{_sought(one)}, {_sought(other)}"
    return ""


def _sought(file: AnnotatedFile) -> str:
    if not file.says_looked_for:
        return f"{_told(file)} does not say what was looked for"
    species = "everything" if file.looked_for is None else ", ".join(sorted(file.looked_for))
    return f"{_told(file)} looked for {species}"


def _joined(parsed: Sequence[tuple[Path, ParsedFile]]) -> tuple[AnnotatedFile, ...]:
    """One entry a name: a recording may have several tables."""
    by_name: dict[str, list[AnnotatedFile]] = {}
    for path, found in parsed:
        for name, boxes in found.boxes.items():
            says = name in found.looked_for
            file = AnnotatedFile(name, str(path), tuple(boxes), found.looked_for.get(name), says)
            by_name.setdefault(name, []).append(file)
    return tuple(_united(files) for files in by_name.values())


def _contradictions(found: ParsedFile) -> list[str]:
    return [
        f"{where}: {name} is marked as empty, but has a box at {found.boxes[name][0].where}"
        for name, where in found.marked_empty.items()
        if found.boxes[name]
    ]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if has_audio_suffix(name) else name


def _agreement(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share from their ends."""
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    return n
