"""One line an event, as text or JSON; what belongs to a job has its id."""

from __future__ import annotations

import json
import logging
import sys
import time

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class _Lines(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        more = {k: v for k, v in vars(record).items() if k not in _PLAIN}
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._json:
            said = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **more}
            return json.dumps(said | ({"trace": trace} if trace else {}), default=str)
        words = " ".join(f"{k}={v}" for k, v in more.items())
        return f"{when} {record.levelname:7} {record.getMessage()} {words}".rstrip() + (f"\n{trace}" if trace else "")


def set_up_logs(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Everything to stderr, the libraries' warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vitrify").setLevel(level)
