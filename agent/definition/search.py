# SPDX-License-Identifier: Apache-2.0
"""What lies in the definition folders: which file counts for each name, its drop-ins, what is masked or refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agent.definition import files
from agent.definition.files import FileId, Unusable
from agent.definition.model import Diagnostic
from agent.definition.values import template_of

SUFFIX = ".toml"
_DROP_INS = ".toml.d"


class Found(NamedTuple):
    """The file of a definition or drop-in. `refused` says why it must not be used."""

    path: str
    id: FileId | None
    refused: Unusable | None = None


DropIn = Found


class Survey:
    """One look at all folders."""

    def __init__(self) -> None:
        self.files: dict[str, Found] = {}
        self.masked: set[str] = set()
        self.diagnostics: list[Diagnostic] = []
        # Drop-ins by the stem of their folder and their own name; None where one is masked.
        self.drop_ins: dict[str, dict[str, DropIn | None]] = {}

    def drop_ins_of(self, name: str) -> list[DropIn]:
        """In name order; those of an instance win over its template's of the same name."""
        if not self.drop_ins:
            return []
        found = self.drop_ins.get(name, {})
        template = template_of(name)
        if template and template in self.drop_ins:
            found = {**self.drop_ins[template], **found}
        return [drop_in for _, drop_in in sorted(found.items()) if drop_in is not None]

    @property
    def drop_in_count(self) -> int:
        return sum(len(found) for found in self.drop_ins.values())

    def paths(self) -> set[str]:
        own = {found.path for found in self.files.values()}
        return own | {d.path for found in self.drop_ins.values() for d in found.values() if d is not None}


def survey(folders: Iterable[Path]) -> Survey:
    """The first folder that has a file of some name is the one that counts."""
    found = Survey()
    for folder in folders:
        _survey_folder(os.fspath(folder), found)
    return found


def _survey_folder(folder: str, found: Survey) -> None:
    refused: Unusable | None = None
    try:
        files.check_owner(folder, os.stat(folder))
    except FileNotFoundError:
        return
    except OSError as e:
        found.diagnostics.append(Diagnostic(file=folder, reason=f"cannot be read: {e.strerror}"))
        return
    except Unusable as e:
        refused = Unusable(f"its folder {e.reason}", e.hint)
        found.diagnostics.append(Diagnostic(file=folder, reason=e.reason, hint=e.hint))
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(SUFFIX):
                    if name[0] != ".":
                        _take_file(entry, name[: -len(SUFFIX)], found, refused)
                elif name.endswith(_DROP_INS) and name[0] != ".":
                    _take_drop_ins(entry.path, name[: -len(_DROP_INS)], found, refused)
    except OSError as e:
        found.diagnostics.append(Diagnostic(file=folder, reason=f"cannot be read: {e.strerror}"))


def _take_file(entry: os.DirEntry[str], name: str, found: Survey, refused: Unusable | None) -> None:
    if name in found.files or name in found.masked:
        return
    try:
        status = entry.stat()
    except OSError as e:
        found.files[name] = Found(entry.path, None, refused or files.unreadable(entry.path, e))
        return
    if files.is_mask(status) and entry.is_symlink():
        found.masked.add(name)
        return
    if refused is None and not stat.S_ISREG(status.st_mode):
        refused = _irregular(status)
    found.files[name] = Found(entry.path, files.file_id(entry.path, status), refused)


def _irregular(status: os.stat_result) -> Unusable:
    try:
        files.check_regular(status, status.st_size)
    except Unusable as e:
        return e
    return Unusable("is not a regular file")


def _take_drop_ins(folder: str, name: str, found: Survey, refused: Unusable | None) -> None:
    """The drop-ins of one folder NAME.toml.d; one of the same name in an earlier place hides it."""
    try:
        status = os.stat(folder)
        if not stat.S_ISDIR(status.st_mode):
            return
        files.check_owner(folder, status)
    except Unusable as e:
        refused = refused or Unusable(f"its folder {e.reason}", e.hint)
    except OSError:
        return
    mine = found.drop_ins.setdefault(name, {})
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and entry.name[0] != "." and entry.name not in mine:
                    mine[entry.name] = _drop_in(entry, refused)
    except OSError as e:
        mine.setdefault("", Found(folder, None, files.unreadable(folder, e)))


def _drop_in(entry: os.DirEntry[str], refused: Unusable | None) -> DropIn | None:
    try:
        status = entry.stat()
    except OSError as e:
        return Found(entry.path, None, refused or files.unreadable(entry.path, e))
    if files.is_mask(status) and entry.is_symlink():
        return None
    if refused is None and not stat.S_ISREG(status.st_mode):
        refused = _irregular(status)
    return Found(entry.path, files.file_id(entry.path, status), refused)
