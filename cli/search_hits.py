"""What a search found: each question with its examples and hits, as a table, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.files import write_atomically
from embeddings.queries import AudioPart, DecodePart, Example, Question, embedded

if TYPE_CHECKING:
    from rich.table import Table

    from embeddings.contract import Backbone
    from embeddings.joined import JoinedStores
    from embeddings.moved import AudioFinder
    from embeddings.neighbours import Neighbour, NeighbourSearch
    from embeddings.recordings import Recording

__all__ = ["Answer", "Heard", "Hit", "answered", "hits_table", "is_csv", "question_facts", "write_csv"]


@dataclass(frozen=True)
class Hit:
    """A stored window that was found.

    row            its number in its own store
    path           where its audio lies, as far as that was looked for
    query_number   the example whose window at `query_start_s` is most like it, counted from 1: AUDIO, --like, --row
    query_example, query_path   its name, which several may share, and where its audio lies or lay
    """

    rank: int
    similarity: float
    recording: Recording
    start_s: float
    end_s: float
    store: Path
    row: int
    path: Path
    query_number: int
    query_example: str
    query_path: Path
    query_start_s: float

    def facts(self) -> dict[str, Any]:
        """As plain values, for JSON and CSV."""
        r = self.recording
        return {
            "rank": self.rank,
            "similarity": self.similarity,
            "recording": r.recording,
            "filename": r.filename,
            "path": str(self.path),
            "start_s": self.start_s,
            "end_s": self.end_s,
            "primary_label": r.primary_label,
            "secondary_labels": list(r.secondary_labels),
            "scientific_name": r.scientific_name,
            "common_name": r.common_name,
            "split": r.split,
            "query_start_s": self.query_start_s,
            "query_number": self.query_number,
            "query_example": self.query_example,
            "query_path": str(self.query_path),
            "store": str(self.store),
            "row": self.row,
            "author": r.author,
            "license": r.license,
            "url": r.url,
        }


@dataclass(frozen=True)
class Heard:
    """A stretch of an example, to be shown and played: that which is most like the first hit.

    recording  the stored recording, or None for an audio file, which lies at `path`
    """

    name: str
    path: Path
    recording: Recording | None
    start_s: float
    end_s: float
    is_negative: bool


@dataclass(frozen=True)
class Answer:
    """A question and what was found, most similar first."""

    question: Question
    examples: tuple[Example, ...]  # the positives
    negatives: tuple[Example, ...]
    hits: tuple[Hit, ...]
    heard: tuple[Heard, ...]


def answered(
    question: Question,
    stores: JoinedStores,
    searcher: NeighbourSearch,
    backbones: Callable[[], Sequence[Backbone]],
    decode: DecodePart,
    k: int,
    exclude_own: bool,
    one_per_recording: bool,
    finder: AudioFinder | None,
) -> Answer:
    """Embed what a question holds up, and search.  finder : looks for the audio of every hit; None leaves it be."""
    examples, negatives = (
        tuple(embedded(reference, stores, searcher.reader, backbones, decode) for reference in side)
        for side in (question.positives, question.negatives)
    )
    found = searcher.search_by_examples(
        [e.vectors for e in examples],
        [e.vectors for e in negatives],
        k,
        exclude=[e.recording for e in (*examples, *negatives)] if exclude_own else [],
        one_per_recording=one_per_recording,
    )
    hits = tuple(_hit(rank, n, stores, examples, finder) for rank, n in enumerate(found, start=1))
    heard = _heard(question, examples, negatives, searcher, found)
    return Answer(question, examples, negatives, hits, heard)


def hits_table(answer: Answer, *, several_stores: bool) -> Table:
    """The hits for a terminal."""
    from rich.table import Table
    from rich.text import Text

    several = len(answer.examples) > 1
    table = Table(title=Text(f"Most similar to {answer.question.name}"), title_justify="left")
    headings = ["rank", "similarity", "label", "common name", "recording", "row", "from", "to"]
    headings += ["most like" if several else "query from"] + ["store"] * several_stores
    for heading in headings:
        numbers = {"rank", "similarity", "row", "from", "to"}
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for hit in answer.hits:
        cells = [
            str(hit.rank),
            f"{hit.similarity:.3f}",
            hit.recording.primary_label,
            hit.recording.common_name,
            hit.recording.filename,
            str(hit.row),
            f"{hit.start_s:.1f} s",
            f"{hit.end_s:.1f} s",
        ]
        example = f"example {hit.query_number}, " if several else ""
        cells += [f"{example}{hit.query_start_s:.1f} s"] + [str(hit.store)] * several_stores
        table.add_row(*(Text(cell) for cell in cells))
    return table


def question_facts(answer: Answer) -> dict[str, Any]:
    """A question and its hits, for JSON."""
    only = answer.question.positives[0]
    alone = len(answer.question.positives) == 1 and not answer.question.negatives
    query = str(only.path) if alone and isinstance(only, AudioPart) else answer.question.name
    return {
        "query": query,
        "like": [_example_facts(e) for e in answer.examples],
        "unlike": [_example_facts(e) for e in answer.negatives],
        "neighbours": [hit.facts() for hit in answer.hits],
    }


def write_csv(path: Path, answers: Sequence[Answer]) -> None:
    """One row a hit; lists are joined by `;`."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["query", *_COLUMNS])
            for answer in answers:
                for hit in answer.hits:
                    facts = hit.facts() | {"secondary_labels": ";".join(hit.recording.secondary_labels)}
                    writer.writerow([answer.question.name, *(facts[name] for name in _COLUMNS)])

    write_atomically(path, write)


