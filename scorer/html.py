"""Plain values as HTML; knows no type of ours."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).with_name("templates")
_FACTS = """<table style="text-align:left"><caption style="text-align:left"><b>{{ title }}</b></caption>
{%- for name, value in rows %}
<tr><th style="text-align:left;vertical-align:top;padding-right:1em">{{ name }}</th>
<td style="text-align:left">
{%- if value is mapping %}{% for k, v in value.items() %}{{ k }}: {{ v }}<br>{% endfor %}
{%- elif value is sequence and value is not string %}{% for v in value %}{{ v }}<br>{% endfor %}
{%- else %}{{ value }}{% endif -%}
</td></tr>
{%- endfor %}
</table>"""


def facts(title: str, values: dict[str, Any]) -> str:
    """A two-column table; empty values are left out, everything is escaped."""
    import jinja2  # noqa: PLC0415 - only notebooks and reports show HTML

    template = jinja2.Environment(autoescape=True).from_string(_FACTS)
    rows = [(name, value) for name, value in values.items() if value not in ("", None, (), [], {})]
    return template.render(title=title, rows=rows)


def page(name: str, /, **values: Any) -> str:  # noqa: ANN401 - whatever the template shows
    """A whole page from a template, everything escaped, with its style sheet and script inside.

    Its policy lets these two work, known by their digests, and nothing else: no request, no other script.
    """
    import jinja2  # noqa: PLC0415 - only notebooks and reports show HTML

    style, script = ((_TEMPLATES / Path(name).with_suffix(kind)).read_text("utf-8") for kind in (".css", ".js"))
    own = f"style-src {_source(style)}; script-src {_source(script)}; img-src data:"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((_TEMPLATES / name).read_text("utf-8"))
    return template.render(style=style, script=script, policy=policy, **values)


def _source(text: str) -> str:
    """How a policy names what stands between two tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
