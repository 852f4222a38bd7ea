"""A conversation template as Jinja, which is how other programs read it from a checkpoint folder."""

import json

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.conversation import END_OF_TEXT, ROLES, Template

RULES = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'text' -%}{{ part.text }}
{%- elif part.type in marks -%}{{ marks[part.type] }}
{%- else -%}{{ raise_exception('content of type ' ~ part.type) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- begin -}}
{%- if messages[0].role != 'system' -%}{{ default_system }}{%- endif -%}
{%- for message in messages -%}
{%- set text = text_of(message.content) -%}
{{- openings[message.role] -}}
{%- if strip -%}{{ text | trim }}{%- else -%}{{ text }}{%- endif -%}
{%- if message.role == 'assistant' -%}{{ ending }}{%- else -%}{{ closing }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ openings.assistant }}{%- endif -%}
"""


def chat_template(template: Template) -> str:
    """Renders messages (role; content: a text, or a list of text, image and video entries) to the text that
    `render` gives. What `render` refuses it does not refuse."""
    system = template.default_system
    strings = {
        "begin": template.begin,
        "default_system": "" if system is None else template.opening_of("system") + system + template.closing,
        "closing": template.closing,
        "ending": template.ending + template.gap,
    }
    values = {
        "marks": json.dumps({"image": IMAGE_MARK, "video": VIDEO_MARK}),
        "openings": json.dumps({role: template.opening_of(role) for role in ROLES}),
        "strip": str(template.strip).lower(),
        **{name: _expression(text) for name, text in strings.items()},
    }
    return "".join(f"{{%- set {name} = {value} -%}}\n" for name, value in values.items()) + RULES


def _expression(text: str) -> str:
    """A text as Jinja writes it; the end of text of the tokenizer has a name there."""
    return " ~ eos_token ~ ".join(json.dumps(part) for part in text.split(END_OF_TEXT))
