"""Makes docs/recipe.md, a table of every setting, from the schema: `python -m distill.recipe.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from distill.recipe.data_section import HeadRecipe
from distill.recipe.data_sources import Fraction, Hub, LabelledSource
from distill.recipe.load import optional_part
from distill.recipe.schema import Recipe

INTRODUCTION = """# Recipe settings

A recipe names the data and the heads; every other setting has a default. `--set KEY=VALUE` overrides one on
the command line. `python -m distill.recipe.reference` makes this page from the schema.
"""


def reference() -> str:
    """The page in Markdown."""
    sections: dict[str, list[str]] = {}
    for section, name, field in settings():
        row = f"| `{name}` | {_values(field)} | {_default(field)} | {field.description} |"
        sections.setdefault(section, []).append(row)
    parts = [INTRODUCTION]
    for section, rows in sections.items():
        title = f"## {section}" if section else "## Top level"
        parts += [f"{title}\n", "| setting | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def settings() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every setting of a recipe: its section ("" at the top level), its name and its field."""
    sections: list[tuple[str, type[BaseModel]]] = []
    for name, field in Recipe.model_fields.items():
        if name == "heads":
            sections.append(("heads.NAME", HeadRecipe))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
        else:
            yield "", name, field
        if name == "data":
            sections.append(("data.train, a source of several", LabelledSource))
    for section, model in sections:
        inner = []
        for name, field in model.model_fields.items():
            if part := optional_part(field.annotation):
                inner.append((f"{section}.{name}", part))
            else:
                yield section, name, field
        for name, part in inner:
            for setting, field in part.model_fields.items():
                yield name, setting, field


def _values(field: FieldInfo) -> str:
    """The type and range of a setting."""
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(item, name, None) is not None
    ]
    return " ".join([" or ".join(dict.fromkeys(_types(field.annotation))), ", ".join(limits)]).strip()


def _types(annotation: Any) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (f"`{value}`" for value in inner)
    elif origin is tuple:
        yield f"list of {' or '.join(dict.fromkeys(_types(inner[0])))}"
    elif origin in (Union, UnionType):
        for one in inner:
            yield from _types(one)
    elif origin is dict or annotation in (Hub, Fraction):
        yield "mapping"
    elif inner:  # Annotated
        yield from _types(inner[0])
    elif annotation is LabelledSource:
        yield "sources"
    elif annotation is not type(None):
        yield {"str": "text", "int": "integer", "float": "number"}.get(
            annotation.__name__, annotation.__name__
        )


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    default = field.default
    if isinstance(default, Fraction):
        return f"`{{from: train, fraction: {default.fraction}}}`"
    if default is None:
        return ""
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`"


if __name__ == "__main__":
    print(reference(), end="")
