"""Coverage-guided fuzzing: ``python -m tests.fuzz [options of libFuzzer] [folders of inputs]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sipush.sip", "sipush.core"]):
    from tests.fuzz.target import one_input

atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
