"""What every picture needs: text, ticks, names that are cut, a whole SVG file. The elements are lines of text."""

import math
import re
import textwrap
from decimal import Decimal
from xml.sax.saxutils import escape

INK, FAINT = "#222222", "#DDDDDD"
FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""
CHAR_WIDTH = 6.6  # pixels of an average character at font size 11, on the wide side: SVG cannot measure text


def nice_ticks(low, high, count=6, whole=False):
    """About `count` numbers between low and high, 1, 2, 2.5 or 5 times a power of ten apart; `whole` numbers for what
    has no halves, as steps."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9)]
    step = next((step for step in steps if not whole or step % 1 == 0), 1.0)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_texts(ticks):
    """The ticks with as many decimals as the one that needs most, or each in its own digits on a log axis."""
    own = [f"{tick:.6g}" for tick in ticks]  # 6 digits hide that 3 * 0.1 is 0.30000000000000004
    decimals = [max(0, -Decimal(digits).normalize().as_tuple().exponent) for digits in own]
    if max(decimals, default=0) > 6 or any(abs(tick) >= 1e9 for tick in ticks):
        return own  # too long in any other form
    if len(ticks) >= 3 and math.isclose(ticks[1] - ticks[0], ticks[2] - ticks[1]):
        decimals = [max(decimals)] * len(ticks)
    return [f"{tick:,.{places}f}" for tick, places in zip(ticks, decimals)]


def text(x, y, words, size=11, anchor="start", extra=""):
    """A <text> element; characters that XML or a line of text cannot hold are dropped."""
    words = escape("".join(c for c in str(words) if c.isprintable()))
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{INK}" {extra}>{words}</text>'


def paragraph(x, y, width, words, size=11, extra=""):
    """A <text> element per line of about `width` pixels; lines are size + 5 apart, the first at y."""
    lines = textwrap.wrap(words, max(20, int(width / (0.56 * size))))  # a sentence is narrower than CHAR_WIDTH
    return [text(x, y + (size + 5) * i, line, size, extra=extra) for i, line in enumerate(lines)]


def short_name(name, longest=20):
    """A name for the end of a line. Of swept flags the first letters are kept and every value: it tells them apart."""
    if len(name) > longest:
        def initials(flag):
            return "".join(word[0] for word in flag[1].split("-") if word) + "="
        name = re.sub(r"(?<= )([^ =]+)=", initials, name)
    tail = max(longest - longest // 2, len(name.removeprefix(name.split(" ")[0])))
    head = max(longest - tail - 1, 3)
    return name if len(name) <= max(longest, head + 1 + tail) else f"{name[:head]}…{name[-tail:]}"


def document(width, height, title, parts):
    """A whole SVG file. The white ground is drawn, not left to the page: dark mode would swallow black lines."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" {FONT}>',
        f"<title>{escape(''.join(c for c in title if c.isprintable()))}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#FFFFFF"/>',
        *(part for part in parts if part), "</svg>",
    ]) + "\n"


def moved(x, y, parts):
    """The elements in one group whose origin is at x, y."""
    return [f'<g transform="translate({x:.1f} {y:.1f})">', *parts, "</g>"]
