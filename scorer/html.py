"""A plain dict as HTML; knows no type of ours."""

from __future__ import annotations

from typing import Any

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
