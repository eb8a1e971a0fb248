"""What a row counts, and which part of it to do."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MAX_SAID = 10
"""Failures that are described; the others are counted."""
CASE_SECONDS = 20.0
"""CPU seconds after which a case counts as a hang; they take milliseconds."""


@dataclass(frozen=True)
class Slice:
    """Cases part, part + parts, part + 2 parts, ... below n. quick: leave out what takes minutes."""

    n: int
    part: int = 0
    parts: int = 1
    quick: bool = False

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.part, self.n, self.parts))

    def some(self, names: Iterable[str]) -> list[str]:
        """All of the names, or every fifth of them where it must be quick."""
        return list(names)[:: 5 if self.quick else 1]

    @property
    def first(self) -> bool:
        """Whether this part also does what is done once."""
        return self.part == 0


@dataclass
class Tally:
    """Cases done, and what failed."""

    cases: int = 0
    failures: int = 0
    said: list[str] = field(default_factory=list)
    notes: dict[str, float | str] = field(default_factory=dict)
    """Of the parts of a row the largest."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often things happened; parts add up."""

    def check(self, ok: bool, what: str) -> None:
        """Count a failure unless ok."""
        if not ok:
            self.failures += 1
            if len(self.said) < MAX_SAID:
                self.said.append(what)

    def count(self, name: str, by: int = 1) -> None:
        """Note that something happened."""
        self.counts[name] = self.counts.get(name, 0) + by

    @contextmanager
    def case(self, name: str, seconds: float = CASE_SECONDS) -> Iterator[None]:
        """One case: whatever gets out of it is a failure, a BaseException of a library too; so is a hang."""
        self.cases += 1
        started = time.process_time()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:
            self.check(False, f"{name}: {type(e).__name__}: {e}")
        spent = time.process_time() - started
        self.check(spent < seconds, f"{name}: {spent:.1f} s")

    def add(self, other: "Tally") -> None:
        """Take in another part of the row."""
        self.cases += other.cases
        self.failures += other.failures
        self.said = (self.said + other.said)[:MAX_SAID]
        for name, value in other.notes.items():
            known = self.notes.get(name)
            larger = isinstance(known, float) and isinstance(value, float)
            self.notes[name] = max(known, value) if larger else value  # type: ignore[type-var, assignment]
        for name, count in other.counts.items():
            self.count(name, count)
