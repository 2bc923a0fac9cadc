# SPDX-License-Identifier: Apache-2.0
"""A record's text and group: one field, a template of several, or a conversation; what is no text is an error."""

import dataclasses
import functools
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from ..errors import UserError, shown, unknown

CHAT_FIELDS: Final = ("messages", "conversations")
"""Where data sets of conversations keep them; read where the field `text` is asked for and not there."""
ROLES: Final = {"human": "user", "gpt": "assistant"}
"""Of the form {"from", "value"}, as the form {"role", "content"} has them."""
LONGEST_GROUP: Final = 200
"""Characters of a group's name: a report writes each name on hundreds of places."""

type Render = Callable[[list[dict[str, str]]], str]


def contents(messages: list[dict[str, str]]) -> str:
    """What the messages say, a blank line between two; roles belong to a model's chat template."""
    return "\n\n".join(m["content"] for m in messages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFields:
    """How a person says what in their files is text: options of every command, arguments of `read_groups`."""

    field: str = "text"
    """Of a record: the field that holds its text, or several as in "{question} {answer}"."""
    group_field: str = "group"
    """Of a record: the field that names its group, where one file holds all groups."""
    split: str = "train"
    """Of a data set with several splits."""
    skip_bad_rows: bool = False
    """Pass over records that are damaged or have no text or group, and say how many, instead of stopping."""

    def arguments(self) -> dict[str, Any]:
        """For `read_groups`."""
        return {
            "text_field": self.field,
            "group_field": self.group_field,
            "split": self.split,
            "skip_bad": self.skip_bad_rows,
        }


_GROUP_HINT: Final = "Name the field with group_field (on the command line: --group-field)."
_TEXT_HINT: Final = (
    "Name the field with text_field (on the command line: --field), or several, as in '{question} {answer}'."
)


class Fields(NamedTuple):
    """Which fields of a record are its text and its group."""

    text: str = "text"
    """A field's name, or a template such as "{instruction}\\n{output}"."""
    group: str | None = None
    """A field's name; None: the place of the file says the group."""
    otherwise: str | None = None
    """The group of a record without that field; None: an error."""
    render: Render = contents
    """[{"role", "content"}, ...] -> text."""
    may_be_empty: bool = True
    """An empty text is left out; False: it is an error."""
    text_hint: str = _TEXT_HINT
    """What to do where the text's field is missing, and where the group's is:"""
    group_hint: str = _GROUP_HINT


def text_of(record: Mapping[str, Any], fields: Fields, where: str) -> str:
    """The text of a record.

    Raises:
      UserError: a field is missing, or holds no text.
    """
    if names := template_fields(fields.text):
        values = {n: _field(record, n, where, fields.text_hint) for n in names}
        filled = {
            n: "" if v is None else str(v) if type(v) is int else check_text(v, where, n) for n, v in values.items()
        }
        return _not_empty(fields.text.format_map(filled), fields, where)
    value = _field(record, text_field(fields.text, record), where, fields.text_hint)
    if isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value):
        return check_text(fields.render([_message(m, where) for m in value]), where)
    return _not_empty(check_text(value, where), fields, where)


def _not_empty(text: str, fields: Fields, where: str) -> str:
    if not fields.may_be_empty and not text.rpartition("\0")[2].strip():
        raise UserError(f"{where}: the field {fields.text.rpartition('\0')[2].strip('{}')!r} is empty.")
    return text


def group_of(record: Mapping[str, Any], fields: Fields, where: str) -> str | None:
    """The group that a record names, or None where its file says it."""
    if fields.group is None:
        return None
    if fields.otherwise is not None and fields.group not in record:
        return fields.otherwise
    return group_name(_field(record, fields.group, where, hint=fields.group_hint), where)


def columns(fields: Fields, known: Collection[str], where: str) -> list[str]:
    """The columns of a table that a record's text and group are in.

    Raises:
      UserError: there is no such column.
    """
    wanted = [*template_fields(fields.text)] or [text_field(fields.text, known)]
    for name in wanted:
        if name not in known:
            raise unknown("field", name, known, where=where, hint=fields.text_hint)
    if fields.group is not None and (fields.group in known or fields.otherwise is None):
        if fields.group not in known:
            raise unknown("field", fields.group, known, where=where, hint=fields.group_hint)
        wanted.append(fields.group)
    return list(dict.fromkeys(wanted))


@functools.cache
def template_fields(text: str) -> tuple[str, ...]:
    """The names in a template such as "{a} {b}"; () for the name of one field.

    Raises:
      UserError: braces that do not stand around names.
    """
    if "{" not in text and "}" not in text:
        return ()
    try:
        parts = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        names = [name for name, _, _ in parts if name]
        if not names or len(names) < len(parts) or any(spec or conversion for _, spec, conversion in parts):
            raise ValueError("each pair of braces must hold the name of a field")
        if any(set(n) & set(".[") for n in names):
            raise ValueError("a field inside another cannot be named")
    except ValueError as e:
        raise UserError(f"text_field = {text!r}: {e}. Write a field's name, or '{{question}} {{answer}}'.") from e
    return tuple(dict.fromkeys(names))


def text_field(name: str, known: Collection[str]) -> str:
    """The field that holds the text: the one asked for, or a conversation where "text" is not there."""
    if name == Fields().text and name not in known:
        return next((n for n in CHAT_FIELDS if n in known), name)
    return name


def _field(record: Mapping[str, Any], name: str, where: str, hint: str) -> Any:
    if name not in record:
        raise unknown("field", name, record, where=where, hint=hint)
    return record[name]


def _message(message: Mapping[str, Any], where: str) -> dict[str, str]:
    for role, content in (("role", "content"), ("from", "value")):
        if role in message and content in message:
            name = check_text(message[role], where, role)
            return {"role": ROLES.get(name, name), "content": _content(message[content], where)}
    raise UserError(
        f"{where}: a message has the fields {', '.join(map(str, message))}; needed are role and content, or from and "
        "value."
    )


def _content(value: Any, where: str) -> str:
    """Text, nothing (a call of a tool), or parts of which those of type "text" are text."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        return "".join(check_text(p.get("text"), where) for p in value if p.get("type", "text") == "text")
    return check_text(value, where)


def check_text(value: Any, where: str, name: str = "text") -> str:
    """A record's text: a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UserError(f"{where}: the {name} is {_kind(value)}; a string is needed.")
    check_utf8(value, f"{where}: the {name}")
    return value


def check_utf8(text: str, what: str) -> None:
    """Refuse a string that UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UserError(f"{what} holds half a surrogate pair at character {e.start}, no UTF-8.") from None


def group_name(value: Any, where: str) -> str:
    """A record's group: a whole number, or a string that is not empty and short enough to stand on every card."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: the group is {_kind(value)}; a name or a whole number is needed.")
    if len(name := str(value)) > LONGEST_GROUP:
        raise UserError(
            f"{where}: the group's name {shown(name, 40)!r} has {len(name):,} characters; at most {LONGEST_GROUP} are "
            "allowed. Give a short name."
        )
    return name


def _kind(value: Any) -> str:
    return "empty" if value is None or value == "" else f"{repr(value)[:40]} ({type(value).__name__})"
