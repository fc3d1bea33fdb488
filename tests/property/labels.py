"""The content that each label denotes. Everything served is compared with it."""

from .contents import Content


class Labels:
    """A label may go live with any content that was pushed under it. Once served, it denotes that content forever."""

    def __init__(self) -> None:
        self._tried: dict[str, list[Content]] = {}
        self._denotes: dict[str, Content] = {}

    def fix(self, label: str, content: Content) -> None:
        """Bind the label to this content."""
        self._denotes[label] = content

    def is_known(self, label: str) -> bool:
        return label in self._denotes

    def names(self) -> list[str]:
        """Labels that have served, oldest first."""
        return list(self._denotes)

    def candidates(self, label: str) -> list[Content]:
        """Contents that may be served under the label."""
        if label in self._denotes:
            return [self._denotes[label]]
        return list(self._tried.get(label, ()))

    def attempt(self, label: str, *contents: Content) -> None:
        self._tried.setdefault(label, []).extend(contents)

    def withdraw(self, label: str, content: Content) -> None:
        """Record that an attempt has finally failed. No replica may serve the label until another attempt succeeds."""
        if content in self._tried.get(label, ()):
            self._tried[label].remove(content)

    def reject_reason(self, label: str, content: Content | None) -> str | None:
        """Reason why `content` (None: unknown) must not be served as `label`; else None, and binds the label to it."""
        wanted = self.candidates(label)
        if content not in wanted:
            return f"serves {content or 'unknown weights'} as {label!r}, which denotes {wanted or 'nothing'}"
        self._denotes[label] = content
        return None
