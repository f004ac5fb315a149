"""The parts of the site that are written from the code: pipeline files' keys and commands' help."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import typer

from spptransfer import cli

SCHEMA = Path(__file__).parent.parent / "pipelines" / "pipeline.schema.json"
Schema = dict[str, Any]


def read_schema() -> tuple[Schema, Schema]:
    """Return the sections by name, and all definitions."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema["properties"], schema["$defs"]


def values(key: Schema, definitions: Schema) -> str:
    """Say what values a key takes, in words."""
    if "$ref" in key:
        return values(definitions[key["$ref"].rsplit("/", 1)[1]], definitions)
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if "anyOf" in key or "oneOf" in key:
        kinds = [values(kind, definitions) for kind in key.get("anyOf") or key["oneOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if key.get("type") == "array":
        inner = key.get("items") or (key.get("prefixItems") or [{}])[0]
        return f"list of {values(inner, definitions) or 'values'}"
    names = {"null": "null", "string": "text", "boolean": "true or false", "object": "mapping"}
    return names.get(key.get("type", ""), key.get("type", ""))


def shown(default: Any) -> str:
    """Write a default as in YAML."""
    return f"`{json.dumps(default)}`".replace('"', "")


def cell(text: str) -> str:
    """Escape what ends a cell."""
    return text.replace("|", "\\|")


def sections_of(key: Schema, definitions: Schema) -> list[Schema]:
    """Return the definitions that a section may be."""
    references = [each for kind in ("anyOf", "oneOf") for each in key.get(kind, [])] or [key]
    found = [each["$ref"].rsplit("/", 1)[1] for each in references if "$ref" in each]
    return [definitions[name] for name in found]


def section_table(variants: list[Schema], definitions: Schema) -> str:
    """Write one table of the keys of a section, whichever of its names have them."""
    keys: dict[str, list[tuple[str, Schema]]] = defaultdict(list)
    for variant in variants:
        name = variant["properties"].get("name", {}).get("const", "")
        for key, schema in variant["properties"].items():
            keys[key].append((name, schema))
    lines = ["| key | default | values |", "|---|---|---|"]
    for key, found in keys.items():
        texts = list(dict.fromkeys(schema.get("description", "") for _, schema in found))
        kinds = list(dict.fromkeys(values(schema, definitions) for _, schema in found))
        what = "; ".join(text for text in texts if text)
        what = f"{what} ({', '.join(kinds)})" if what else ", ".join(kinds)
        if 1 < len(variants) != len(found):
            what += "; for " + ", ".join(f"`{name}`" for name, _ in found)
        lines.append(f"| `{key}` | {defaults(found)} | {cell(what)} |")
    return "\n".join(lines)


def defaults(found: list[tuple[str, Schema]]) -> str:
    """Write the default of a key, by the section's name where they differ."""
    by_default: dict[str, list[str]] = defaultdict(list)
    for name, schema in found:
        by_default[shown(schema["default"]) if "default" in schema else ""].append(name)
    if len(by_default) == 1:
        return cell(next(iter(by_default)))
    return "; ".join(
        f"{cell(default) or 'none'} ({', '.join(names)})" for default, names in by_default.items()
    )


def pipeline_keys() -> str:
    """Write the tables of all sections of a pipeline file."""
    properties, definitions = read_schema()
    parts = []
    for name, key in properties.items():
        variants = sections_of(key, definitions)
        parts.append(f"### {name}\n\n{section_table(variants, definitions)}\n")
        if name == "grid":
            for line in ("GridRow", "GridColumn"):
                title = "rows" if line == "GridRow" else "columns"
                parts.append(f"Each of `{title}`:\n\n{section_table([definitions[line]], {})}\n")
    return "\n".join(parts)


def commands() -> str:
    """Write the help of every command."""
    root = typer.main.get_command(cli.app)
    context = root.context_class(root, info_name="spptransfer", **root.context_settings)
    return "\n".join(_help(root, context))


def _help(command: Any, parent: Any) -> list[str]:
    lines = []
    for name in command.list_commands(parent):
        child = command.get_command(parent, name)
        context = child.context_class(child, info_name=name, parent=parent, terminal_width=88)
        if hasattr(child, "list_commands"):
            lines += _help(child, context)
        else:
            lines += [f"## {context.command_path}\n", f"```text\n{child.get_help(context)}\n```\n"]
    return lines


PARTS = {"pipeline keys": pipeline_keys, "commands": commands}
