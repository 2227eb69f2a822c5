"""A process that imports modules once and then forks a task for each request: a fork server beside multiprocessing's.

multiprocessing has one fork server, and its first task waits until all modules are there. This one is a child of that
one and imports its modules while other tasks work. Linux only: elsewhere a fork of a process with large libraries is
not safe.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
MARK: Final = b"t"
"""Goes before a request, together with the descriptors of the task's output and of the news of it."""
LOOK_S: Final = 1.0
"""How often it looks for tasks whose end it was not told, because something they started goes on."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends, whatever ended that."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class ForkedTask:
    """A task of the server, with the part of `multiprocessing.Process` that a runner needs.

    Args:
        news: what the server tells: the process id, then the exit code.
        server: file descriptor that can be read when the server has ended.

    Raises:
        EOFError: the server ended before it had made the task.
    """

    def __init__(self, news: Connection, server: int) -> None:
        self._news, self._server = news, server
        self.exitcode: int | None = None
        wait([news, server])  # until the server has imported its modules
        if not news.poll():
            raise EOFError("the fork server has ended")
        self.pid = int(news.recv())

    def join(self) -> None:
        """Wait for its end, once; afterwards `exitcode` is its exit code, negative for a signal."""
        wait([self._news, self._server])
        try:
            self.exitcode = int(self._news.recv()) if self._news.poll() else -signal.SIGKILL
        except EOFError:
            self.exitcode = -signal.SIGKILL  # with the server, which was killed
        self._news.close()


class ForkServer:
    """The server as its driver sees it; it ends with the driver."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._requests, theirs = self._context.Pipe()
        self._socket = socket.socket(fileno=os.dup(self._requests.fileno()))
        self._lock = threading.Lock()
        self._process = self._context.Process(target=_serve, args=(theirs, tuple(modules)))
        self._process.start()
        theirs.close()
        atexit.register(self.close)  # before multiprocessing waits for its end

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self._process.pid or 0)

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        self._requests.close()

    def start(self, work: Callable[..., None], arguments: Sequence[Any], output: Connection) -> ForkedTask:
        """Fork a task that calls `work(*arguments, output)`.

        Raises:
            OSError, EOFError: the server is gone.
        """
        news, theirs = self._context.Pipe(duplex=False)
        with self._lock:
            socket.send_fds(self._socket, [MARK], [output.fileno(), theirs.fileno()])
            self._requests.send((work, tuple(arguments)))
        theirs.close()
        return ForkedTask(news, self._process.sentinel)


def _serve(requests: Connection, modules: Sequence[str]) -> None:
    """In the server's process: import, then fork tasks and tell how they end, until the driver is gone."""
    os.setsid()
    end_with_parent()
    for name in modules:
        with contextlib.suppress(ImportError):  # the task that needs it tells
            importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    ours = socket.socket(fileno=os.dup(requests.fileno()))
    running: dict[int, tuple[Any, Connection]] = {}
    while True:
        ready = wait([requests, *running], LOOK_S if running else None)
        if requests in ready:
            try:
                _, descriptors, *_ = socket.recv_fds(ours, len(MARK), 2)
                work, arguments = requests.recv()
            except (EOFError, OSError):
                os._exit(0)  # its tasks get their signal from the kernel
            output, news = (Connection(descriptor, readable=False) for descriptor in descriptors)
            others = [requests, ours, news, *(other for _, other in running.values())]
            process = context.Process(target=_work_alone, args=(others, work, arguments, output))
            process.start()
            output.close()
            running[process.sentinel] = (process, news)
            news.send(process.pid)
        for sentinel, (process, news) in list(running.items()):
            if process.exitcode is not None:
                del running[sentinel]
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    news.send(process.exitcode)
                news.close()
                process.close()


def _work_alone(
    others: Sequence[Connection | socket.socket], work: Callable[..., None], arguments: Sequence[Any], output: Any
) -> None:
    for connection in others:
        connection.close()
    work(*arguments, output)
