"""What the commands of `heads` do with annotations: boxes in long recordings instead of recordings' labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import console, print_names, write_summary
from cli.heads_common import rows_of_split, share_progress

if TYPE_CHECKING:
    import numpy as np

    from embeddings.contract import Heard
    from embeddings.store import Store
    from stage2_heads.annotated_rows import AnnotatedWindows
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows

__all__ = [
    "AnnotationsOption",
    "Boxes",
    "LabelColumnOption",
    "OverlapSecondsOption",
    "OverlapShareOption",
    "SpeciesOption",
    "annotated_to_fit",
    "boxes_asked",
    "say_unasked",
    "score_annotated",
]

AnnotationsOption = Annotated[
    Path | None,
    typer.Option(help="Boxes instead of recordings' labels: Raven or Audacity .txt, a .csv, or a folder of them."),
]
OverlapSecondsOption = Annotated[
    float | None, typer.Option(help="Seconds of a box that make a window positive. Default 0.25.")
]
OverlapShareOption = Annotated[
    float | None, typer.Option(help="Share of a box that makes a window positive, if reached first. Default 0.5.")
]
SpeciesOption = Annotated[
    str, typer.Option(help="Species that the annotators looked for, separated by commas. Default: all of them.")
]
LabelColumnOption = Annotated[
    str, typer.Option(help="Column of the annotations that holds labels. Default: Label, Species, Annotation, ...")
]


@dataclass(frozen=True)
class Boxes:
    """What was asked of annotations: where they are and how they are read."""

    path: Path
    overlap_s: float
    overlap_share: float
    species: tuple[str, ...]
    label_column: str

    def windows(
        self, store: Store, rows: np.ndarray, head: Head | None = None, *, which: str = "asked for"
    ) -> AnnotatedWindows:
        """The annotated ones of these rows of a store; says what did not match.

        head : whose names boxes may bear;  which : recordings these are, for errors
        """
        from embeddings.annotations import labels_by_name, read_annotations, renamed, require_one_spelling
        from stage2_heads.annotated_rows import annotated_windows
        from stage2_heads.window_labels import OverlapRule

        rule = OverlapRule(self.overlap_s, self.overlap_share)
        annotations = read_annotations(self.path, label_column=self.label_column)
        classes: Iterable[str] = ()
        species = self.species
        if head is not None:
            names = {label: head.names_.get(label, ("", "")) for label in head.labels_}
            annotations = renamed(annotations, names)
            species = tuple(map(labels_by_name(names), species))
            classes = head.labels_
        else:
            require_one_spelling(annotations)
        windows = annotated_windows(store, rows, annotations, rule=rule, species=species, classes=classes, which=which)
        print_names("No annotations, left out", list(annotations.problems))
        print_names("Annotated, not in the store, left out", list(windows.unmatched))
        print_names("Matched by file name alone, folders differ", list(windows.by_name_alone))
        unlike = [file.unlike for file in windows.files.values() if file.unlike]
        print_names("Annotated more than once, not alike; all boxes and species count", unlike)
        sought = {label for file in annotations.files for label in file.looked_for or ()}
        print_names("Looked for, but boxed nowhere", sorted(sought - set(annotations.counts) - set(classes)))
        again = [
            f"{n} {what}"
            for n, what in (
                (annotations.n_views, "rows show a selection in Raven's second view and count once"),
                (annotations.n_nothing, "timed rows say that no call is there and are no boxes"),
            )
            if n
        ]
        out = console()
        n_boxes = sum(windows.counts.values())
        out.print(
            f"{self.path}: {n_boxes} boxes of {len(windows.counts)} labels in {len(windows.files)} recordings; "
            f"{windows.n_unannotated} others are not annotated and left out."
            + "".join(f" {sentence}." for sentence in again),
        )
        if any(species is None for species in windows.looked_for.values()):
            out.print(
                "Every species counts as looked for: a window without a box holds none. Where that is not so, name "
                "those that were with --annotated-species."
            )
        return windows

    def to_json(self) -> dict[str, Any]:
        """As a head's provenance and a summary keep it."""
        return {
            "annotations": str(self.path.resolve()),
            "overlap_s": self.overlap_s,
            "overlap_share": self.overlap_share,
            "annotated_species": list(self.species),
        }


