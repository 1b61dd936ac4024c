"""As much of Ray as the desk uses, in this process: tasks run when they are waited for, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class FakeRay:
    """A cluster of two CPUs; `before` may raise what becomes of a task, which is counted from 1."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before
        self.tasks = 0
        self.asked: dict[str, Any] = {}
        self.needs: dict[str, Any] = {}
        self.resources = {"CPU": 2.0}
        self._held: list[Any] = []

    def init(self, **asked: Any) -> None:
        self.asked = asked

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[object]:
        return [object()]

    def shutdown(self) -> None:
        self.resources = {}

    def put(self, value: object) -> int:
        self._held.append(value)
        return len(self._held) - 1

    def remote(self, **needs: Any) -> Callable[[Callable[..., Any]], Any]:
        self.needs = needs

        def wrapped(function: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: self.put((function, given)))

        return wrapped

    def wait(self, refs: Sequence[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return list(refs[:num_returns]), list(refs[num_returns:])

    def get(self, ref: int) -> Any:
        function, (order, task, first, own, *rest) = self._held[ref]
        self.tasks += 1
        self.before(self.tasks)
        return function(order, self._held[task], self._held[first], self._held[own], *rest)
