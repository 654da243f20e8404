"""Tells in the log when a connection is lost and when it is back, once each and not per attempt."""

from __future__ import annotations

import logging


class Condition:
    """The state of one connection: good, or bad for a reason.

    Errors of the `expected` types are logged in a line, others with their traceback.
    """

    def __init__(
        self,
        subject: str,
        logger_name: str,
        *,
        expected: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._subject = subject
        self._logger = logging.getLogger(logger_name)
        self._expected = expected
        self._is_good = True

    @property
    def is_good(self) -> bool:
        """Return whether the last thing said was good."""
        return self._is_good

    def good(self) -> None:
        """Say that it works; logs if it did not."""
        if not self._is_good:
            self._is_good = True
            self._logger.info("working again subject=%s", self._subject)

    def bad(self, error: BaseException) -> None:
        """Say that it fails; logs if it worked until now."""
        if self._is_good:
            self._is_good = False
            self._logger.warning(
                "failing, retried until it works subject=%s error=%s: %s",
                self._subject,
                type(error).__name__,
                str(error).partition("\n")[0],
                exc_info=None if isinstance(error, self._expected) else error,
            )
