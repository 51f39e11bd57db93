"""Settings as JSON can hold them, and where two of them differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Settings as JSON can hold them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Plain settings by option, such as `training.batch-size`."""
    if not isinstance(value, dict):
        return {name.replace("_", "-"): value}
    by_option: dict[str, Any] = {}
    for key, item in value.items():
        by_option |= flat(item, f"{name}.{key}" if name else key)
    return by_option


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where plain settings differ, as `training.epochs: 6 -> 12`."""
    if isinstance(old, dict) and isinstance(new, dict):
        both = [*old, *(key for key in new if key not in old)]
        return [d for key in both for d in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for pair in zip(old, new, strict=True) for d in differences(*pair, name)]
    return [] if old == new else [f"{name}: {old} -> {new}"]
