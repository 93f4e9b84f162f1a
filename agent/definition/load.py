# SPDX-License-Identifier: Apache-2.0
"""From the definition folders to checked definitions: search path, masks, drop-ins, templates, environment files.

Nothing here raises for bad input: what is wrong becomes a Diagnostic, and every good definition is still there. A file
is read again only when stat(2) says that it changed, so that a reload of many unchanged definitions costs a scandir
and one stat for each file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agent.definition import env_file, files, graph, merge, toml
from agent.definition.agent_config import AgentConfig, with_defaults
from agent.definition.files import FileId, Unusable
from agent.definition.merge import Source
from agent.definition.model import Container, Definition, Diagnostic, Loaded, Refused
from agent.definition.parse import Problem, Problems, read_table
from agent.definition.rules import check_rules
from agent.definition.search import DropIn, Found, Survey, survey
from agent.definition.specifiers import Specifiers
from agent.definition.values import InvalidValue, check_name, template_of
from agent.errors import DefinitionRejected
from agent.paths import SYSTEM, Paths

EXAMPLE_INSTANCE = "instance"


def read_definition(raw: Mapping[str, Any], name: str, source: str, problems: Problems) -> Definition:
    """A definition from its final table; pure. Where `problems` has more than warnings afterwards it must not be used:
    keys with problems have their defaults, and there is no digest.
    """
    container = read_table(Container, raw, problems, name=name, source=source)
    check_rules(container, raw, problems)
    is_sound = all(problem.warning for problem in problems)
    return Definition(container=container, raw=dict(raw), digest=digest(raw) if is_sound else "")


def digest(raw: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON; variables from environment files are part of the table by then."""
    return hashlib.sha256(msgspec.json.encode(raw, order="deterministic")).hexdigest()


def from_raw(raw: Mapping[str, Any], name: str, source: str) -> Definition:
    """The definition of a container that already runs, from its stored table; no file is read.

    It was checked when it was started. What a newer or older agent does not know in it is left out, because the
    container goes on anyway. Raises DefinitionRejected only for a name that cannot be one.
    """
    try:
        check_name(name)
    except InvalidValue as e:
        raise DefinitionRejected(e.reason, file=source, hint=e.hint) from e
    container = read_table(Container, raw, Problems(), name=name, source=source)
    return Definition(container=container, raw=dict(raw), digest=digest(raw))


def parse_text(
    text: str, name: str, source: str, *, paths: Paths = SYSTEM
) -> tuple[Definition | None, tuple[Diagnostic, ...]]:
    """A definition from the text of one file; environment files are read relative to `source`."""
    loaded = load_text(text, name, source, paths=paths)
    return loaded.definitions.get(name), loaded.diagnostics


def load_text(text: str, name: str, source: str, *, paths: Paths = SYSTEM) -> Loaded:
    """The same, with what could be read where it is refused."""
    result = toml.read_text(text.removeprefix("\ufeff"))
    if isinstance(result, toml.SyntaxFault):
        return Loaded(definitions={}, diagnostics=(merge.syntax_diagnostic(source, result, name),))
    try:
        check_name(name)
    except InvalidValue as e:
        return Loaded(definitions={}, diagnostics=(Diagnostic(file=source, reason=e.reason, hint=e.hint),))
    return _loaded({name: _build(name, [Source(source, *result)], AgentConfig(), paths)})


class _Built(NamedTuple):
    """A definition or why there is none, and the files that it was made from as they were then."""

    definition: Definition | None
    diagnostics: tuple[Diagnostic, ...]
    refused: Refused | None = None
    environment: tuple[tuple[str, FileId | None], ...] = ()
    inputs: tuple[FileId | None, ...] = ()

    def is_current(self, inputs: tuple[FileId | None, ...]) -> bool:
        return self.inputs == inputs and all(files.stat_id(path) == known for path, known in self.environment)


def _loaded(built: Mapping[str, _Built]) -> Loaded:
    return Loaded(
        definitions={name: one.definition for name, one in built.items() if one.definition is not None},
        refused=tuple(one.refused for one in built.values() if one.refused is not None),
        diagnostics=tuple(diagnostic for one in built.values() for diagnostic in one.diagnostics),
    )