def is_csv(path: Path) -> bool:
    """Whether an earlier search wrote this file; later columns may be others."""
    begin = ",".join(("query", *_COLUMNS[:3])).encode()
    with open(path, "rb") as file:
        return file.read(len(begin)) == begin


_COLUMNS = (
    *("rank", "similarity", "primary_label", "common_name", "scientific_name", "secondary_labels", "filename"),
    *("start_s", "end_s", "query_number", "query_example", "query_path", "query_start_s"),
    *("recording", "path", "store", "row", "split"),
    *("author", "license", "url"),
)


def _hit(
    rank: int, neighbour: Neighbour, stores: JoinedStores, examples: Sequence[Example], finder: AudioFinder | None
) -> Hit:
    recording = stores.catalogue.recordings[stores.place_of_row[neighbour.row]]
    store, own_row = stores.origin(neighbour.row)
    begins = np.cumsum([0, *(len(e.start_s) for e in examples)])
    which = int(np.searchsorted(begins, neighbour.query_window, side="right")) - 1
    return Hit(
        rank=rank,
        similarity=neighbour.similarity,
        recording=recording,
        start_s=float(stores.rows.start_s[neighbour.row]),
        end_s=float(stores.rows.end_s[neighbour.row]),
        store=store.path,
        row=own_row,
        path=(finder.find(recording) if finder else None) or recording.path,
        query_number=which + 1,
        query_example=examples[which].name,
        query_path=examples[which].path,
        query_start_s=float(examples[which].start_s[neighbour.query_window - begins[which]]),
    )


def _heard(
    question: Question,
    examples: Sequence[Example],
    negatives: Sequence[Example],
    searcher: NeighbourSearch,
    found: Sequence[Neighbour],
) -> tuple[Heard, ...]:
    """Of each example the window that is most like the first hit."""
    heard = []
    references = (*question.positives, *question.negatives)
    for place, (reference, example) in enumerate(zip(references, (*examples, *negatives), strict=True)):
        window = 0
        if found and len(example.start_s) > 1:
            window = int(searcher.similarities(np.array([found[0].row]), example.vectors)[0].argmax())
        heard.append(
            Heard(
                example.name,
                example.path,
                None if isinstance(reference, AudioPart) else reference.recording,
                float(example.start_s[window]),
                float(example.end_s[window]),
                place >= len(examples),
            )
        )
    return tuple(heard)


def _example_facts(example: Example) -> dict[str, Any]:
    return {
        "name": example.name,
        "path": str(example.path),
        "recording": example.recording,
        "start_s": float(example.start_s[0]),
        "end_s": float(example.end_s[-1]),
        "windows": len(example.start_s),
    }
