"""A server in a process of its own, on a core of its own if need be."""

import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence


class Server:
    """A process that prints what it does; ended with the block that it is used in.

    Args:
      command: program and arguments.
      cores: on which it runs, and whatever it starts; None: on any.
      env: variables of the environment, beside those of this process.
      cwd: its folder.

    Example:
      >>> with Server(["python", "-c", "print('Ready')"]) as server:
      ...     server.said("Ready", seconds=30)
      'Ready'
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cores: Collection[int] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | pathlib.Path | None = None,
    ) -> None:
        mine = os.sched_getaffinity(0) if cores is not None else None
        if cores is not None:
            os.sched_setaffinity(0, cores)  # what starts now has it from here
        try:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                cwd=cwd,
                start_new_session=True,  # so that all of it can be ended
            )
        finally:
            if mine is not None:
                os.sched_setaffinity(0, mine)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._news:
                    self.lines.append(line.rstrip())
                    self._news.notify_all()

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def said(self, *words: str, after: int = 0, seconds: float = 300.0) -> str:
        """Waits for a line with one of these words, after so many lines.

        Raises:
          RuntimeError: if it ends, or takes longer; its last lines are in it.
        """

        def found() -> str | None:
            lines = self.lines[after:]
            return next((x for x in lines if any(word in x for word in words)), None)

        end = time.monotonic() + seconds
        with self._news:
            while (line := found()) is None:
                if not self.running or time.monotonic() > end:
                    told = "\n".join(self.lines[-20:])
                    raise RuntimeError(f"expected a line with {words}, got:\n{told}")
                self._news.wait(0.2)
        return line

    def resident_mb(self) -> float:
        """Its resident memory in MB, as Linux tells; of the first process alone."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        line = next(x for x in text.splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process that was started."""
        self._process.send_signal(number)

    def stop(self, seconds: float = 30.0) -> int | None:
        """Asks it to end, and returns its exit code; None if it had to be killed."""
        if self.running:
            self.send(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and what it left behind
        self._process.wait()
        self._reading.join(10)

    def __enter__(self) -> "Server":
        """It runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever it does, it ends."""
        self._kill()
