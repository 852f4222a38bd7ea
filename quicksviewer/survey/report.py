"""The report of `data check`, for programs (JSON) and for people (one HTML file).

Rows are written by strangers: every text of theirs is escaped, the page holds no script, and its policy
forbids to run or to load any.
"""

import base64
import re
from collections import defaultdict
from html import escape
from pathlib import Path

from quicksviewer.data.ledger import BadRow
from quicksviewer.utils.config import save_json

FORMAT = 1
EXAMPLES = 50
"""Rows that the page lists for each reason; report.json has all."""
LONGEST = 4000
"""Characters of a piece of text that are shown."""


def pattern(bad: BadRow) -> str:
    """The reason of a bad row without what is special about it: names, numbers and quotations."""
    text = bad.reason.replace(bad.path, "MEDIUM") if bad.path else bad.reason
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]", "…", text)
    return re.sub(r"\d+(\.\d+)?", "N", text)[:160]


def by_reason(rows: list[BadRow]) -> dict[str, list[BadRow]]:
    """Bad rows by the pattern of their reason, the most frequent first."""
    groups = defaultdict(list)
    for bad in rows:
        groups[pattern(bad)].append(bad)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def write_json(path: Path, subject, findings, ledger: Path) -> None:
    """All that was found, for programs. `format` grows when a key changes its meaning."""
    good = [verdict for verdict in findings.verdicts if verdict.bad is None]
    reasons = [
        {"reason": reason, "count": len(rows), "rows": [_told(bad) for bad in rows]}
        for reason, rows in by_reason(findings.bad).items()
    ]
    save_json(
        path,
        {
            "format": FORMAT,
            "subject": subject.name,
            "data_sha256": subject.mixture.fingerprint,
            "max_length": subject.max_length,
            "ledger": str(ledger),
            "rows": len(findings.verdicts),
            "usable": len(good),
            "bad": len(findings.bad),
            "reasons": reasons,
            "ids_used_twice": [
                dict(zip(("where", "first", "uid"), row, strict=True)) for row in findings.twice
            ],
            "tokens": sum(verdict.tokens for verdict in good),
            "learned_tokens": sum(verdict.learned for verdict in good),
            "frames": sum(verdict.frames for verdict in good),
        },
    )


def _told(bad: BadRow) -> dict:
    return {
        key: value and plain(value)
        for key, value in (("where", bad.where), ("uid", bad.uid), ("path", bad.path), ("reason", bad.reason))
    }


def plain(words: str) -> str:
    """Text that UTF-8 can hold: JSON can carry halves of letters."""
    return words.encode("utf-8", "backslashreplace").decode()


# --- the page ---

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
 color: #1c2024; background: #fff; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.5rem; }}
.ok {{ color: #18794e; }} .no {{ color: #b42318; }} .dim {{ color: #60646c; }}
code, pre {{ font: 13px/1.55 ui-monospace, monospace; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f7f9; padding: .8rem;
 border-radius: 6px; }}
pre span, code {{ unicode-bidi: isolate; }}
.learned {{ background: #c9efd7; color: #0b4a2c; }} .medium {{ background: #dbe7ff; color: #1f3d7a; }}
details {{ margin: .4rem 0; }} figure {{ display: inline-block; margin: .2rem; text-align: center; }}
img {{ display: block; height: 96px; border-radius: 4px; }} figcaption {{ font-size: 12px; }}
article {{ border-top: 1px solid #e0e3e8; padding: .6rem 0; }}
</style></head><body>
{body}
</body></html>
"""

LEGEND = """<p class="dim">Marked <span class="learned">green</span>: what is learned.
Marked <span class="medium">blue</span>: slots of media. The rest is read, not learned.</p>"""


def write_html(path: Path, subject, findings, ledger: Path) -> None:
    """The same for people, with the rows that carry a view."""
    bad, rows = len(findings.bad), len(findings.verdicts)
    state = f'<span class="no">{bad} cannot be used</span>' if bad else '<span class="ok">all usable</span>'
    place = f'<span class="dim">Bad rows stand in <code>{text(str(ledger))}</code>.</span>'
    parts = [
        f"<h1>{text(subject.name)}</h1>",
        f"<p>{rows} rows, {state}. Limit {subject.max_length} tokens. {place}</p>",
        *_reasons(findings),
        *_twice(findings),
        "<h2>Rows as the model reads them</h2>",
        LEGEND,
        *(_shown(verdict) for verdict in findings.verdicts if verdict.view is not None),
    ]
    page = PAGE.format(title=text(subject.name), body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def text(words: str) -> str:
    """Text for the page: escaped, without what no page can hold (control characters, halves of letters)."""
    cut = words if len(words) <= LONGEST else f"{words[:LONGEST]} … ({len(words)} characters)"
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", cut))


def _reasons(findings) -> list[str]:
    if not findings.bad:
        return []
    parts = ["<h2>What cannot be used</h2>"]
    for reason, rows in by_reason(findings.bad).items():
        items = [
            f"<li><code>{text(bad.where)}</code> {text(bad.uid or '')}: {text(bad.reason)}</li>"
            for bad in rows[:EXAMPLES]
        ]
        rest = f"<li>and {len(rows) - EXAMPLES} more</li>" if len(rows) > EXAMPLES else ""
        head = f"<summary><b>{len(rows)}</b> {text(reason)}</summary>"
        parts.append(f"<details open>{head}<ul>{''.join(items)}{rest}</ul></details>")
    return parts


def _twice(findings) -> list[str]:
    if not findings.twice:
        return []
    items = [
        f"<li><code>{text(again)}</code> has the id {text(uid)} of <code>{text(first)}</code></li>"
        for again, first, uid in findings.twice[:EXAMPLES]
    ]
    return [f"<h2>Ids used twice: {len(findings.twice)}</h2>", f"<ul>{''.join(items)}</ul>"]


def _shown(verdict) -> str:
    view = verdict.view
    spans = []
    for piece in view.pieces:
        words = f"[{piece.tokens} tokens of media]" if piece.kind == "medium" else piece.text
        spans.append(f'<span class="{piece.kind}">{text(words)}</span>')
    frames = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        f"<figcaption>{second:.1f} s</figcaption></figure>"
        for jpeg, second in view.frames
    )
    told = (
        f"{verdict.modality} of {text(verdict.source)}: {verdict.tokens} tokens, {verdict.learned} learned, "
        f"{view.of} frames"
    )
    return (
        f"<article><p><code>{text(verdict.where)}</code> <b>{text(verdict.uid or '')}</b> "
        f'<span class="dim">{told}</span></p>{frames}<pre>{"".join(spans)}</pre></article>'
    )
