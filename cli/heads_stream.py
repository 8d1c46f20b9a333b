"""`heads update --stream`: lines of JSON in, answers out, and the head that learnt from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage2_heads.base import Head

__all__ = ["learn_stream"]


def learn_stream(head: Head, target: Path, dry_run: bool) -> dict[str, Any]:
    """Answer every line of standard input; save at its end, or when interrupted between two lines."""
    import json
    import os
    import signal

    from threadpoolctl import threadpool_limits

    from stage2_heads.updating import LineStream

    answering = LineStream(head)
    interrupts = _Interrupts()
    before = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    hold = threadpool_limits(1, user_api="blas")  # a line is learnt before a second thread has woken up
    try:
        while line := interrupts.wait_for(sys.stdin.buffer.readline):
            sys.stdout.write(json.dumps(answering.answer(line)) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass  # what was learnt is saved below
    except BrokenPipeError:  # nobody reads the answers any more, which the interpreter must not stumble on when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        hold.restore_original_limits()
        for number, handler in before.items():
            signal.signal(number, handler)
    saved = "nothing was saved (--dry-run)"
    if not dry_run and answering.n_rows:
        head.provenance["updates"] = [*head.provenance.get("updates", []), {"stream_lines": answering.n_rows}]
        head.save(target)
        saved = f"head: {target}"
    elif not dry_run:
        saved = "there was nothing to learn, and nothing was saved"
    # Standard output belongs to the answers.
    sys.stderr.write(
        f"{answering.n_lines} lines, {answering.n_rows} learnt, {answering.n_hits} of them predicted right, "
        f"{answering.n_errors} that could not be used; {saved}.\n"
    )
    return {
        "n_lines": answering.n_lines,
        "n_learnt": answering.n_rows,
        "n_right": answering.n_hits,
        "n_errors": answering.n_errors,
    }


class _Interrupts:
    """A signal handler that ends the wait for a line at once, but lets a line that has come be learnt whole."""

    def __init__(self) -> None:
        self._waiting = self._asked = False

    def __call__(self, *_: object) -> None:
        self._asked = True
        if self._waiting:
            raise KeyboardInterrupt

    def wait_for(self, read: Any) -> Any:
        self._waiting = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            return read()
        finally:
            self._waiting = False
