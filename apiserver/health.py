"""Readiness: a set of named claims that the parts of the process make about themselves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    ready: bool
    detail: str = ""


class Health:
    """Every part registers its claim before it starts; the process is ready when all claims are true."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._notes: dict[str, str] = {}

    def set(self, name: str, ready: bool, detail: str = "") -> None:
        self._claims[name] = Claim(ready, detail)

    def remove(self, name: str) -> None:
        """A part that is gone (a disconnected peer) makes no claim any more."""
        self._claims.pop(name, None)

    def note(self, name: str, text: str) -> None:
        """What an operator should know although the process is ready; "" takes it back."""
        if text:
            self._notes[name] = text
        else:
            self._notes.pop(name, None)

    @property
    def notes(self) -> list[str]:
        return [text for _, text in sorted(self._notes.items())]

    @property
    def claims(self) -> dict[str, Claim]:
        return dict(self._claims)

    @property
    def ready(self) -> bool:
        return all(claim.ready for claim in self._claims.values())

    @property
    def missing(self) -> list[str]:
        """What is not ready, each with its reason."""
        return [
            f"{name}: {claim.detail}" if claim.detail else name
            for name, claim in sorted(self._claims.items())
            if not claim.ready
        ]
