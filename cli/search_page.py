"""What a search found as one HTML page that needs nothing else: pictures and sound are inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.pictures import draw_stretch
from embeddings.files import write_atomically

if TYPE_CHECKING:
    from cli.search_clips import Clip, Clips
    from cli.search_hits import Answer, Heard, Hit

__all__ = ["is_page", "write_page"]

_HIGHEST_RATE_HZ = 48_000  # browsers play this one everywhere
_MARK = '<meta name="generator" content="Cisticola, embed search">'  # by which a page is known again
_HEAD_BYTES = 1024  # in which it stands


def write_page(path: Path, answers: Sequence[Answer], clips: Clips, stores: Sequence[str]) -> None:
    """Write the page; audio that is not at hand is named in its place, and in `clips.missing`.

    stores : names of what was searched, for the heading
    """
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_PAGE)
    sections = [
        {
            "name": answer.question.name,
            "anchor": f"q{number}",
            "examples": [_example_card(heard, answer, place, clips) for place, heard in enumerate(answer.heard)],
            "hits": [_hit_card(hit, answer, clips) for hit in answer.hits],
        }
        for number, answer in enumerate(answers, start=1)
    ]
    text = page.render(sections=sections, stores=", ".join(stores))

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def is_page(path: Path) -> bool:
    """Whether an earlier search wrote this file."""
    with open(path, "rb") as file:
        return _MARK.encode() in file.read(_HEAD_BYTES)


def _example_card(heard: Heard, answer: Answer, place: int, clips: Clips) -> dict[str, Any]:
    number = f" {place + 1}" if len(answer.examples) > 1 and not heard.is_negative else ""
    return {
        "words": "Unlike" if heard.is_negative else f"Query{number}",
        "name": heard.name,
        "sign": "unlike" if heard.is_negative else "like",
        "time": f"{heard.start_s:.1f} to {heard.end_s:.1f} s",
        **_seen_and_heard(clips.of(heard)),
    }


def _hit_card(hit: Hit, answer: Answer, clips: Clips) -> dict[str, Any]:
    r = hit.recording
    most = 2.0 if answer.negatives else 1.0
    several = len(answer.examples) > 1
    windows = len(answer.examples[hit.query_number - 1].start_s)  # the name of a single window tells its time
    times = [f"{hit.query_start_s:.1f} s"] if not several or windows > 1 else []
    asked = ", ".join([f"query {hit.query_number}", hit.query_example] * several + times)
    return {
        "rank": hit.rank,
        "similarity": f"{hit.similarity:.3f}",
        "width": f"{100 * min(1.0, max(0.0, hit.similarity / most)):.0f}",
        "name": r.common_name or r.scientific_name or r.primary_label or "unlabelled",
        "scientific_name": r.scientific_name if r.common_name else "",
        "label": r.primary_label,
        "recording": r.filename,
        "time": f"{hit.start_s:.1f} to {hit.end_s:.1f} s",
        "query": asked,
        "credit": ", ".join(part for part in (r.author, r.license) if part) or "author and licence not stated",
        "url": r.url if r.url.startswith(("https://", "http://")) else "",
        "where": f"{hit.store}, row {hit.row}",
        **_seen_and_heard(clips.of(hit)),
    }


def _seen_and_heard(clip: Clip | None) -> dict[str, str]:
    """A clip as base64: its spectrogram, and its sound as FLAC; both empty when there is none."""
    if clip is None:
        return {"picture": "", "sound": ""}
    clip = clip.at_most(_HIGHEST_RATE_HZ)
    parts = {"picture": draw_stretch(clip.samples, clip.rate_hz), "sound": clip.encoded("FLAC")}
    return {name: base64.b64encode(content).decode("ascii") for name, content in parts.items()}


_PAGE = (
    """{% macro sight(card) -%}
{% if card.picture %}<img src="data:image/png;base64,{{ card.picture }}" alt="Spectrogram, {{ card.time }}">
<audio controls preload="none" src="data:audio/flac;base64,{{ card.sound }}"></audio>
{%- else %}<p class="lost">Its audio is not at hand.</p>{% endif %}
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Similar calls</title>
"""
    + _MARK
    + """
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #22303c; background: #fbfaf7; max-width: 1180px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.4em; margin-bottom: .1em } h2 { font-size: 1.1em; margin: 2em 0 .6em; overflow-wrap: anywhere }
p.small { color: #7b8794; font-size: 13px; margin-top: 0; overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px }
article { background: #fff; border: 1px solid #e3e0d8; border-radius: 8px; padding: 10px 12px; min-width: 0 }
article.like { border-color: #22303c } article.unlike { border-color: #e07a3f }
h3 { display: flex; justify-content: space-between; gap: .6em; font-size: 1em; margin: 0 0 .3em }
h3 span { overflow-wrap: anywhere; min-width: 0 } h3 i { font-weight: normal; color: #7b8794 }
h3 b { font-variant-numeric: tabular-nums }
.bar { height: 4px; background: #eceae3; border-radius: 2px; margin-bottom: 8px }
.bar div { height: 4px; background: #2a9d8f; border-radius: 2px }
img { display: block; width: 100%; height: auto; border-radius: 4px }
audio { display: block; width: 100%; height: 34px; margin: 6px 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8em; margin: 0; font-size: 13px }
dt { color: #7b8794 } dd { margin: 0; overflow-wrap: anywhere } a { color: #1d7268 }
.lost { background: #f4f2ec; color: #7b8794; text-align: center; padding: 3.4em 1em; margin: 0 0 6px }
.sign { font-size: 12px; text-transform: uppercase; letter-spacing: .06em; color: #7b8794 }
</style></head><body>
<h1>Similar calls</h1>
<p class="small">Searched: {{ stores }}. Similarity is the mean of the blocks' cosines, each block centred on the mean
of all that was searched: 1 is equal. With counterexamples, the mean similarity to them is taken off.</p>
{% if sections|length > 1 %}<ul>{% for s in sections %}<li><a href="#{{ s.anchor }}">{{ s.name }}</a></li>{% endfor %}
</ul>{% endif %}
{% for section in sections %}<section id="{{ section.anchor }}">
<h2>Most similar to {{ section.name }}</h2>
<div class="cards">{% for card in section.examples %}<article class="{{ card.sign }}">
<h3><span><span class="sign">{{ card.words }}</span> {{ card.name }}</span></h3>
{{ sight(card) }}
<dl><dt>time</dt><dd>{{ card.time }}</dd></dl>
</article>
{% endfor %}</div>
<h2>{{ section.hits|length }} found</h2>
<div class="cards">{% for card in section.hits %}<article>
<h3><span>{{ card.rank }}. {{ card.name }} <i>{{ card.scientific_name }}</i></span><b>{{ card.similarity }}</b></h3>
<div class="bar"><div style="width:{{ card.width }}%"></div></div>
{{ sight(card) }}
<dl><dt>label</dt><dd>{{ card.label or "none" }}</dd>
<dt>recording</dt><dd>{{ card.recording }}</dd>
<dt>time</dt><dd>{{ card.time }}</dd>
<dt>query from</dt><dd>{{ card.query }}</dd>
<dt>by</dt><dd>{{ card.credit }}
{%- if card.url %}, <a href="{{ card.url }}" rel="noopener noreferrer">source</a>{% endif %}</dd>
<dt>stored in</dt><dd>{{ card.where }}</dd></dl>
</article>
{% endfor %}</div>
</section>
{% endfor %}</body></html>
"""
)
