"""A run as one HTML page that needs nothing else: its verdict, figures, a picture over time, its anomalies.

The picture is SVG: what was confirmed and what took effect a second, each nemesis as a band while it lasted,
and the time from confirm to effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

from unlost.chaos.checker import Judgement, Verdict, outages
from unlost.chaos.checker.accounts import latencies, quantile
from unlost.chaos.history import History
from unlost.chaos.report import Figures, explain

_WIDTH, _PLOT, _LEFT, _TOP = 1000, 180, 60, 24
_COLOURS = {"confirmed": "#1f77b4", "effects": "#2ca02c", "p50": "#9467bd", "p99": "#d62728"}
_BANDS = ("#ffbb78", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5", "#aec7e8")
#: A fault of no length must still be seen.
_THINNEST = 1.5
_MOST_BUCKETS = 250

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1060px; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.6em; }
.valid { color: #1a7f37; } .invalid, .unknown { color: #b42318; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: left; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #444; }
"""


@dataclass(frozen=True)
class Span:
    """The time that a picture covers, in buckets."""

    began_ns: int
    seconds: float
    bucket: float

    @classmethod
    def of(cls, history: History) -> Span:
        """Return the span of a history, from its first operation to its last."""
        times = [op.time_ns for op in history]
        began, ended = (min(times), max(times)) if times else (0, 0)
        seconds = max(1.0, (ended - began) / 1e9)
        return cls(began, seconds, max(1.0, seconds / _MOST_BUCKETS))

    def bucket_of(self, time_ns: int) -> int:
        """Return the number of the bucket that a time falls into."""
        return int((time_ns - self.began_ns) / 1e9 / self.bucket)

    def x(self, seconds: float) -> float:
        """Return where a time since the begin is drawn."""
        return _LEFT + seconds / self.seconds * (_WIDTH - _LEFT - 10)

    def x_of(self, time_ns: int) -> float:
        """Return where a moment is drawn."""
        return self.x((time_ns - self.began_ns) / 1e9)


def page(history: History, judgement: Judgement, figures: Figures, title: str) -> str:
    """Return the page.

    Args:
        history: The run.
        judgement: What the checkers said of it.
        figures: Its figures.
        title: What ran.
    """
    body = [
        f"<h1>{escape(title)}: <span class='{figures.verdict}'>{figures.verdict}</span></h1>",
        picture(history),
        "<h2>Figures</h2>",
        _table((name.removesuffix("_s").replace("_", " "), value) for name, value in asdict(figures).items()),
        "<h2>Checkers</h2>",
        _table((finding.checker, finding.verdict) for finding in judgement.findings),
        *_anomalies(judgement),
        *_schedule(history),
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def picture(history: History) -> str:
    """Return the SVG of a run."""
    span = Span.of(history)
    legend, bands = _bands(history, span)
    rates = {
        "confirmed": _rate(history, span, "publish"),
        "effects": _rate(history, span, "effect"),
    }
    height = 2 * (_PLOT + 2 * _TOP) + 20 + 16 * len(legend)
    parts = [
        bands,
        _plot(span, rates, "operations/s", _TOP),
        _plot(span, _latency(history, span), "confirm to effect, s", _PLOT + 3 * _TOP),
        *_legend(legend, 2 * (_PLOT + 2 * _TOP) + 20),
    ]
    return (
        f"<svg viewBox='0 0 {_WIDTH} {height}' width='100%' role='img' "
        f"aria-label='operations, faults and latency over time'>{''.join(parts)}</svg>"
    )


def _bands(history: History, span: Span) -> tuple[Mapping[str, tuple[str, int]], str]:
    """Draw each fault over both plots; return colour and number of each kind, and the drawing."""
    struck = outages(history)
    names = sorted({begin.f for begin, _ in struck})
    colours = {name: _BANDS[number % len(_BANDS)] for number, name in enumerate(names)}
    height = 2 * _PLOT + 2 * _TOP
    drawn = []
    for begin, end in struck:
        left = span.x_of(begin.time_ns)
        width = max(_THINNEST, span.x_of(end.time_ns) - left if end else 0.0)
        told = escape(f"{begin.f} {begin.extra.get('target') or ''}".strip())
        drawn.append(
            f"<rect x='{left:.1f}' y='{_TOP}' width='{width:.1f}' height='{height}' "
            f"fill='{colours[begin.f]}' fill-opacity='0.6'><title>{told}</title></rect>"
        )
    counts = Counter(begin.f for begin, _ in struck)
    return {name: (colours[name], counts[name]) for name in names}, "".join(drawn)


def _rate(history: History, span: Span, f: str) -> list[tuple[float, float]]:
    counts = Counter(span.bucket_of(op.time_ns) for op in history.of(f, "ok"))
    last = span.bucket_of(span.began_ns + int(span.seconds * 1e9))
    return [(number * span.bucket, counts[number] / span.bucket) for number in range(last + 1)]


def _latency(history: History, span: Span) -> dict[str, list[tuple[float, float]]]:
    took = latencies(history)
    buckets: dict[int, list[float]] = {}
    for value, op in history.named("publish", "ok"):
        if value in took:
            buckets.setdefault(span.bucket_of(op.time_ns), []).append(took[value])
    ordered = {number: sorted(values) for number, values in sorted(buckets.items())}
    return {
        name: [(number * span.bucket, quantile(values, part)) for number, values in ordered.items()]
        for name, part in (("p50", 0.5), ("p99", 0.99))
    }


def _plot(span: Span, lines: Mapping[str, Sequence[tuple[float, float]]], label: str, top: float) -> str:
    highest = max((y for points in lines.values() for _, y in points), default=0.0) or 1.0
    base = top + _PLOT
    drawn = [
        f"<line x1='{_LEFT}' y1='{base}' x2='{_WIDTH - 10}' y2='{base}' stroke='#888'/>",
        f"<text x='{_LEFT}' y='{top - 6}'>{escape(label)}</text>",
        f"<text x='{_LEFT - 6}' y='{top + 8}' text-anchor='end'>{highest:.3g}</text>",
        f"<text x='{_LEFT - 6}' y='{base}' text-anchor='end'>0</text>",
        f"<text x='{_WIDTH - 10}' y='{base + 14}' text-anchor='end'>{span.seconds:.0f} s</text>",
    ]
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{span.x(x):.1f},{base - y / highest * _PLOT:.1f}" for x, y in points)
        colour = _COLOURS[name]
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        x = _LEFT + 150 + 90 * number
        drawn.append(f"<text x='{x}' y='{top - 6}' style='fill:{colour}'>{escape(name)}</text>")
    return "".join(drawn)


def _legend(kinds: Mapping[str, tuple[str, int]], top: float) -> Iterator[str]:
    for number, (name, (colour, times)) in enumerate(kinds.items()):
        y = top + 16 * number
        yield f"<rect x='{_LEFT}' y='{y}' width='12' height='12' fill='{colour}'/>"
        yield f"<text x='{_LEFT + 18}' y='{y + 10}'>{escape(name)}: {times}</text>"


def _anomalies(judgement: Judgement) -> Iterator[str]:
    if judgement.verdict is not Verdict.VALID:
        yield f"<h2>Why</h2><pre>{escape(chr(10).join(explain(judgement)))}</pre>"


def _schedule(history: History) -> Iterator[str]:
    for op in history.of("schedule"):
        lines = "\n".join(map(str, op.extra.get("lines", ())))
        yield f"<h2>Schedule of seed {escape(str(op.extra.get('seed')))}</h2><pre>{escape(lines)}</pre>"


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"
