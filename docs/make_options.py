"""Writes options.md from the texts of `ocs_tf.Config` and `ocs_tf.Override`.

python docs/make_options.py
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

from ocs_tf.config import OPTION_GROUPS, Config, Override
from ocs_tf.options import Option, code, options_of

PAGE = pathlib.Path(__file__).with_name("options.md")
HEAD = """\
<!-- Written by `python docs/make_options.py` from the fields of `ocs_tf.Config`; do not edit. -->

# Options

For Keras users: every option of a conversion. Options are keyword arguments of `ocs_tf.convert` and
`ocs_tf.plan`, fields of `ocs_tf.Config`, and flags of `ocs_tf convert` (`--weight_bits 5`,
`--strict`, `--nofold_batch_norm`).

```python
import ocs_tf

config = ocs_tf.Config(weight_bits=4, expand_ratio=0.05)
paper = ocs_tf.Config.paper(weight_bits=5, expand_ratio=0.02, weight_clip="mse")
```

`Config.paper` is the configuration of the paper. [quantization.md](quantization.md) explains what
the options compute. An option out of range is a `ValueError` that names it, its value and the rule.
"""
OVERRIDES = """\
## Overrides

Fields of `ocs_tf.Override`, one of which stands in `overrides` for some layers. As a flag:
`--override name=conv1,weight_bits=4`; also `regex=...` and `class=...`, several times.
"""


def page() -> str:
    """The text of options.md."""
    options = options_of(Config)
    defaults = {field.name: shown(field.default) for field in dataclasses.fields(Config)}
    lines = [HEAD, "| option | default | what it controls |", "|---|---|---|"]
    for group in OPTION_GROUPS:
        for name, option in options.items():
            if option.group == group:
                first = option.summary.partition(". ")[0].rstrip(".")
                lines.append(f"| [`{name}`](#{name}) | {defaults[name]} | {first} |")
    for group in OPTION_GROUPS:
        lines += ["", f"## {group}"]
        for name, option in options.items():
            if option.group == group:
                lines += ["", f"### {name}", "", *entry(option), "", f"Default: {defaults[name]}."]
    lines += ["", OVERRIDES.rstrip()]
    for name, option in options_of(Override).items():
        lines += ["", f"### Override.{name}", "", *entry(option)]
    return "\n".join(lines) + "\n"


def entry(option: Option) -> Iterator[str]:
    """The summary of an option and its values."""
    yield option.summary
    yield ""
    for value, meaning in option.values.items():
        yield f"- {code(value)}: {meaning}" if meaning else f"- {code(value)}"


def shown(default: object) -> str:
    """A default value as Python code."""
    text = repr(default).replace("'", '"')
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE.name}.")
