"""Tries a chat template in a child process with little memory and time, before a stage uses it.

A template is a program of a stranger. transformers' sandbox keeps it from files and Python; nothing there
keeps it from writing without end. What passes here is judged again by its results when it is used.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys

from pipeline.errors import ModelError

SECONDS = 2
"CPU seconds for eight short conversations; real templates take milliseconds."
MEMORY_BYTES = 512 * 2**20
"Address space of the child, Python included."
_CONVERSATIONS = [
    [{"role": "user", "content": "A question."}],
    [{"role": "user", "content": "A question."}, {"role": "assistant", "content": "An answer."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A question."}],
    [{"role": "user" if turn % 2 == 0 else "assistant", "content": "x" * 2000} for turn in range(9)],
]
_GENERATION_MARKS = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")
"Marks that transformers understands and plain Jinja does not."

# An error of the template itself is no verdict here: real conversations decide that, with a better message.
_CHILD = """
import json, resource, sys
from datetime import datetime
task = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (task["memory"], task["memory"]))
resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"]))
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
def refuse(message):
    raise TemplateError(message)
def tojson(value, **options):
    return json.dumps(value, ensure_ascii=False)
try:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime(2000, 1, 1).strftime(form)
    template = environment.from_string(task["template"])
    for messages in task["conversations"]:
        for add_generation_prompt in (True, False):
            try:
                for piece in template.generate(
                    messages=messages, add_generation_prompt=add_generation_prompt,
                    bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
                ):
                    task["room"] -= len(piece)
                    if task["room"] < 0:
                        raise MemoryError
            except (TemplateError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError):
                pass
except (MemoryError, RecursionError):
    sys.exit(3)
except TemplateError:
    pass
"""


@functools.lru_cache(maxsize=64)
def check_template(template: str, *, source: str = "") -> None:
    """Refuse a chat template that needs more memory or time than any template has reason to.

    Args:
        template: Jinja text.
        source: where it comes from, for the message.

    Raises:
        ModelError: eight short conversations took more than 2 CPU seconds, 512 MiB, or 64 MiB of text.
    """
    if os.name != "posix":
        return
    task = {
        "template": _GENERATION_MARKS.sub("", template),
        "conversations": _CONVERSATIONS,
        "memory": MEMORY_BYTES,
        "seconds": SECONDS,
        "room": 64 * 2**20,
    }
    child = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD],
        input=json.dumps(task),
        text=True,
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        what = "memory" if child.returncode in (1, 3) else "time"
        raise ModelError(
            f"the chat template uses too much {what} on a short conversation; it is not used",
            where=source or "model.chat_template",
            hint="read the template; set model.chat_template to one that you trust, such as qwen2_5",
            code="hostile-template",
        )
