"""The settings of a run beside their defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from cftjax.runs import plain


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        name: as in config.json, such as `ga.population_size`.
        value: as JSON.
        default: what it is unless set, as JSON; None where it must be given.
    """

    name: str
    value: str
    default: str | None

    @property
    def changed(self) -> bool:
        """Whether it is not the default."""
        return self.value != self.default


def of_config(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration beside the default of its dataclass, in the order of the fields.

    Args:
        config: a dataclass of values and dataclasses.
        prefix: before the names.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from of_config(value, f"{name}.")
            continue
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        given = None if default is dataclasses.MISSING else json.dumps(plain(default), ensure_ascii=False)
        yield Setting(name, json.dumps(plain(value), ensure_ascii=False), given)


def table(settings: Sequence[Setting]) -> str:
    """All settings; a changed one is marked in colour and in words."""
    if not settings:
        return "<p>The caller gave none.</p>"
    rows = []
    for setting in settings:
        default = ""
        if setting.changed:
            default = "must be given" if setting.default is None else f"default <code>{escape(setting.default)}</code>"
        rows.append(
            f'<tr{" class=changed" if setting.changed else ""}><th scope="row"><code>{escape(setting.name)}</code>'
            f"<td><code>{escape(setting.value)}</code><td>{default}"
        )
    head = "".join(f'<th scope="col">{word}' for word in ("setting", "value", ""))
    words = "As in config.json. Those in colour differ from the defaults, which stand beside them."
    return f"<p class='soft small'>{words}</p><table><thead><tr>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
