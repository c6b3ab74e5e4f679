"""Recipes from YAML: read a file, apply overrides, validate. All errors are reported together, one a line."""

from __future__ import annotations

import io
import json
import reprlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import CollectionNode, Node, ScalarNode

from distill.recipe.data_section import HeadRecipe, RecipeError
from distill.recipe.data_sources import LabelledSource, Part
from distill.recipe.near import near
from distill.recipe.schema import Job, Pretraining, Recipe

MAX_BYTES = 250_000  # size of a recipe file
MAX_VALUES = 20_000  # values in a recipe, also after aliases are expanded
MAX_DEPTH = 100  # levels of a recipe
MAX_ERRORS, LONG = 20, 500  # errors that are listed, and characters of each

Kind = TypeVar("Kind", bound=Job)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


def load_recipe(
    path: str | Path, *, data_root: str | Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe in a YAML file, with `overrides` such as "student.epochs=20" applied.

    Args:
        path: The YAML file.
        data_root: Folder that data paths are relative to. The default is `data.root` of the recipe,
            which is itself relative to the recipe's folder.
        overrides: `KEY=VALUE` strings. The key is dotted and the value is YAML.

    Raises:
        RecipeError: The file cannot be read or the recipe is invalid. Every error is a line of its own.
    """
    return _validated(_raw(Path(path), data_root, overrides), Recipe, str(path))


def load_pretraining(
    path: str | Path, *, data_root: str | Path | None = None, overrides: Sequence[str] = ()
) -> Pretraining:
    """The pretraining recipe in a YAML file. Arguments and errors are those of `load_recipe`."""
    return _validated(_raw(Path(path), data_root, overrides), Pretraining, str(path))


def overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings with `overrides` applied, as in `load_recipe`; `raw` is unchanged."""
    changed = deepcopy(dict(raw))
    for override in overrides:
        _override(changed, override)
    return changed


def parse_recipe(raw: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """The recipe described by a mapping.

    Args:
        raw: Sections and settings, as `load_yaml` returns them.
        where: Name of the recipe in error messages.

    Raises:
        RecipeError: The recipe is invalid. Every error is a line of its own.
    """
    return _validated(raw, Recipe, where)


def load_yaml(text: str, where: str = "YAML") -> Any:
    """The value of a YAML 1.2 document, made of dicts, lists, strings, numbers, booleans and None.

    Args:
        text: The document.
        where: Name of the document in error messages.

    Raises:
        RecipeError: The text is not YAML, has a duplicate key, or is too deeply nested or too large.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _Constructor
        _check_size(yaml, text, where)
        if (node := yaml.compose(text)) is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise _too_many(where)
        return yaml.constructor.construct_document(node)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark and "\n" in text else where
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        if isinstance(error, DuplicateKeyError):
            raise RecipeError(f"{place}: {problem.partition(' with value')[0]} (remove one)") from None
        raise RecipeError(f"{place}: is not YAML: {problem}") from None


class _Constructor(SafeConstructor):
    """Makes values; the error of a scalar has its line."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if not isinstance(node, ScalarNode):
                raise
            kind, value = str(node.tag).rpartition(":")[2], _short.repr(node.value)
            problem = f"{value} is not a valid {kind} (quote it if it is a string)"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _too_many(where: str) -> RecipeError:
    return RecipeError(f"{where}: has over {MAX_VALUES} values, expected a recipe (use fewer aliases)")


def _check_size(yaml: YAML, text: str, where: str) -> None:
    """Refuse a document of too many values or levels before its nodes are made."""
    depth = 0
    for count, event in enumerate(yaml.parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            place = f"{where}:{event.start_mark.line + 1}" if "\n" in text else where
            raise RecipeError(f"{place}: is nested too deeply, expected a recipe of a few levels")
        if count > 2 * MAX_VALUES:
            raise _too_many(where)


def dump_yaml(value: object) -> str:
    """A value as a YAML 1.2 document that `load_yaml` reads back, keys in the given order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    yaml.allow_unicode = False  # written as it is, U+0085 would read back as a space
    yaml.width = 1000
    yaml.dump(value, stream := io.StringIO())
    return stream.getvalue()


def _size(node: Node, sizes: dict[int, int]) -> int:
    """The number of values below a node, where an alias counts as all that it stands for."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1  # what a node that contains itself adds
        children = node.value if isinstance(node, CollectionNode) else ()
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in flat)
    return sizes[id(node)]


def _raw(path: Path, data_root: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    raw = load_yaml(_text(path), str(path))
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"is a {type(raw).__name__}"
        raise RecipeError(f"{path}: {what}, expected a mapping of settings")
    raw = overridden(raw, overrides)
    data = raw.get("data")
    if isinstance(data, dict):
        root = Path(data_root) if data_root else path.parent / str(data.get("root", "."))
        try:
            data["root"] = str(root.resolve())
        except (
            ValueError,
            OSError,
            RuntimeError,
        ):  # null characters, half of a surrogate pair, loops of links
            raise RecipeError(f"{path}: data.root: must be a path, got {_short.repr(str(root))}") from None
    return raw


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RecipeError(f"{path}: is not a regular file, expected a YAML file (write it to a file)")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path}: has over {MAX_BYTES} bytes, expected a recipe")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise RecipeError(f"{path}: cannot be read: {reason} (give a recipe in a UTF-8 YAML file)") from None


def _validated(raw: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    try:
        json.dumps(raw, ensure_ascii=False, skipkeys=True, default=str).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no file of a run could hold
        raise RecipeError(f"{where}: has characters that UTF-8 cannot encode (remove them)") from None
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        messages = [_message(where, each, kind, raw) for each in details[:MAX_ERRORS]]
        lines = [line if len(line) <= LONG else f"{line[:LONG]}…" for line in dict.fromkeys(messages)]
        if len(details) > MAX_ERRORS:
            lines.append(f"{where}: {len(details) - MAX_ERRORS:,} more errors")
        raise RecipeError("\n".join(lines)) from None


def _message(where: str, details: ErrorDetails, kind: type[Job], raw: Mapping[str, Any]) -> str:
    """One line about an error that pydantic reports."""
    # pydantic adds the form of a source as a step of its own
    in_data = details["loc"][:1] == ("data",)
    loc = [str(p) for p in details["loc"] if not (in_data and p in ("str", "list", "Hub", "Fraction"))]
    key, context = ".".join(loc), details.get("ctx", {})
    limits = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [f"must be {limits[k]} {v}" for k, v in context.items() if k in limits]
    if details["type"] == "extra_forbidden":
        hint = near(loc[-1], _known_keys(loc, kind)) or _elsewhere(loc[-1], kind)
        return f"{where}: {key}: unknown key{hint}"
    if details["type"] == "missing":
        return f"{where}: {key}: is required"
    if details["type"] == "literal_error":
        bounds = [f"must be one of {context['expected']}"]
    if details["type"] == "value_error":
        hint = near(loc[1], [*raw["heads"].keys() - {loc[1]}]) if loc[:1] == ["heads"] and loc[1:] else ""
        return f"{where}: {key + ': ' if key else ''}{context['error']}{hint}"
    what = bounds[0] if bounds else details["msg"][0].lower() + details["msg"][1:]
    return f"{where}: {key}: {what}, got {_short.repr(details['input'])}"


def _known_keys(loc: Sequence[str], kind: type[Job]) -> list[str]:
    """The keys of the section that a location is in."""
    in_source = [*loc[:2]] == ["data", "train"] and "".join(loc[2:3]).isdecimal()
    model: Any = LabelledSource if in_source else kind
    for step in loc[:-1]:
        if step == "heads":
            model = HeadRecipe
        elif step in getattr(model, "model_fields", {}):
            annotation = model.model_fields[step].annotation
            model = optional_part(annotation) or annotation
    return list(getattr(model, "model_fields", {}))


def optional_part(annotation: Any) -> type[Part] | None:
    """The section that a setting of this type may hold, if it is `SECTION | None`."""
    parts = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, Part)]
    return parts[0] if parts else None


def _elsewhere(name: str, kind: type[Job]) -> str:
    """` (did you mean SECTION.x or x?)` if other sections have a key of that name."""
    fields = kind.model_fields
    models = {section: getattr(field.annotation, "model_fields", {}) for section, field in fields.items()}
    keys = [f"{section}.{name}" for section, known in models.items() if name in known]
    keys += [name] if name in fields else []
    return f" (did you mean {' or '.join(map(repr, keys))}?)" if keys else ""


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: expected KEY=VALUE, such as student.epochs=20")
    *path, last = key.split(".")
    place: Any = raw
    for step in path:
        if place.get(step) is None:  # missing, or a section left empty
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {step!r} is a value, expected a section")
    place[last] = load_yaml(value, f"--set {override!r}")
