"""Names that become part of a path."""

from __future__ import annotations


def file_name(name: str) -> str:
    """The name itself, if it is fit to be a file's and stays in the folder that it is put in.

    Raises:
        ValueError: it could leave its folder, hide in it, or not be written.
    """
    bad = {"/", "\\", ":"} & set(name)
    if bad or not name.isprintable() or not name.strip() or name.startswith("."):
        raise ValueError(
            f"{name!r} cannot name a file: take letters, digits, `_`, `-`, and no dot in front"
        )
    if len(name.encode()) > 120:
        raise ValueError(f"{name[:20]!r}… has {len(name)} letters; a name may have 120 bytes")
    return name
