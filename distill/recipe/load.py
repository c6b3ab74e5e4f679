"""Reading a recipe from YAML: overrides, near-miss suggestions, all faults at once, one a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from distill.recipe.data_section import HeadRecipe, RecipeError, near
from distill.recipe.schema import Job, Pretraining, Recipe

Kind = TypeVar("Kind", bound=Job)


def load_recipe(
    path: str | Path, *, data_root: str | Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe of a YAML file, with `overrides` ("student.epochs=20") applied.

    Args:
        path: The YAML file.
        data_root: Folder that data paths are relative to; by default `data.root` of the recipe,
            itself relative to the recipe's folder.
        overrides: `KEY=VALUE`, the key dotted, the value YAML.

    Raises:
        RecipeError: With every fault found, one a line.
    """
    return _parsed(_raw(Path(path), data_root, overrides), Recipe, str(path))


def load_pretraining(
    path: str | Path, *, data_root: str | Path | None = None, overrides: Sequence[str] = ()
) -> Pretraining:
    """The recipe of a pretraining; see `load_recipe`."""
    return _parsed(_raw(Path(path), data_root, overrides), Pretraining, str(path))


def parse_recipe(raw: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """The recipe of plain values; see `load_recipe`."""
    return _parsed(raw, Recipe, where)


def _raw(path: Path, data_root: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise RecipeError(f"{path}: cannot be read: {reason} (give a recipe file)") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: must be a mapping of settings, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    data = raw.get("data")
    if isinstance(data, dict):
        root = Path(data_root) if data_root else path.parent / str(data.get("root", "."))
        data["root"] = str(root.resolve())
    return raw


def _parsed(raw: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = dict.fromkeys(_fault(where, fault, kind) for fault in error.errors())
        raise RecipeError("\n".join(lines)) from None


def _fault(where: str, fault: Any, kind: type[Job]) -> str:
    in_data = fault["loc"][:1] == ("data",)  # where a source's form is a step of its own
    loc = [str(p) for p in fault["loc"] if not (in_data and p in ("str", "Hub", "Fraction"))]
    key, got, context = ".".join(loc), fault["input"], fault.get("ctx", {})
    limits = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [f"must be {limits[k]} {v}" for k, v in context.items() if k in limits]
    if fault["type"] == "extra_forbidden":
        hint = near(loc[-1], _siblings(loc, kind)) or _elsewhere(loc[-1], kind)
        return f"{where}: {key}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{where}: {key}: is required"
    if fault["type"] == "literal_error":
        bounds = [f"must be one of {context['expected']}"]
    if fault["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{context['error']}"
    what = bounds[0] if bounds else fault["msg"][0].lower() + fault["msg"][1:]
    return f"{where}: {key}: {what}, got {got!r}"


def _siblings(loc: Sequence[str], kind: type[Job]) -> list[str]:
    model: Any = kind
    for step in loc[:-1]:
        if step == "heads":
            model = HeadRecipe
        elif step in getattr(model, "model_fields", {}):
            model = model.model_fields[step].annotation
    return list(getattr(model, "model_fields", {}))


def _elsewhere(name: str, kind: type[Job]) -> str:
    """` (did you mean SECTION.x or x?)` where other places of a recipe have a key of that name."""
    fields = kind.model_fields
    models = {section: getattr(field.annotation, "model_fields", {}) for section, field in fields.items()}
    found = [f"{section}.{name}" for section, keys in models.items() if name in keys]
    found += [name] if name in fields else []
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: expected KEY=VALUE, as in student.epochs=20")
    *path, last = key.split(".")
    place: Any = raw
    for step in path:
        if place.get(step) is None:  # missing, or a section left empty
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {step!r} is a value, not a section")
    try:
        place[last] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and floats (`no` is a word, `1e-4` a number); a key given twice fails."""

    yaml_implicit_resolvers = {  # noqa: RUF012  declared so by PyYAML
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"  # `<<`, whose keys may be given again
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true\Z|false\Z"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?\Z"),
    list("-+.0123456789"),
)