def _build(name: str, sources: Sequence[Source], config: AgentConfig, paths: Paths) -> _Built:
    """Merge, expand, read environment files, check."""
    main = sources[0].file
    problems = Problems()
    faults: list[tuple[Any, InvalidValue]] = []
    raw = with_defaults(merge.merge_all(source.raw for source in sources), config)
    raw = Specifiers(name, main, paths).expand_all(raw, (), faults)
    problems += [Problem(path, fault.reason, fault.hint) for path, fault in faults]
    environment = _Environment(raw, sources, name, problems)
    definition = read_definition(raw, name, main, problems)
    diagnostics = tuple(environment.diagnostics + merge.diagnose(problems, sources, name))
    files_read = tuple(environment.ids.items())
    if all(diagnostic.warning for diagnostic in diagnostics):
        return _Built(definition, diagnostics, environment=files_read)
    wrong = tuple(problem.path for problem in problems if not problem.warning)
    return _Built(None, diagnostics, Refused(definition=definition, faults=wrong), files_read)


class _Environment:
    """The environment files of a definition: read, and put below its own variables in `raw`."""

    def __init__(self, raw: dict[str, Any], sources: Sequence[Source], name: str, problems: Problems) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.ids: dict[str, FileId | None] = {}
        given, own = raw.get("environment_files"), raw.get("environment", {})
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            return
        # Paths are relative to the file that names them, and absolute from here on.
        source = merge.origin(sources, ("environment_files",))
        folder = os.path.dirname(os.path.abspath(source.file)) if source else "/"
        raw["environment_files"] = [_absolute(each, folder) for each in given]
        variables: dict[str, str] = {}
        for i, path in enumerate(raw["environment_files"]):
            try:
                variables |= self._read(path.removeprefix("-"), name, optional=path.startswith("-"))
            except Unusable as e:
                reason = f"{path.removeprefix('-')} {e.reason}"
                problems.append(Problem(("environment_files", i), reason, e.hint))
        if variables and isinstance(own, dict):
            raw["environment"] = {**variables, **own}

    def _read(self, path: str, name: str, *, optional: bool) -> dict[str, str]:
        self.ids[path] = files.stat_id(path)
        if optional and self.ids[path] is None:
            return {}
        if self.ids[path] is None and not os.path.lexists(path):
            raise Unusable("does not exist", f'write "-{path}" if it may be missing')
        content, found = files.read(path, toml.SIZE_MAX)
        self.ids[path] = files.file_id(path, found)
        try:
            text = content.decode()
        except UnicodeDecodeError as e:
            raise Unusable("is not UTF-8", "save it as UTF-8") from e
        variables, faults = env_file.parse(text)
        self.diagnostics += [
            Diagnostic(file=path, line=fault.line, reason=fault.reason, hint=fault.hint, container=name)
            for fault in faults
        ]
        return variables


def _absolute(name: str, folder: str) -> str:
    """With its "-", if it has one."""
    optional = name.startswith("-")
    path = name[optional:]
    return "-" * optional + (os.path.join(folder, path) if path else path)


