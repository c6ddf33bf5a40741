"""The JSON Schema of profiles, made from the constructors of the parts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from isolate.tools.profiles.policy import KEYS
from isolate.tools.profiles.words import ENTRIES, PARTS, REFUSED, VERSION, class_of, keys_of, listed, mapping

if TYPE_CHECKING:
    import inspect

__all__ = ["schema"]

_WORDS = {
    r"\bbool\b": {"type": "boolean"},
    r"\bint\b": {"type": "integer"},
    r"\bfloat\b": {"type": "number"},
    r"\bstr\b|Literal|\bbytes\b|Path\b|\bSource\b|\bSize\b|\bLimit\b|\bCaps\b": {"type": "string"},
    r"\bSize\b|\bLimit\b|SecureBits": {"type": "integer"},
    r"[Tt]uple|Iterable|Sequence|frozenset|\bLimit\b|\bCaps\b|\bAccess\b": {"type": "array"},
}
_PORTS = {"type": ["integer", "string"]}
_PUBLISH = {
    "description": "ports of the host's, and those inside that they lead to",
    "anyOf": [
        {"type": "object", "additionalProperties": _PORTS},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "host": _PORTS,
                    "port": _PORTS,
                    "protocol": {"enum": ["tcp", "udp"]},
                    "address": {"type": "string"},
                },
                "required": ["host", "port"],
                "additionalProperties": False,
            },
        },
    ],
}
_HANDLES: dict[tuple[str, str], dict[str, Any]] = {
    ("Interface", "network"): {"type": "string", "description": "the name of a network: isolate net create NAME"},
    ("Interface", "egress"): {"type": "array", "items": {"type": "string"}},
    ("Interface", "ingress"): {"type": "array", "items": {"type": "string"}},
    ("ImageRoot", "image"): {"type": "string", "description": "a name or a digest in the store"},
    ("ImageRoot", "store"): {
        "description": "the directory of the store; without it, the one of the command line",
        "anyOf": [
            {"type": "string"},
            {"$ref": "#/$defs/escape"},
            {
                "type": "object",
                "properties": {
                    "path": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/escape"}]},
                    "map": {"type": "object"},
                    "share": {"enum": [True, False, "contents"]},
                    "read_only": {"type": "boolean"},
                },
                "additionalProperties": False,
            },
        ],
    },
}
_ESCAPE = {
    "description": "a value that TOML or JSON has no word for",
    "oneOf": [
        {"type": "object", "properties": {word: kind}, "required": [word], "additionalProperties": False}
        for word, kind in (
            ("none", {"const": True}),
            *((word, {"type": "string"}) for word in ("int", "bytes", "text", "path")),
        )
    ],
}


def schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of a profile of this version."""
    kinds = {kind: {"anyOf": [ref, {"type": "array", "items": ref}]} for kind in PARTS for ref in [_ref(kind)]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A sandbox of isolate",
        "type": "object",
        "properties": {
            "version": {"const": VERSION},
            "extends": {"type": "string", "description": "'untrusted', or a profile: a path .toml or .json"},
            "without": {"type": "array", "items": {"enum": [*PARTS]}},
            "order": {"type": "array", "items": {"enum": [*PARTS]}},
            "template": {"type": "boolean"},
            **kinds,
        },
        "required": ["version"],
        "additionalProperties": False,
        "$defs": {
            "escape": _ESCAPE,
            "condition": _condition(),
            "action": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["kind"]}]},
            **{kind: _table(kind) for kind in (*PARTS, *ENTRIES)},
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def _table(kind: str) -> dict[str, Any]:
    if kind == "Seccomp":
        return _policy()
    keys = keys_of(kind)
    left_out = (listed(kind) if kind == "Root" else None, "store" if kind == "ImageRoot" else None)
    required = [name for name, key in keys.items() if key.default is key.empty and name not in left_out]
    properties: dict[str, Any] = {"kind": {"const": kind}} if kind in ENTRIES else {}
    for name, key in keys.items():
        if (kind, name) in REFUSED:
            continue
        if name == listed(kind):
            items = {"anyOf": [_ref(entry) for entry in ENTRIES]} if kind == "Root" else {"type": "string"}
            properties[name] = {"type": "array", "items": items}
        else:
            properties[name] = _HANDLES.get((kind, name)) or (_PUBLISH if name == "publish" else _key(key))
    first = (class_of(kind).__doc__ or "").strip().split("\n")[0]
    return {
        "type": "object",
        "description": first,
        "properties": properties,
        "required": ["kind", *required] if kind in ENTRIES else required,
        "additionalProperties": False,
    }


def _key(key: inspect.Parameter) -> dict[str, Any]:
    text = str(key.annotation)
    found: list[dict[str, Any]] = [_ref("escape")]
    if mapping(key) or "IdMap" in text:
        found.append({"type": "object"})
    if "IdMap | int" in text:
        found.append({"type": "boolean"})
    for pattern, kind in _WORDS.items():
        if re.search(pattern, text) and kind not in found:
            found.append(kind)
    if "PathRule" in text or "LandlockScope" in text:
        found.append({"type": "array"})
    return {"anyOf": found}


def _policy() -> dict[str, Any]:
    rule = {
        "type": "object",
        "properties": {
            "action": _ref("action"),
            "calls": {"type": "array", "items": {"type": "string"}},
            "when": _ref("condition"),
        },
        "required": ["action", "calls"],
        "additionalProperties": False,
    }
    known: dict[str, Any] = {
        "policy": {"enum": ["default", "strict", "none"]},
        "file": {"type": "string", "description": "a profile as Docker and Podman have them"},
        "bpf": {"type": "string", "contentEncoding": "base64"},
        "rules": {"type": "array", "items": rule},
        "compat": {"type": "array", "items": {"type": "string"}},
        "log": {"type": "boolean"},
        "spec_allow": {"type": "boolean"},
    }
    properties = {key: known.get(key, _ref("action")) for key in KEYS}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _condition() -> dict[str, Any]:
    several = {"type": "array", "items": _ref("condition"), "minItems": 1}
    number = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^0x[0-9a-f]+$"}]}
    comparison = {
        "type": "object",
        "properties": {
            "arg": {"type": "integer", "minimum": 0, "maximum": 5},
            "op": {"enum": ["==", "!=", "<", "<=", ">", ">="]},
            "value": number,
            "mask": number,
        },
        "required": ["arg", "op", "value"],
        "additionalProperties": False,
    }
    return {
        "oneOf": [
            {"type": "object", "properties": {word: several}, "required": [word], "additionalProperties": False}
            for word in ("all", "any")
        ]
        + [comparison]
    }
