"""The pieces of an HTML page: tables, sections, and the page around them with its one style sheet.

Arguments called ``cells``, ``rows``, ``header`` or ``body`` are HTML already; everything else is text and
escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def page(title: str, body: Iterable[str]) -> str:
    """The whole document. Its policy forbids scripts and anything from outside.

    >>> page("Tom & Jerry", []).count("Tom &amp; Jerry")
    1
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{chr(10).join(part for part in body if part)}
</main>
</body>
</html>
"""


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; the first cell of a row is its header.

    >>> table("Cups", ["size", "price"], [["small", "2"]]).count("<th")
    4
    """
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def facts(values: Mapping[str, str]) -> str:
    """Names and values as a list to read at a glance.

    >>> facts({"data": "esci"}).count("esci")
    1
    """
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items()
    )
    return f'<dl class="facts">{entries}</dl>'


def section(title: str, *parts: str) -> str:
    """A heading with its content; nothing without content.

    >>> section("Speed", "")
    ''
    """
    content = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def grid(figures: Sequence[str]) -> str:
    """Figures beside each other where there is room; nothing where there is none.

    >>> grid([""])
    ''
    """
    return f'<div class="grid">{"".join(figures)}</div>' if any(figures) else ""


_STYLE = """
:root{color-scheme:light dark;--page:#fdfdfc;--ink:#1f2328;--soft:#5c6570;--rule:#dfe2e6;--band:#f3f4f5;
--c0:#0b62a8;--c1:#c2410c;--c2:#0f766e;--c3:#9d2a7b;--c4:#8a6100;--c5:#4b5563}
@media (prefers-color-scheme:dark){:root{--page:#15181c;--ink:#e6e8eb;--soft:#9ba4ae;--rule:#323840;--band:#1d2126;
--c0:#6cb4f5;--c1:#fb923c;--c2:#4fd1c0;--c3:#f08fd0;--c4:#e3bd4f;--c5:#b4bcc6}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:40px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--rule)}
header p{margin:0;color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:4px 24px;margin:12px 0 0;font-size:.85rem}
.facts div{display:flex;gap:6px}.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:0 0 20px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,420px)}
caption{text-align:left;color:var(--soft);padding:0 0 6px}
th,td{padding:5px 18px 5px 0;text-align:right;vertical-align:top;white-space:nowrap}
th:first-child{text-align:left;position:sticky;left:0;background:var(--page);font-weight:500;
white-space:normal;min-width:8.8rem;max-width:22rem;overflow-wrap:anywhere}
thead th{font-weight:600;border-bottom:1px solid var(--rule);vertical-align:bottom}
tbody tr+tr>*{border-top:1px solid var(--rule)}
abbr{text-decoration:underline dotted var(--soft);text-underline-offset:3px;cursor:help}
small,.range,.note,.notes{color:var(--soft)}
.range{display:block;font-size:.78rem}
.notes{font-size:.85rem;padding-left:18px;margin:0;max-width:75ch}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:28px}
figure{margin:0;max-width:480px;min-width:0}
figcaption{font-weight:600;overflow-wrap:anywhere}
.note{font-size:.82rem;margin:4px 0 0}
.chart{display:block;width:100%;height:auto}
.chart text{fill:var(--soft);font-size:11px}
.chart text.name{fill:var(--ink)}
.grid line.grid,.chart .grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
.guide{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4;fill:none}
.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
.dot,.bar{fill:currentColor}.bar{opacity:.8}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:4px 0 0;padding:0;font-size:.85rem}
.legend li{display:flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.swatch{width:24px;height:8px;flex:none}
.key{display:inline-block;width:9px;height:9px;border-radius:50%;background:currentColor;margin-right:6px}
.s0{color:var(--c0)}.s1{color:var(--c1)}.s2{color:var(--c2)}.s3{color:var(--c3)}.s4{color:var(--c4)}.s5{color:var(--c5)}
details{border-top:1px solid var(--rule);padding:8px 0}
summary{cursor:pointer;font-weight:500;overflow-wrap:anywhere}
details .scroll{margin:8px 0 8px}
th:last-child,td:last-child{padding-right:2px}
@media (max-width:480px){table{font-size:.82rem}th,td{padding-right:10px}th:first-child{min-width:6.5rem}}
@media print{details>*{display:block}main{max-width:none}}
"""
