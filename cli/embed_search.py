"""`embed search`: the stored windows that are most like a recording, a part of one, or several examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import DeviceOption, JsonOption, console, print_names, store_backbones, write_summary

if TYPE_CHECKING:
    from embeddings.joined import JoinedStores
    from embeddings.neighbours import NeighbourSearch
    from embeddings.queries import DecodePart, Question

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Give `embed` its command `search`."""
    app.command()(search)


def search(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE|AUDIO",
            help="Stores to search, and audio files to ask with: each file is a query, each of its windows asks.",
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 10,
    blocks: Annotated[str | None, typer.Option(help="Blocks to use, separated by commas. Default: all.")] = None,
    start_s: Annotated[
        float | None, typer.Option(help="Ask only with the part of AUDIO from here, in seconds.")
    ] = None,
    end_s: Annotated[float | None, typer.Option(help="... and to here.")] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="An example: a file or a stored recording, or NAME@START_S for one window. All are one query."
        ),
    ] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="A counterexample, named in the same way.")] = None,
    row: Annotated[list[int] | None, typer.Option(help="An example: a row of the first store.")] = None,
    exclude_own: Annotated[bool, typer.Option(help="Leave out the recordings that ask.")] = False,
    one_per_recording: Annotated[
        bool,
        typer.Option("--one-per-recording/--all-windows", help="The best window of each recording, or all windows."),
    ] = True,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Look into the nearest lists of windows only: for millions of them."),
    ] = False,
    audio_root: Annotated[
        Path | None, typer.Option(help="Where the recordings lie now; each is recognised by its content.")
    ] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Also write the hits as CSV to this file.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Write the sound of each hit as WAV into this folder.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one page with a spectrogram and a player for each hit.")
    ] = None,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
) -> None:
    """Find the stored windows most similar to a recording: exactly, unless --approximate is given.

    Exit code 1 when --clips or --html lack the audio of a hit; everything else is then written.
    """
    from cli.search_clips import ClipFolder, Clips
    from cli.search_hits import answered, hits_table, is_csv, question_facts, write_csv
    from cli.search_page import is_page
    from embeddings.errors import InputError
    from embeddings.joined import JoinedStores
    from embeddings.moved import AudioFinder
    from embeddings.neighbours import NeighbourSearch
    from embeddings.store import Store

    if k < 1:
        raise InputError(f"-k {k} must be at least 1.")
    for option, path in (("--csv", csv_path), ("--html", html), ("--json", json_path)):
        if path is not None and path.is_dir():
            raise InputError(f"{option} {path} is a folder; name a file.")
    _require_own("--csv", csv_path, is_csv)
    _require_own("--html", html, is_page)
    paths, audio = _sorted_out(places)
    stores = JoinedStores([Store(path) for path in paths])
    chosen = blocks.split(",") if blocks else None
    stores.reader(chosen)  # are the blocks there, and the same in all stores?
    questions = _questions(audio, stores, start_s=start_s, end_s=end_s, like=like, unlike=unlike, row=row)
    finder, folder = AudioFinder(audio_root), None if clips is None else ClipFolder(clips)

    searcher = NeighbourSearch(stores, chosen, approximate=approximate)
    load = _once(lambda: store_backbones(stores.stores[0], chosen, device))
    relocated = finder if audio_root is not None else None
    answers = [
        answered(question, stores, searcher, load, _decoder(), k, exclude_own, one_per_recording, relocated)
        for question in questions
    ]

    for answer in answers:
        console().print(hits_table(answer, several_stores=len(paths) > 1))
    how = _say_how(searcher, approximate)
    if csv_path is not None:
        write_csv(csv_path, answers)
    heard = Clips(finder)
    if folder is not None:
        n_written = folder.write(answers, heard)
        console().print(f"{n_written} clips in {folder.path}")
    if html is not None:
        from cli.search_page import write_page

        write_page(html, answers, heard, [str(path) for path in paths])
        console().print(f"Page: {html}")
    asked: dict[str, Any] = {"blocks": [name for name, _ in searcher.reader.blocks], "search": how}
    asked["stores"] = [str(path) for path in paths]
    facts = [question_facts(answer) for answer in answers]
    asked |= facts[0] if len(facts) == 1 else {"queries": facts}
    print_names("Not the recordings that their names say, and not used", finder.wrong)
    print_names("Audio that is not at hand", heard.missing)
    write_summary(json_path, {**asked, "wrong_audio": finder.wrong, "missing_audio": heard.missing})
    if heard.missing:
        console().print("Say where the recordings lie now with --audio-root FOLDER; all the others were written.")
        raise typer.Exit(1)


