"""params.yaml as it would be with some values changed; the file stays as it is."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from howto.params.file import PATH, Params, read_params
from howto.stop import Stop


def changed_params(settings: list[str], path: Path = PATH) -> Params:
    """params.yaml with some keys set otherwise, as `dvc exp run -S` would; the file stays as it is.

    Raises:
        Stop: no such key, or not such a value.
    """
    if not settings:
        return read_params(path)
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    read_params(path)  # says what is wrong with the file itself
    yaml = YAML(typ="safe", pure=True)
    values: Any = yaml.load(path.read_text(encoding="utf-8"))
    for setting in settings:
        key, _, text = setting.partition("=")
        *parents, last = key.replace("profiles.*", f"profiles.{values['profile']}").split(".")
        node = values
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict) or not text:
            raise Stop(f"--set {setting}: write key=value, with a key of params.yaml such as train.lora.r=16")
        try:
            value = yaml.load(text)
        except YAMLError:
            raise Stop(f"--set {setting}: {text} is not YAML; quote it, or correct it") from None
        node[last] = float(value) if isinstance(node.get(last), float) and type(value) is int else value
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / path.name
        buffer = io.StringIO()
        yaml.dump(values, buffer)
        changed.write_text(buffer.getvalue(), encoding="utf-8")
        try:
            return read_params(changed)
        except Stop as stop:
            _, _, problem = str(stop).partition(": ")
            raise Stop(f"--set: {problem}") from None
