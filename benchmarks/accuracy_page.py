"""`docs/accuracy.md`: every table of accuracy as the command that measured it wrote it, on one page."""

from __future__ import annotations

from pathlib import Path

__all__ = ["accuracy_page"]

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_SETS = {
    "euro20": "20 European species, 140 recordings of at most 8 s",
    "calif10": "10 Californian species, 100 recordings of 6 s",
    "esc10": "ESC-10, 400 clips of 5 s in their published folds",
}
_SECTIONS = {
    "Recipes of stage one": (
        "`backbones compare RECIPES.yaml`; [what it means](recipes.md#what-was-measured)",
        ("ladder", "euro20", "euro20_seeds", "euro20_both", "euro20_full", "calif10", "esc10"),
    ),
    "Fusions of both tracks": ("`backbones compare`; [what it means](fusion.md)", ("euro20_fusion",)),
    "Call types": ("`backbones ablate-types`; [what it means](types.md)", ("euro20_types",)),
    "Heads on frozen vectors": (
        "`heads compare STORE --folds 5 --out REPORT`; [what it means](heads.md#measured)",
        ("heads_euro20", "heads_calif10", "heads_esc10", "heads_esc10_svm"),
    ),
    "Heads on several blocks": (
        "`heads compare`, backbones trained on the other folds; [what it means](heads.md#measured)",
        ("heads_trained_euro20", "heads_trained_calif10", "heads_trained_esc10", "heads_trained_esc10_mlp"),
    ),
    "Few recordings a class": (
        "`heads fit --shots`; [what it means](shots.md)",
        tuple(f"shots_{name}{svm}" for name in _SETS for svm in ("", "_svm")),
    ),
    "Heads that learn more recordings": (
        "`python -m benchmarks.updating`; [what it means](online.md#measured)",
        ("updating_euro20", "updating_esc10"),
    ),
    "Several birds at once, over rain": (
        "`python -m benchmarks.mixtures`; [what it means](results.md#two-or-three-birds-at-once-over-rain)",
        ("mixtures_euro20",),
    ),
}


def accuracy_page(docs: Path = _DOCS) -> str:
    """The page, from the tables in `docs/experiments`. Raises OSError when one is missing."""
    lines = [
        "# Accuracy: all tables",
        "",
        "Written by `python -m benchmarks.accuracy_page` from the tables that the commands wrote. Every figure is of",
        "recordings that neither heads nor backbones have heard, with its n and a 95 % interval; but BirdNET does not",
        "list what it was trained on, and may have heard some. Tables as CSV lie in `docs/experiments`.",
    ]
    for section, (made_by, names) in _SECTIONS.items():
        lines += ["", f"## {section}", "", f"Made by {made_by}."]
        for name in names:
            lines += ["", *_experiment(docs / "experiments" / f"{name}.md")]
    return "\n".join(lines) + "\n"


def _experiment(path: Path) -> list[str]:
    """One table under a heading of its own, with the plot where there is one."""
    title, *body = path.read_text(encoding="utf-8").strip().splitlines()
    words = title.removeprefix("# ")
    known = next((text for name, text in _SETS.items() if name in path.stem.split("_")), "")
    # A comparison of heads begins with what it found, which is no heading.
    heading, said = (known, [words, ""]) if "has the highest" in words else (words, [known + ".", ""] if known else [])
    picture = path.with_suffix(".png")
    plot = ["", f"![{heading}](experiments/{picture.name})"] if picture.exists() else []
    lines = [("##" + line) if line.startswith("#") else line for line in body]
    return [f"### {heading}", "", *said, *_without_leading_blanks(lines), *plot]


def _without_leading_blanks(lines: list[str]) -> list[str]:
    return lines[next((i for i, line in enumerate(lines) if line.strip()), len(lines)) :]


def main() -> None:
    """Write the page."""
    (_DOCS / "accuracy.md").write_text(accuracy_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
