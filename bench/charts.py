"""Bar charts as SVG, drawn here so that a report needs nothing but Python."""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2a6fbb", "#b8b8b8", "#8a8a8a", "#5c5c5c", "#d9a441", "#7a9e5f")
LABEL_WIDTH = 250
BAR_WIDTH = 420
BAR_HEIGHT = 16
GAP = 12
HEAD = 56


def bars(
    title: str, unit: str, rows: Mapping[str, Mapping[str, float]], series: Sequence[str]
) -> str:
    """One group of horizontal bars for each row, one bar for each series that has a figure."""
    largest = max((value for row in rows.values() for value in row.values()), default=0) or 1
    parts: list[str] = []
    top = HEAD
    for name, row in rows.items():
        shown = [each for each in series if each in row]
        middle = top + len(shown) * BAR_HEIGHT / 2 + 4
        parts.append(_text(LABEL_WIDTH - 8, middle, name, "end"))
        for each in shown:
            width = max(1.0, row[each] / largest * BAR_WIDTH)
            colour = COLOURS[series.index(each) % len(COLOURS)]
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{top}" width="{width:.1f}" '
                f'height="{BAR_HEIGHT - 2}" fill="{colour}"/>'
            )
            parts.append(_text(LABEL_WIDTH + width + 5, top + 11, f"{row[each]:,.4g}", "start"))
            top += BAR_HEIGHT
        top += GAP
    width = LABEL_WIDTH + BAR_WIDTH + 90
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
            'font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{top}" fill="white"/>',
            f'<text x="12" y="20" font-size="14">{escape(title)} ({escape(unit)})</text>',
            *_legend(series),
            *parts,
            "</svg>\n",
        ]
    )


def _legend(series: Sequence[str]) -> list[str]:
    parts, left = [], 12
    for place, name in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="30" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + 14, 39, name, "start"))
        left += 34 + 7 * len(name)
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