def boxes_asked(
    path: Path | None,
    overlap_s: float | None,
    overlap_share: float | None,
    species: str,
    label_column: str,
    fitted: Head | None = None,
) -> Boxes | None:
    """What the options ask of annotations; None without any. Raises InputError for options that need --annotations.

    fitted : the head whose own rule and species stand where none are given, if it was fitted on boxes
    """
    from embeddings.errors import InputError
    from stage2_heads.window_labels import OverlapRule

    if path is None:
        given = {
            "--overlap-s": overlap_s is not None,
            "--overlap-share": overlap_share is not None,
            "--annotated-species": bool(species),
            "--label-column": bool(label_column),
        }
        if any(given.values()):
            raise InputError(f"{', '.join(name for name, there in given.items() if there)} need --annotations.")
        return None
    usual = {**OverlapRule().to_json(), "annotated_species": [], **({} if fitted is None else fitted.provenance)}
    return Boxes(
        path,
        usual["overlap_s"] if overlap_s is None else overlap_s,
        usual["overlap_share"] if overlap_share is None else overlap_share,
        tuple(part.strip() for part in species.split(",") if part.strip()) or tuple(usual["annotated_species"]),
        label_column,
    )


def annotated_to_fit(
    boxes: Boxes, head: Head, store: Store, blocks: list[str], rows: np.ndarray
) -> tuple[LabelledRows, dict[str, tuple[str, str]], dict[str, Any]]:
    """Windows among these rows to fit a head on, which is not fitted yet; names of species; what a summary says."""
    from stage2_heads.annotated_rows import rows_to_fit
    from stage2_heads.labels import RecordingLabels, label_names

    windows = boxes.windows(store, rows)
    labelled, n_with = rows_to_fit(store, blocks, windows, partial=head.learns_partial_truth)
    n_left = len(windows.rows) - labelled.n_rows
    n_partial = labelled.n_rows - labelled.complete().n_rows
    out = console()
    out.print(
        f"Windows with each species: {', '.join(f'{label} {n}' for label, n in n_with.items())}, of {labelled.n_rows}.",
    )
    if n_partial:
        out.print(f"{n_partial} of them teach only the classes of which it is known whether they are there.")
    if n_left and head.learns_partial_truth:
        out.print(f"{n_left} windows are left out: of no class it is known whether it is there.")
    elif n_left:
        out.print(
            f"{n_left} windows are left out: a {head.kind} head learns those of which every class is known to be there "
            "or not."
        )
    say_unasked(windows, labelled.labels)
    facts = {
        **boxes.to_json(),
        "boxes": windows.counts,
        "windows_with": n_with,
        "windows_partial": n_partial,
        "windows_left_out": n_left,
        "recordings_not_annotated": windows.n_unannotated,
        "annotations_unmatched": list(windows.unmatched),
    }
    names = dict.fromkeys(labelled.labels, ("", ""))
    for found in (windows.species_names, label_names([RecordingLabels.of(r) for r in store.catalogue])):
        for label in names.keys() & found.keys():
            names[label] = (names[label][0] or found[label][0], names[label][1] or found[label][1])
    return labelled, {label: both for label, both in names.items() if any(both)}, facts


def say_unasked(windows: AnnotatedWindows, classes: Iterable[str]) -> None:
    """Name the labels that have boxes but are no classes, because nobody is said to have looked for them."""
    if others := sorted(set(windows.counts) - set(classes)):
        console().print(f"Boxed, but not among the species that were looked for, so no classes: {', '.join(others)}.")


def score_annotated(
    boxes: Boxes,
    head: Head,
    head_path: Path,
    store: Store,
    blocks: list[str],
    heard: Heard,
    *,
    split: str,
    valid_fold: str,
    only: str,
    threshold: float | None,
    bootstrap: int,
    seed: int,
    include_seen: bool,
    per_class: bool,
    json_path: Path | None,
) -> None:
    """Score a head window by window on annotated recordings, and print it."""
    from stage2_heads.window_report import figures_table, file_table
    from stage2_heads.window_scoring import evaluate_windows

    windows = boxes.windows(store, rows_of_split(store, split, valid_fold, only), head)
    with share_progress(f"scoring {head_path.name}") as progress:
        report = evaluate_windows(
            head,
            store.reader(blocks),
            windows,
            heard=heard,
            include_seen=include_seen,
            n_bootstrap=bootstrap,
            seed=seed,
            threshold=threshold,
            progress=progress,
        )
    out = console()
    title = f"{head_path} on annotated windows of {store.path}" + (f", {only}" if only else "")
    out.print(figures_table(report, title, per_class=per_class))
    out.print(file_table(report))
    left = report.left_out
    out.print(
        f"Scored {report.n_windows} windows of {report.n_recordings} recordings. Left out: {left['heard']} recordings "
        f"heard in training, {left['not_annotated']} not annotated."
    )
    summary = {
        "head": str(head_path),
        "store": str(store.path),
        **boxes.to_json(),
        "only": only,
        "split": split,
        "annotations_unmatched": list(windows.unmatched),
        **report.to_json(),
    }
    write_summary(json_path, summary)
