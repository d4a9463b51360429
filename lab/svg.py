"""What every picture needs: text, ticks, names that are cut, a whole SVG file. The elements are lines of text."""

import math
import re
from xml.sax.saxutils import escape

INK, FAINT = "#222222", "#DDDDDD"
FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""
CHAR_WIDTH = 6.6  # pixels of an average character at font size 11, on the wide side: SVG cannot measure text


def nice_ticks(low, high, count=6):
    """About `count` numbers between low and high, 1, 2, 2.5 or 5 times a power of ten apart."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_texts(ticks):
    """The ticks with as many decimals as the one that needs most, or each in its own digits on a log axis."""
    own = [f"{tick:.6g}" for tick in ticks]  # 6 digits hide that 3 * 0.1 is 0.30000000000000004
    if len(ticks) < 3 or any("e" in text for text in own) or not math.isclose(ticks[1] - ticks[0], ticks[2] - ticks[1]):
        return own
    decimals = max(len(text.partition(".")[2]) for text in own)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def text(x, y, words, size=11, anchor="start", extra=""):
    """A <text> element; characters that XML or a line of text cannot hold are dropped."""
    words = escape("".join(c for c in str(words) if c.isprintable()))
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{INK}" {extra}>{words}</text>'


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
