"""A configuration file, YAML or JSON, becomes the values of flags.

Rules:
1. Keys are flags' names, some of them in sections as in etcd's sample file; URLs may be comma
   strings or lists; integers of durations are nanoseconds.
2. A file that can't be read, or a security setting that is not known, is Fatal. Other unknown names
   are only reported: etcd ignores them too.
3. YAML is imported only when a file is YAML: the import costs more than all the rest of this layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quorate.core.errors import Fatal
from quorate.core.flags import FLAGS, META, Flag, Value, find_flag, quoted, read_duration

# Keys of the transport sections that are not the flag's own name.
TRANSPORT_KEYS = {"allowed-cn": "cert-allowed-cn", "allowed-hostname": "cert-allowed-hostname"}
TRANSPORT_SECTIONS = ("client-transport-security", "peer-transport-security")


def read_file(path: str) -> tuple[dict[str, Value], list[str]]:
    """The flags that a file sets, and the names in it that mean nothing. Raises Fatal."""
    document = parse_document(path, read_text(path))
    if document is None:
        return {}, []
    if not isinstance(document, dict):
        raise Fatal(f"config file {path}: expected names and values")
    values: dict[str, Value] = {}
    unknown: list[str] = []
    for name, raw in flatten(document):
        flag = find_flag(name)
        if flag is None or flag.role == META:
            if not name.startswith(TRANSPORT_SECTIONS):
                unknown.append(name)
            elif raw:
                raise Fatal(f"config file {path}: unknown security setting {quoted(name)}")
        elif raw is not None:
            try:
                values[name] = file_value(flag, raw)
            except ValueError as error:
                why = f"invalid value {quoted(str(raw))} for {name}: {error}"
                raise Fatal(f"config file {path}: {why}") from None
    return values, unknown


def read_text(path: str) -> str:
    """The file's text. Raises Fatal in Go's words."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise Fatal(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise Fatal(f"config file {path}: {error}") from None


def parse_document(path: str, text: str) -> object:
    """The value that the JSON or YAML text holds."""
    if text.lstrip()[:1] == "{":
        import json

        try:
            return json.loads(text)
        except ValueError as error:
            raise Fatal(f"config file {path}: {error}") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Fatal(f"config file {path}: {' '.join(str(error).split())}") from None


def flatten(document: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Name and raw value of every entry; an unknown one of a section keeps its full path."""
    for key, raw in document.items():
        name = str(key)
        if not isinstance(raw, dict):
            yield name, raw
            continue
        for inner, value in raw.items():
            yield section_flag(name, str(inner)), value


def section_flag(section: str, key: str) -> str:
    """The flag that `key` of a section stands for, or the full path if there is none."""
    name = key
    if section == "client-transport-security":
        name = "client-" + TRANSPORT_KEYS[key] if key in TRANSPORT_KEYS else key
    elif section == "peer-transport-security":
        name = "peer-" + TRANSPORT_KEYS.get(key, key)
    elif section == "socket-options":
        name = "socket-" + key
    elif section == "discovery-config":
        # Its presence means discovery by the v3 API; the empty one of etcd's sample file does not.
        return "discovery-token" if key == "token" else "discovery-endpoints"
    return name if name in FLAGS else f"{section}.{key}"


def file_value(flag: Flag, raw: object) -> Value:
    """A file's value as the flag's; integers of durations are nanoseconds. Raises ValueError."""
    if isinstance(raw, bool):
        return flag.read("true" if raw else "false")
    if isinstance(raw, int) and flag.read is read_duration:
        return raw / 1e9
    if isinstance(raw, list):
        return flag.read(",".join(str(item) for item in raw))
    if isinstance(raw, dict):
        if not any(raw.values()):
            return flag.read(flag.default)
        raise ValueError("parse error")
    return flag.read(str(raw))