def _require_own(option: str, path: Path | None, is_own: Callable[[Path], bool]) -> None:
    """Raises InputError where a file that no search wrote would be written over."""
    from embeddings.errors import InputError

    if path is not None and path.exists() and not is_own(path):
        raise InputError(
            f"{option} {path} is there, and was not written by `embed search`: it is left as it is. Name another file, "
            "or move it away."
        )


def _sorted_out(places: list[Path]) -> tuple[list[Path], list[Path]]:
    """The stores among some paths, and the audio files. Raises for what is neither."""
    from embeddings.errors import InputError
    from embeddings.store import Store

    stores = [path for path in places if (path / "store.json").is_file()]
    audio = [path for path in places if path not in stores]
    for path in audio:
        if path.is_dir() or (not stores and not path.is_file()):
            Store(path)  # raises: it says what a store is
        if not path.is_file():
            raise InputError(f"{path} is not a file. Give the audio file whose like you look for.")
    if not stores:
        raise InputError(f"no store among {', '.join(map(str, places))}. Name a folder made by `embed extract`.")
    return stores, audio


def _questions(
    audio: list[Path],
    stores: JoinedStores,
    *,
    start_s: float | None,
    end_s: float | None,
    like: list[str] | None,
    unlike: list[str] | None,
    row: list[int] | None,
) -> list[Question]:
    """What is asked, everything that is named found; nothing is embedded yet."""
    from embeddings.errors import InputError
    from embeddings.queries import Question, audio_part, named_example, stored_row
    from stage1_backbones.audio import duration_s

    if (start_s is not None or end_s is not None) and len(audio) != 1:
        raise InputError(f"--start-s and --end-s cut a part from one AUDIO file; {len(audio)} are given.")
    if len(audio) > 1 and (like or row):
        raise InputError("several AUDIO files are a query each; name all examples of one query with --like.")
    files = [audio_part(path, duration_s, start_s, end_s) for path in audio]
    examples = [named_example(text, stores, duration_s) for text in like or []]
    examples += [stored_row(number, stores) for number in row or []]
    negatives = tuple(named_example(text, stores, duration_s) for text in unlike or [])
    if examples or not files:
        return [Question((*files, *examples), negatives)]
    return [Question((file,), negatives) for file in files]


def _say_how(searcher: NeighbourSearch, approximate: bool) -> dict[str, Any]:
    """How it was searched, for the summary; recall of an approximate search is printed."""
    how: dict[str, Any] = {"approximate": approximate}
    if approximate:
        how |= {name: searcher.facts[name] for name in ("n_probed", "n_lists", "recall", "recall_k", "recall_queries")}
        console().print(
            f"Approximate: {how['n_probed']} of {how['n_lists']} lists; recall@{how['recall_k']} {how['recall']:.3f}, "
            f"measured on {how['recall_queries']} stored windows."
        )
    return how


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Networks take seconds to load: when they are first needed, and not again."""
    from functools import cache

    return cache(make)


def _decoder() -> DecodePart:
    from functools import partial

    from stage1_backbones.audio import stream_windows

    return lambda start_s, end_s: partial(stream_windows, start_s=start_s, end_s=end_s)
