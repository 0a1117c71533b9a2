"""Keep passwords and tokens out of logs, messages, tags and parameters."""

import logging
import os
import re
import traceback
from urllib.parse import unquote, urlsplit, urlunsplit

MASK = "***"
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"

# What stands between a user and the last @ before the host; a short number alone is a port.
_IN_URL = re.compile(r"(://[^/\s:@]*):(?!\d{2,5}(?:[/,?#\s'\"]|$))[^\s@]*@(?:[^\s@/,:]*@)*")
_USER_ALONE = re.compile(r"(https?://)[^/\s:@]+@")  # a token, as GitHub takes it
_NAMED = re.compile(
    r"(?i)((?:(?<![A-Za-z0-9_])|(?<=[A-Za-z0-9]_))"
    r"(?:password|passwd|pwd|secret|api_?key|access_?key|(?:(?:auth|access|hf)_)?(?<!class_)token)"
    r"['\"]?\s?[=:]\s?['\"]?)(?!None|null)[^\s,;&'\"})\]]+"
)


def mask(text: str) -> str:
    """Replace passwords in a text by `***`.

    Masked are the text between user and host in URLs, a user alone in a URL of HTTP, and values
    after `password=`, `token:` and the like, in a query, a command line or a mapping.
    """
    text = _IN_URL.sub(rf"\1:{MASK}@", text)
    text = _USER_ALONE.sub(rf"\1{MASK}@", text)
    return _NAMED.sub(rf"\1{MASK}", text)


def mask_logs() -> None:
    """Mask every later log record of this process, and its traceback."""
    make_record = logging.getLogRecordFactory()
    logging.setLogRecordFactory(lambda *args, **kwargs: _mask_record(make_record(*args, **kwargs)))


def mask_traceback(error: BaseException) -> str | None:
    """Format an error as Python prints it, masked; None if there is nothing to mask."""
    plain = "".join(traceback.format_exception(error))
    masked = mask(plain)
    return masked if masked != plain else None


def strip_credentials(uri: str) -> str:
    """Move user and password from the URI of a tracking server to the environment.

    MLflow prints the URI of its server, and reads both from the environment as well:
    https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/. Other URIs are returned
    unchanged.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # MLflow says what is wrong with it
        return uri
    if parts.scheme not in ("http", "https") or parts.password is None:
        return uri
    os.environ[USERNAME] = unquote(parts.username or "")
    os.environ[PASSWORD] = unquote(parts.password)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))


def _mask_record(record: logging.LogRecord) -> logging.LogRecord:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # logging itself reports a format that does not fit
        return record
    if (masked := mask(message)) != message:
        record.msg, record.args = masked, None
    error = record.exc_info[1] if record.exc_info else None
    if error and (text := mask_traceback(error)):
        record.exc_info, record.exc_text = None, text
    return record