class Loader:
    """Reads the folders of `paths`; one per agent, because it remembers what it has read."""

    def __init__(self, paths: Paths, config: AgentConfig | None = None) -> None:
        self._paths = paths
        self._config = config or AgentConfig()
        self._sources: dict[str, tuple[FileId, Source | Diagnostic]] = {}
        self._built: dict[str, _Built] = {}

    def load(self, instances: Iterable[str] = ()) -> Loaded:
        """All definitions. `instances` are names of template instances that have no file but are wanted, too."""
        found = survey(self._paths.definition_folders)
        wanted = [name for name in found.files if not name.endswith("@")]
        wanted += [name for name in instances if name not in found.files and template_of(name) in found.files]
        loaded = self._load(found, wanted)
        self._forget(found)
        further = self._templates(found) + self._graph(loaded, found)
        return msgspec.structs.replace(loaded, diagnostics=loaded.diagnostics + further) if further else loaded

    def load_one(self, name: str) -> Loaded:
        """One definition, an instance of a template also without a file of its own.

        All three parts of the result are empty when there is nothing of that name.
        """
        found = survey(self._paths.definition_folders)
        exists = name in found.files or template_of(name) in found.files
        loaded = self._load(found, [name] if exists else [])
        masked = found.masked & {name, template_of(name)}
        mine = tuple(d for d in loaded.diagnostics if d.container == name)
        return msgspec.structs.replace(loaded, diagnostics=mine, templates=(), masked=(name,) if masked else ())

    def _load(self, found: Survey, names: Iterable[str]) -> Loaded:
        loaded = _loaded({name: self._one(name, found) for name in names})
        return msgspec.structs.replace(
            loaded,
            diagnostics=(*found.diagnostics, *loaded.diagnostics),
            templates=tuple(sorted(name for name in found.files if name.endswith("@"))),
            masked=tuple(sorted(found.masked)),
        )

    def _templates(self, found: Survey) -> tuple[Diagnostic, ...]:
        """What is wrong in templates, seen on an example; files that are the instance's own cannot be there."""
        return tuple(
            msgspec.structs.replace(diagnostic, container=name)
            for name in found.files
            if name.endswith("@")
            for diagnostic in self._one(f"{name}{EXAMPLE_INSTANCE}", found).diagnostics
            if not diagnostic.key.startswith("environment_files")
        )

    def _graph(self, loaded: Loaded, found: Survey) -> tuple[Diagnostic, ...]:
        """What is wrong between definitions. None of them is refused for it: one bad file must not stop another."""
        containers = {name: definition.container for name, definition in loaded.definitions.items()}
        problems: dict[str, list[Problem]] = {}
        for name, problem in graph.problems(containers, others=found.files):
            problems.setdefault(name, []).append(problem)
        return tuple(
            d for name, mine in problems.items() for d in merge.diagnose(mine, self._sources_of(name, found), name)
        )

    def _sources_of(self, name: str, found: Survey) -> list[Source]:
        file = found.files.get(name) or found.files[template_of(name)]
        results = [self._source(each, name) for each in (file, *found.drop_ins_of(name))]
        return [result for result in results if isinstance(result, Source)]

    def _one(self, name: str, found: Survey) -> _Built:
        file = found.files.get(name) or found.files[template_of(name)]
        drop_ins = found.drop_ins_of(name)
        if file.refused or any(drop_in.refused for drop_in in drop_ins):
            # Why may lie outside the file, in its folder: what was known of the file does not count.
            self._built.pop(name, None)
            return self._read(name, file, drop_ins)
        inputs = (file.id, *(drop_in.id for drop_in in drop_ins)) if drop_ins else (file.id,)
        known = self._built.get(name)
        if known is None or not known.is_current(inputs):
            known = self._read(name, file, drop_ins)._replace(inputs=inputs)
            self._built[name] = known
        return known

    def _read(self, name: str, file: Found, drop_ins: Sequence[DropIn]) -> _Built:
        try:
            check_name(name)
        except InvalidValue as e:
            return _Built(None, (Diagnostic(file=file.path, reason=e.reason, hint=e.hint, container=name),))
        results = [self._source(each, name) for each in (file, *drop_ins)]
        refused = tuple(result for result in results if isinstance(result, Diagnostic))
        if refused:
            return _Built(None, refused)
        return _build(name, [r for r in results if isinstance(r, Source)], self._config, self._paths)

    def _source(self, file: Found, name: str) -> Source | Diagnostic:
        """A file's table, read only when it changed."""
        if file.refused is not None or file.id is None:
            reason, hint = (file.refused.reason, file.refused.hint) if file.refused else ("is not there", "")
            return Diagnostic(file=file.path, reason=reason, hint=hint, container=name)
        cached = self._sources.get(file.path)
        if cached is None or cached[0] != file.id:
            cached = file.id, self._read_source(file.path)
            self._sources[file.path] = cached
        result = cached[1]
        return msgspec.structs.replace(result, container=name) if isinstance(result, Diagnostic) else result

    def _read_source(self, path: str) -> Source | Diagnostic:
        try:
            content, found = files.read(path, toml.SIZE_MAX)
            files.check_owner(path, found)
        except Unusable as e:
            return Diagnostic(file=path, reason=e.reason, hint=e.hint)
        result = toml.read(content)
        if isinstance(result, toml.SyntaxFault):
            return merge.syntax_diagnostic(path, result)
        return Source(path, *result)

    def _forget(self, found: Survey) -> None:
        """Drop what belongs to files that are gone."""
        if len(self._built) > len(found.files) + 64:
            self._built = {n: b for n, b in self._built.items() if n in found.files or template_of(n) in found.files}
        if len(self._sources) > len(found.files) + found.drop_in_count + 64:
            paths = found.paths()
            self._sources = {path: source for path, source in self._sources.items() if path in paths}
