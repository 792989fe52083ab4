"""The report as one HTML page that needs nothing else: no scripts, no network, and plots as inline SVG.

All text that comes from a manifest, a checkpoint or an error goes through `escape`; a content security policy
keeps the page from loading or running anything even so.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.report.plots import best_of_n_plot, duration_plots, score_plot, throughput_plot, token_plots
from pipeline.report.style import STYLE
from pipeline.report.text import escape, hours, integer, number, percent, plain, seconds
from pipeline.report.unusual import LONG_RUN, OUTLIER_Z, REPEATED_SHARE
from pipeline.rows.token_measures import NGRAM

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
FAILURES_SHOWN = 30
FLAGS = {
    "unfinished": ("Unfinished", "no stop token before the length limit: the end is probably cut off"),
    "empty": ("Empty", "no speech token at all"),
    "long_run": ("Long run", f"one token {LONG_RUN} or more times in a row: a held sound or a long silence"),
    "repeated": (
        "Repetition",
        f"{REPEATED_SHARE:.0%} or more of the {NGRAM}-grams occurred before: looping or repeated words",
    ),
}
LISTS = {
    "unusual_duration": ("Unusual duration", "furthest from the usual duration of a text as long"),
    "repeated": ("Most repetitive", "the largest share of repeated 4-grams"),
    "long_runs": ("Longest runs", "the longest run of one token"),
    "low_scores": ("Lowest scores", "the lowest score of a row's best candidate"),
}


def render_page(figures: dict[str, Any]) -> str:
    """The page of the figures that `pipeline.report.build.build_figures` returns."""
    sections = [
        _header(figures),
        _scores(figures),
        _lengths(figures),
        _quality(figures),
        _failures(figures),
        _speed(figures),
        _look_at(figures),
        _run(figures["run"]),
        _footer(),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Synthesis report: {escape(figures['output'])}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def _header(figures: dict[str, Any]) -> str:
    rows, best, every = figures["rows"], figures["candidates"]["best"], figures["candidates"]["all"]
    speed = figures["speed"] or {}
    left = speed.get("rows_left")
    facts = [
        ("Rows", integer(rows["done"]), f"{integer(left)} left" if left else ""),
        ("Failed rows", integer(rows["failed"]), f"{percent(rows['failed_share'])} of all"),
        ("Candidates", integer(every["count"]), _per_row(every["count"], rows["done"])),
        (
            "Speech, best of row",
            hours(best["audio_hours"]),
            f"{hours(every['audio_hours'])} in all",
        ),
        (
            "Median best score",
            number(_of(best["score"], "p50")),
            f"{number(_of(every['score'], 'p50'))} of all",
        ),
        (
            "Unfinished best",
            percent(best["flags"]["unfinished"]["share"]),
            f"{percent(every['flags']['unfinished']['share'])} of all",
        ),
    ]
    if speed:
        real_time = f"{number(speed['audio_s_per_s'], 3)} × real time"
        facts.append(("Tokens per second", integer(speed["tokens_per_s"]), real_time))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    waiting = (
        f" {integer(rows['unpublished'])} of the rows are finished and not yet published into data/."
        if rows["unpublished"]
        else ""
    )
    return (
        f"<header><h1>Synthesis report</h1><p>{_foreign(figures['output'])}</p>"
        f"<p>As of {escape(figures['created'].replace('T', ' ').replace('+00:00', ' UTC'))}.{waiting}</p>"
        f'<dl class="facts">{items}</dl></header>'
    )


def _per_row(candidates: int, rows: int) -> str:
    if not rows:
        return ""
    mean = candidates / rows
    return f"{integer(mean) if mean.is_integer() else number(mean, 3)} per row"


def _of(distribution: dict[str, Any] | None, name: str) -> float | None:
    return distribution[name] if distribution else None


def _scores(figures: dict[str, Any]) -> str:
    return _section(
        "Scores",
        "CLVP's similarity of speech and text. Scores of different checkpoints are not comparable.",
        f'<div class="grid2">{best_of_n_plot(figures["best_of_n"])}{score_plot(figures["candidates"])}</div>',
    )


def _lengths(figures: dict[str, Any]) -> str:
    return _section("Length and duration", "", f'<div class="grid2">{"".join(duration_plots(figures))}</div>')


def _quality(figures: dict[str, Any]) -> str:
    every, best = figures["candidates"]["all"], figures["candidates"]["best"]
    lines = [(*FLAGS[name], every["flags"][name], best["flags"][name]) for name in FLAGS]
    outliers = figures["pace"]["outliers"]
    for kind, name in (("long", "Unusually long"), ("short", "Unusually short")):
        meaning = f"finished, but over {OUTLIER_Z} robust deviations from the usual duration of such a text"
        lines.append((name, meaning, outliers["all"][kind], outliers["best"][kind]))
    body = [
        [
            f'<td class="w">{escape(name)}<small>{escape(meaning)}</small></td>',
            _cell(integer(a["count"]), "candidates"),
            _cell(percent(a["share"]), "="),
            _cell(integer(b["count"]), "best of row"),
            _cell(percent(b["share"]), "="),
        ]
        for name, meaning, a, b in lines
    ]
    head = [("flag", ""), ("candidates", "n"), ("share", "n"), ("best of row", "n"), ("share", "n")]
    return _section(
        "What the score cannot see",
        "CLVP compares whole utterances: it hardly notices repetitions, held sounds and cut-off endings.",
        f'<div class="card">{_table(head, body)}</div>'
        f'<div class="grid2">{"".join(token_plots(figures["candidates"]))}</div>',
    )


def _look_at(figures: dict[str, Any]) -> str:
    cards = [
        f'<div class="card"><h3>{escape(title)}</h3><figcaption><p>{escape(note)}</p></figcaption>'
        f"{_records(figures['look_at'][name])}</div>"
        for name, (title, note) in LISTS.items()
        if figures["look_at"][name]
    ]
    if not cards:
        return ""
    return _section(
        "Rows to listen to",
        "The best candidates of these rows.",
        f'<div class="grid2">{"".join(cards)}</div>',
    )


def _records(records: Sequence[dict[str, Any]]) -> str:
    has_z = any("duration_z" in record for record in records)
    head = [("row", ""), ("score", "n"), ("duration", "n"), *([("z", "n")] if has_z else [])]
    head += [("longest run", "n"), ("repeated", "n")]
    body = []
    for record in records:
        cells = [
            f'<td class="id"><b>{_foreign(record["id"])}</b><q>{_foreign(record["text"])}</q></td>',
            _cell(number(record["score"]), "score"),
            _cell(seconds(record["duration_s"]) + ("" if record["finished"] else " …"), "duration"),
        ]
        if has_z:
            cells.append(_cell(f"{record['duration_z']:+.1f}".replace("-", "−"), "z"))
        cells.append(_cell(integer(record["longest_run"]), "longest run"))
        cells.append(_cell(percent(record["repeated_ngrams"]), "repeated"))
        body.append(cells)
    return _table(head, body)


def _failures(figures: dict[str, Any]) -> str:
    groups = figures["failures"]
    if not groups:
        return _section("Failures", "No row has failed.", "")
    body = []
    for group in groups[:FAILURES_SHOWN]:
        examples = "".join(
            f"<small><b>{_foreign(_name(example))}</b>: {_foreign(example['message'])}</small>"
            for example in group["examples"]
        )
        body.append(
            [
                f'<td class="w">{escape(group["stage"])} · <b>{escape(group["type"])}</b>{examples}</td>',
                _cell(integer(group["rows"]), "rows"),
                _cell(percent(group["share"]), "="),
                _share_cell(group["share"], "bad"),
            ]
        )
    head = [("stage · type, with examples", ""), ("rows", "n"), ("share", "n"), ("", "")]
    total = f"{integer(figures['rows']['failed'])} rows, {percent(figures['rows']['failed_share'])} of all."
    if rest := groups[FAILURES_SHOWN:]:
        hidden = integer(sum(group["rows"] for group in rest))
        total += f" {len(rest)} rarer types with {hidden} rows are not shown."
    return _section("Failures by stage and type", total, f'<div class="card">{_table(head, body)}</div>')


def _name(example: dict[str, Any]) -> str:
    """The row's id, or where it stands when it has none."""
    return str(example["id"] if example["id"] is not None else example["source"] or "no id")


