"""Selectors: which devices a rollout is for.

A selector is one or more terms, separated by spaces; a device must fit all of them::

    all                   every device
    device=cam-1,cam-2    these devices
    tag.site=berlin       devices whose tag ``site`` is ``berlin`` (or one of several, by commas)
    profile=cpu-arm64     devices with this hardware profile (or one of several)
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgeml.errors import UsageError, nearest

_KEYS = ("device", "profile", "tag.KEY")


class Term(msgspec.Struct, frozen=True):
    """One term: ``key`` is ``all``, ``device``, ``profile`` or ``tag.<name>``."""

    key: str
    values: frozenset[str] = frozenset()

    def fits(self, device: str, profile: str, tags: Mapping[str, str]) -> bool:
        """Tell whether a device fits."""
        if self.key == "all":
            return True
        if self.key == "device":
            return device in self.values
        if self.key == "profile":
            return profile in self.values
        return tags.get(self.key.removeprefix("tag.")) in self.values


def parse_selector(text: str) -> tuple[Term, ...]:
    """Take a selector apart.

    Raises:
        UsageError: It is empty, or a term cannot be understood.
    """
    words = text.split()
    if not words:
        raise UsageError("an empty selector", "'all' means every device")
    return tuple(_term(word) for word in words)


def fits(terms: tuple[Term, ...], device: str, profile: str, tags: Mapping[str, str]) -> bool:
    """Tell whether a device fits all terms."""
    return all(term.fits(device, profile, tags) for term in terms)


def _term(word: str) -> Term:
    if word == "all":
        return Term("all")
    key, equals, value = word.partition("=")
    values = frozenset(v for v in value.split(",") if v)
    known = key in {"device", "profile"} or (key.startswith("tag.") and len(key) > len("tag."))
    if not known:
        raise UsageError(
            f"selector term '{word}' is not one of all, device=, profile=, tag.KEY=",
            nearest(key, ("all", *_KEYS)),
        )
    if not equals or not values:
        raise UsageError(f"selector term '{word}' has no value", f"for example {key}=NAME")
    return Term(key, values)
