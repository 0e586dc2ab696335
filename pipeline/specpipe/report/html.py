"""The few pieces of HTML and SVG that the reports are made of; every text is escaped."""

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1c2733; --quiet: #5a6b7b; --line: #d9e0e7;
        --page: #ffffff; --blue: #2f6f9f; --red: #a8201a; --green: #10693f; --amber: #8a5a00;
        --violet: #6b3fa0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #dfe6ee; --quiet: #9aa9b8; --line: #35414d; --page: #14191f; --blue: #6aaede;
          --red: #ff8a80; --green: #62c795; --amber: #e0b050; --violet: #b794f6; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.2rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.1rem; }
p.note { color: var(--quiet); margin: 0 0 0.6rem; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; min-width: 46rem; }
th, td { text-align: left; padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { font-weight: 600; } td:first-child { white-space: nowrap; }
td:last-child { min-width: 14rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; }
.ok { color: var(--green); } .bad { color: var(--red); }
svg { max-width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: var(--text); }
svg .axis { font-weight: 600; } svg .quiet { fill: var(--quiet); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .rule { stroke: var(--red); stroke-dasharray: 5 4; }
svg .band { fill: var(--blue); fill-opacity: .16; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
            gap: 1.2rem 1.6rem; margin: 1.2rem 0; }
figure { margin: 0; } figure svg { width: 100%; display: block; }
figcaption { font-weight: 600; } figcaption small { display: block; font-weight: 400;
             color: var(--quiet); font-size: 0.87rem; line-height: 1.35; min-height: 2.4em; }
.empty { border: 1px dashed var(--line); color: var(--quiet); padding: 1rem; min-height: 6rem; }
ul.summary { padding-left: 1.1rem; } ul.summary li { margin: 0.15rem 0; }
@media (max-width: 34rem) {
  figure svg text { font-size: 16px; } figure svg .quiet { font-size: 15px; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; }
}
@media print {
  :root { font-size: 11px; }
  :root { --text: #000; --quiet: #444; --line: #ccc; --page: #fff; --blue: #2f6f9f;
          --red: #a8201a; --green: #10693f; --amber: #8a5a00; --violet: #6b3fa0; }
  body { max-width: none; margin: 0; font-size: 11px; }
  .pictures { grid-template-columns: 1fr 1fr; } figure, tr, h2 { break-inside: avoid; }
  h2 { break-after: avoid; } .scroll { overflow: visible; } table { min-width: 0; }
  * { print-color-adjust: exact; }
}
"""
_COLOUR = "var(--blue)"
_COLOURS = (_COLOUR, *(f"var(--{name})" for name in ("red", "green", "amber", "violet", "text")))


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole document."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def verdict(passed: bool, name: str) -> str:
    """Return the title, with the result in a word and a colour."""
    word, kind = ("passed", "ok") if passed else ("failed", "bad")
    return f'<h1>Validation of {escape(name)}: <span class="{kind}">{word}</span></h1>'


def summary(sentences: Sequence[str]) -> str:
    """Return the findings under the title."""
    rows = "".join(f"<li>{escape(text)}</li>" for text in sentences)
    return f'<ul class="summary">{rows}</ul>'


def pictures(found: Sequence[tuple[str, str, str]]) -> str:
    """Return pictures in a grid: title, note and shapes of each."""
    cells = "".join(
        f"<figure><figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>{shapes}"
        "</figure>"
        for title, note, shapes in found
    )
    return f'<div class="pictures">{cells}</div>'


def heading(text: str, note: str) -> str:
    """Return a section title and the sentence under it."""
    return f"<h2>{escape(text)}</h2>" + (f'<p class="note">{escape(note)}</p>' if note else "")


def subheading(text: str, note: str) -> str:
    """Return the title of a table in a section, and the sentence under it."""
    return f"<h3>{escape(text)}</h3>" + (f'<p class="note">{escape(note)}</p>' if note else "")


def facts(values: Mapping[str, str]) -> str:
    """Return names and values as a list."""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
    return f"<dl>{rows}</dl>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def items(texts: Sequence[str]) -> str:
    """Return a bullet list."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def bars(values: Mapping[str, float], unit: str) -> str:
    """Return horizontal bars, one a name."""
    most = max(values.values(), default=1.0) or 1.0
    shapes = []
    for i, (name, value) in enumerate(values.items()):
        y, width = 8 + 32 * i, 420 * value / most
        shapes.append(f'<text x="0" y="{y + 16}">{escape(name)}</text>')
        shapes.append(
            f'<rect x="190" y="{y}" width="{width:.1f}" height="22" style="fill:{_COLOUR}"/>'
        )
        shapes.append(f'<text x="{196 + width:.1f}" y="{y + 16}">{value:.3g} {escape(unit)}</text>')
    return _svg(720, 16 + 32 * len(values), shapes)


def columns(values: Mapping[str, float], across: str, up: str, mark: float | None = None) -> str:
    """Return vertical bars with their numbers, and a horizontal line at `mark`."""
    most = max([*values.values(), mark or 0.0]) or 1.0
    step = min(80.0, 640 / max(1, len(values)))
    shapes = [f'<text x="0" y="14">{escape(up)}</text>']
    for i, (name, value) in enumerate(values.items()):
        x, height = 30 + step * i, 140 * value / most
        shapes.append(
            f'<rect x="{x:.1f}" y="{180 - height:.1f}" width="{step * 0.7:.1f}" '
            f'height="{height:.1f}" style="fill:{_COLOUR}"/>'
        )
        middle = x + step * 0.35
        shapes.append(_label(middle, 174 - height, f"{value:.3g}"))
        shapes.append(_label(middle, 196, name))
    if mark is not None:
        y = 180 - 140 * mark / most
        shapes.append(
            f'<line x1="24" x2="700" y1="{y:.1f}" y2="{y:.1f}" '
            'style="stroke:var(--red)" stroke-dasharray="4 3"/>'
        )
    shapes.append(f'<text x="30" y="216">{escape(across)}</text>')
    return _svg(720, 224, shapes)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    """Return curves through (x, y) points on common axes; both begin at zero."""
    points = [point for curve in series.values() for point in curve]
    right = max((x for x, _ in points), default=1.0) or 1.0
    top = max((y for _, y in points), default=1.0) or 1.0
    shapes = [f'<text x="0" y="14">{escape(up)}, up to {top:.3g}</text>']
    for i, (name, curve) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(f"{30 + 520 * x / right:.1f},{220 - 190 * y / top:.1f}" for x, y in curve)
        style = f"fill:none;stroke:{colour};stroke-width:2"
        shapes.append(f'<polyline points="{path}" style="{style}"/>')
        last = f" {curve[-1][1]:.3g}" if curve else ""
        shapes.append(
            f'<text x="570" y="{36 + 20 * i}" style="fill:{colour}">{escape(name)}{last}</text>'
        )
    shapes.append('<path d="M30 30 V220 H550" style="fill:none;stroke:var(--quiet)"/>')
    shapes.append(f'<text x="30" y="240">{escape(across)}, up to {right:.4g}</text>')
    return _svg(720, 250, shapes)


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _svg(width: int, height: int, shapes: Sequence[str]) -> str:
    inner = "".join(shapes)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">{inner}</svg>'
    )