def _speed(figures: dict[str, Any]) -> str:
    speed = figures["speed"]
    if not speed:
        return _section("Throughput", "This run has recorded no metrics.", "")
    facts = [f"{hours(speed['wall_hours'])} of work in {integer(speed['sessions'])} session(s)"]
    if speed["gpu_hours_per_audio_hour"] is not None:
        facts.append(f"{number(speed['gpu_hours_per_audio_hour'], 3)} GPU-hours per hour of speech")
    stages = ""
    if speed["stages"]:
        body = [
            [
                f'<td class="w">{escape(stage["stage"])}</td>',
                _cell(hours(stage["busy_s"] / 3600), "busy"),
                _cell(percent(stage["share"]), "share"),
                _share_cell(stage["share"], ""),
            ]
            for stage in speed["stages"]
        ]
        head = [("stage", ""), ("busy, all workers", "n"), ("share", "n"), ("", "")]
        stages = f'<div class="card"><h3>Work by stage</h3>{_table(head, body)}</div>'
    return _section(
        "Throughput", "; ".join(facts) + ".", f'<div class="grid2">{throughput_plot(speed)}{stages}</div>'
    )


def _run(description: Any) -> str:
    if description is None:
        return _section("The run", "There is no readable run.json.", "")
    rows = []
    group = None
    for path, value in _leaves(description, ()):
        if path[:-1] != group:
            group = path[:-1]
            if group:
                rows.append(f'<tr><th colspan="2">{escape(" › ".join(group))}</th></tr>')
        name = path[-1] if path else "value"
        rows.append(f"<tr><td>{escape(name)}</td><td>{_foreign(plain(value))}</td></tr>")
    table = f'<table class="settings">{"".join(rows)}</table>'
    return _section("The run", "What run.json says of it.", f'<div class="card">{table}</div>')


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values of nested objects with their keys: of every object the plain values first."""
    if isinstance(value, dict):
        for nested in (False, True):
            for key, item in value.items():
                if isinstance(item, dict) == nested:
                    yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _footer() -> str:
    terms = {
        "Best candidate": "the one that the run ranks first; candidates without a stop token come last "
        "unless the run was told otherwise.",
        "Expected best of n": "the mean over all subsets of n of a row's candidates, then over rows; "
        "computed exactly from the stored scores, nothing is sampled again.",
        "Usual duration": "the median of log seconds per character among finished candidates whose texts are "
        "about as long (two bands double the number of characters); deviations are median absolute "
        "deviations scaled to a standard deviation.",
        "Characters": "of the text as given, without white space.",
    }
    items = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in terms.items())
    return f"<footer><dl>{items}</dl></footer>"


def _section(title: str, lead: str, body: str) -> str:
    paragraph = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{body}</section>"


def _foreign(text: object) -> str:
    """Text of others, whose direction of writing stays its own."""
    return f"<bdi>{escape(text)}</bdi>"


def _table(head: Sequence[tuple[str, str]], body: Sequence[Sequence[str]]) -> str:
    """A table that becomes a list on a narrow screen; cells are HTML."""
    titles = "".join(f'<th class="{style}">{escape(name)}</th>' for name, style in head)
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return (
        f'<div class="scroll"><table class="stack"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(text: str, label: str) -> str:
    return f'<td class="n" data-label="{escape(label)}">{escape(text)}</td>'


def _share_cell(share: float | None, style: str) -> str:
    width = f"width:{100 * (share or 0):.1f}%"
    return f'<td class="bar"><span class="share {style}"><i style="{width}"></i></span></td>'
