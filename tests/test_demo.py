"""The demo's parts that need no training: its folder, its choice of query, its picture."""

from __future__ import annotations

import pytest

from cli import demo
from cli.pictures import calls_of_search, draw_similar_calls
from embeddings.errors import InputError


def search_result(synthetic_set, n):
    """What `embed search --json` writes, with the set's own recordings as neighbours."""
    files = sorted(synthetic_set.parent.rglob("*.flac"))
    return {
        "query": str(files[0]),
        "blocks": ["fake"],
        "neighbours": [
            {
                "similarity": 0.9 - 0.1 * i,
                "path": str(path),
                "filename": f"{path.parent.name}/{path.name}",
                "start_s": 0.5,
                "end_s": 5.5,
                "query_start_s": 1.0,
                "primary_label": path.parent.name,
                "common_name": "Slow Tickerbird",
            }
            for i, path in enumerate(files[1 : n + 1])
        ],
    }


def test_the_picture_is_drawn_for_any_number_of_neighbours(synthetic_set, tmp_path):
    from matplotlib.image import imread

    for n in (1, 5):
        query, calls = calls_of_search(search_result(synthetic_set, n), "belhol1", "Hollow Bellwether", "a.flac")
        draw_similar_calls(query, calls, tmp_path / f"{n}.png")
        pixels = imread(tmp_path / f"{n}.png")
        assert pixels.shape[1] > 1200
        assert pixels[..., :3].std() > 0.1


def test_calls_say_whether_they_are_of_the_querys_species_and_where_it_was_heard(synthetic_set):
    result = search_result(synthetic_set, 6)
    query, calls = calls_of_search(result, "belhol1", "Hollow Bellwether", "a.flac")
    assert (query.start_s, query.end_s, query.similarity) == (1.0, 6.0, None)
    assert [call.same for call in calls] == [True] * 5 + [False]
    assert [call.same for call in calls_of_search(result, "", "unknown", "a.flac")[1]] == [None] * 6


def test_a_search_that_found_nothing_is_not_drawn():
    with pytest.raises(InputError, match="found nothing"):
        calls_of_search({"query": "a.flac", "neighbours": []}, "", "", "")


def test_a_foreign_folder_is_never_emptied(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        demo._make_anew(tmp_path)
    assert (tmp_path / "store" / "precious.txt").read_text() == "mine"


def test_a_demos_own_folder_is_made_anew_and_strangers_in_it_stay(tmp_path):
    out = tmp_path / "demo"
    demo._make_anew(out)
    (out / "store").mkdir()
    (out / "store" / "old.arrow").write_text("old")
    (out / "notes.txt").write_text("mine")
    demo._make_anew(out)
    assert not (out / "store").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_folder_without_a_table_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"no train_metadata\.csv"):
        demo._recordings(tmp_path, tmp_path / "out", seed=0)
