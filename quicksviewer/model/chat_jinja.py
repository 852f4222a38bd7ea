"""A conversation template as Jinja, which is how other programs read it from a checkpoint folder."""

import json

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.conversation import END_OF_TEXT, ROLES, Template

TEXT = (
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- elif part.type == 'image' -%}{{ IMAGE }}"
    "{%- elif part.type == 'video' -%}{{ VIDEO }}"
    "{%- else -%}{{ raise_exception('content of type ' ~ part.type) }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)


def chat_template(template: Template) -> str:
    """Renders messages (role; content: a text, or a list of text, image and video entries) to the text that
    `render` gives. What `render` refuses it does not refuse."""
    said = "text_of(message.content)" + (" | trim" if template.strip else "")
    system = ""
    if template.default_system is not None:
        first = template.opening.format(role="system") + template.default_system + template.closing
        system = f"{{%- if messages[0].role != 'system' -%}}{{{{ {_quoted(first)} }}}}{{%- endif -%}}"
    answer = _quoted(template.opening.format(role="assistant"))
    openings = " ".join(
        f"{{%- {'if' if role == ROLES[0] else 'elif'} message.role == '{role}' -%}}"
        f"{{{{ {_quoted(template.opening.format(role=role))} }}}}"
        for role in ROLES
    )
    return (
        TEXT.replace("{{ IMAGE }}", f"{{{{ '{IMAGE_MARK}' }}}}").replace(
            "{{ VIDEO }}", f"{{{{ '{VIDEO_MARK}' }}}}"
        )
        + f"{{{{- {_quoted(template.begin)} }}}}"
        + system
        + "{%- for message in messages -%}"
        + openings.replace("}} {%-", "}}{%-")
        + "{%- endif -%}"
        + f"{{{{ {said} }}}}"
        + f"{{%- if message.role == 'assistant' -%}}{{{{ {_quoted(template.ending + template.gap)} }}}}"
        + f"{{%- else -%}}{{{{ {_quoted(template.closing)} }}}}{{%- endif -%}}"
        + "{%- endfor -%}"
        + f"{{%- if add_generation_prompt -%}}{{{{ {answer} }}}}{{%- endif -%}}"
    )


def _quoted(text: str) -> str:
    """A Jinja expression of a text; the tokenizer's end of text has a name of its own there."""
    return " ~ ".join(
        "eos_token" if part == END_OF_TEXT else json.dumps(part)
        for part in text.replace(END_OF_TEXT, f"\0{END_OF_TEXT}\0").split("\0")
        if part or text == ""
    )
