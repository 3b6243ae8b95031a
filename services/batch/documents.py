"""What a template makes of data: an HTML page or a PDF, with QR codes.

Templates are people's own, so this runs in processes that can be spared: `python -m services.batch.documents` is one,
and `renderers.py` keeps them.
"""

import logging
import re
import resource
import signal
import sys
from collections.abc import Mapping, Sized
from contextlib import suppress
from types import FrameType
from typing import Any

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from common.pdf import Line, code_of, pdf
from services.batch.renderers import HEAD, BadTemplate, Failure, Format, Job, head_of

OUTPUT_LIMIT = 1_000_000
"""Characters of text, and bytes of a document, at most."""
CODES = 20
"""QR codes in a document at most."""
MEMORY = 512 * 1024 * 1024
"""Bytes that a rendering process may use at most, itself included."""


class TooLong(Exception):
    """The computing time for one document is over."""


def check(form: Format, body: str) -> None:
    """Raises BadTemplate for what cannot become any document: it does not compile, or wants other templates."""
    sandbox = sandbox_of(form, [])
    try:
        for other in sandbox.parse(body).find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            raise BadTemplate(other.lineno, "a template cannot include, import or extend another")
        sandbox.from_string(body)
    except jinja2.TemplateSyntaxError as error:
        raise BadTemplate(error.lineno, error.message or "no template") from error


def render(form: Format, body: str, data: Mapping[str, object]) -> bytes:
    """The document that a template makes of `data`. Raises BadTemplate, TooLong."""
    check(form, body)
    codes: list[str] = []
    text = text_of(sandbox_of(form, codes), body, data)
    document = html(text) if form == "html" else pdf(lines_of(text, codes))
    if len(document) > OUTPUT_LIMIT:
        raise BadTemplate(None, f"it makes more than {OUTPUT_LIMIT:,} bytes")
    return document


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, which also refuses to multiply what is then too large. It has no other templates to load."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The product or power. Raises OverflowError."""
        match operator, left, right:
            case ("*", Sized(), int()) if len(left) * right > OUTPUT_LIMIT:
                raise OverflowError("the product is too large")
            case ("*", int(), Sized()) if left * len(right) > OUTPUT_LIMIT:
                raise OverflowError("the product is too large")
            case ("**", int(), int()) if left.bit_length() * right > 10_000:
                raise OverflowError("the power is too large")
        return super().call_binop(context, operator, left, right)


CODE = re.compile(r"\x02(\d{1,3})\x03")
"""Where the text of a PDF has a code, by its number."""


def sandbox_of(form: Format, codes: list[str]) -> Sandbox:
    """Where a template of this format runs: HTML escapes values; `qr(text)` shows a code, or in a PDF notes it."""

    def qr(text: object) -> str:
        """A QR code of `text`. Raises ValueError."""
        if len(codes) == CODES:
            raise ValueError(f"a document has at most {CODES} codes")
        codes.append(str(text))
        code = code_of(codes[-1])
        return Markup(code.svg_inline(scale=4)) if form == "html" else f"\x02{len(codes) - 1}\x03"  # noqa: S704 (ours)

    sandbox = Sandbox(autoescape=form == "html", undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sandbox.globals["qr"] = qr
    return sandbox


def text_of(sandbox: Sandbox, body: str, data: Mapping[str, object]) -> str:
    """What the template writes. Raises BadTemplate, with the line where it went wrong."""
    written, length = [], 0
    try:
        for part in sandbox.from_string(body).generate(data):
            written.append(part)
            length += len(part)
            if length > OUTPUT_LIMIT:
                raise BadTemplate(None, f"it writes more than {OUTPUT_LIMIT:,} characters")
    except BadTemplate:
        raise
    except Exception as error:  # whatever it is, it is the template's
        raise BadTemplate(line_of(error), reason_of(error)) from error
    return "".join(written)


def line_of(error: Exception) -> int | None:
    """The line of the template that raised, of which Jinja makes frames of their own."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def reason_of(error: Exception) -> str:
    """In words, for whoever wrote the template."""
    match error:
        case MemoryError():
            return "it needs too much memory"
        case RecursionError():
            return "it is nested too deeply, or calls itself without end"
    return str(error) or type(error).__name__


PAGE = '<!doctype html>\n<html>\n<head><meta charset="utf-8"></head>\n<body>\n{}\n</body>\n</html>\n'


def html(text: str) -> bytes:
    """A page of its own, also where the template wrote only what is to be seen."""
    whole = text.lstrip()[:9].lower().startswith(("<!doctype", "<html"))
    return (text if whole else PAGE.format(text)).encode(errors="replace")


def lines_of(text: str, codes: list[str]) -> list[Line]:
    """The text of a PDF, line by line with their codes."""
    lines = text.strip("\r\n").splitlines()
    return [
        Line(CODE.sub("", line), [codes[int(n)] for n in CODE.findall(line) if int(n) < len(codes)]) for line in lines
    ]


def answer_to(job: Job, seconds: float) -> bytes:
    """Do a job, in so many seconds of computing time at most. Returns the answer with its head."""
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            if job.data is None:
                check(job.form, job.body)
            document = b"" if job.data is None else render(job.form, job.body, job.data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except BadTemplate as error:
        failure = Failure(error.line, error.reason)
    except Exception as error:
        told = BadTemplate(None, reason_of(error))
        failure = Failure(told.line, told.reason)
    else:
        return head_of(document) + document
    message = msgspec.json.encode(failure)
    return head_of(message, failed=True) + message


def main(seconds: float) -> None:
    """Answer jobs from stdin on stdout until stdin ends, which it does with the process that asks."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooLong(f"it takes more than {seconds:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with suppress(ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("fpdf").setLevel(logging.ERROR)
    sys.stdout.buffer.write(head_of(b""))  # ready
    sys.stdout.buffer.flush()
    while head := sys.stdin.buffer.read(HEAD):
        message = sys.stdin.buffer.read(int.from_bytes(head[:4]))
        sys.stdout.buffer.write(answer_to(msgspec.json.decode(message, type=Job), seconds))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
