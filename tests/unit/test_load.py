# SPDX-License-Identifier: Apache-2.0
"""The definition folders: search path, masks, drop-ins, templates, owners, environment files, the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.definition.agent_config import AgentConfig, Defaults, ServiceDefaults
from agent.definition.load import Loader, from_raw, parse_text
from agent.definition.model import Loaded, Restart
from agent.errors import DefinitionRejected
from agent.paths import Paths

PLAIN = 'image = "nginx"\n'
Write = Callable[..., Path]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(
        config=tmp_path / "etc", runtime=tmp_path / "run", state=tmp_path / "state", vendor=tmp_path / "vendor"
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name, text, place="etc"): a file in a definition folder, folders made as needed."""

    def write(name: str, text: str = PLAIN, *, place: str = "etc") -> Path:
        path = tmp_path / place / "containers" / name
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    return write


@pytest.fixture
def loader(paths: Paths) -> Loader:
    return Loader(paths)


def said(loaded: Loaded) -> list[str]:
    return [str(diagnostic) for diagnostic in loaded.diagnostics]


# Search path


def test_nothing_there(loader: Loader) -> None:
    loaded = loader.load()
    assert (loaded.definitions, loaded.diagnostics, loaded.masked, loaded.templates) == ({}, (), (), ())


def test_first_folder_wins(loader: Loader, write: Write) -> None:
    for place in ("vendor", "run", "etc"):
        write("web.toml", f'image = "{place}"\n', place=place)
        assert loader.load().definitions["web"].container.image == place


def test_all_folders_count(loader: Loader, write: Write) -> None:
    for place in ("etc", "run", "vendor"):
        write(f"{place}.toml", place=place)
    assert sorted(loader.load().definitions) == ["etc", "run", "vendor"]


def test_mask(loader: Loader, write: Write) -> None:
    web = write("web.toml", place="vendor")
    mask = write("db.toml").with_name("web.toml")
    mask.symlink_to("/dev/null")
    loaded = loader.load()
    assert (sorted(loaded.definitions), loaded.masked) == (["db"], ("web",))
    assert loader.load_one("web").masked == ("web",)
    mask.unlink()
    assert loader.load().definitions["web"].container.source == str(web)


def test_other_files_are_ignored(loader: Loader, write: Write) -> None:
    for name in (".web.toml", "web.toml~", "web.toml.rpmsave", "README", "web.conf"):
        write(name, "no TOML")
    assert loader.load() == Loaded(definitions={})


def test_name_that_is_none(loader: Loader, write: Write) -> None:
    path = write("Web Server.toml")
    (diagnostic,) = loader.load().diagnostics
    assert diagnostic.file == str(path)
    assert "is not a container name" in diagnostic.reason


def test_name_and_source(loader: Loader, write: Write) -> None:
    path = write("web.toml")
    container = loader.load().definitions["web"].container
    assert (container.name, container.source) == ("web", str(path))


# Files that cannot be read


def test_bad_file_is_no_harm_to_others(loader: Loader, write: Write) -> None:
    write("good.toml")
    write("bad.toml", "image = [\n")
    loaded = loader.load()
    assert sorted(loaded.definitions) == ["good"]
    assert loaded.rejected == {"bad"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is a fifo"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "is a symlink to"),
        (lambda path: path.symlink_to(path.name), "leads back to itself"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.write_bytes(b'image = "\xff"\n'), "0xff is not UTF-8"),
        (lambda path: path.write_bytes(b'image = "a\0"\n'), "NUL"),
        (lambda path: path.write_bytes(b"# " + b"x" * (1 << 20)), "bytes"),
        (lambda path: path.write_bytes(b""), "one of image, rootfs and bundle"),
    ],
)
def test_unusable_file(loader: Loader, write: Write, make: Callable[[Path], object], words: str) -> None:
    path = write("good.toml").with_name("bad.toml")
    make(path)
    started = time.monotonic()
    loaded = loader.load()
    assert time.monotonic() - started < 1
    assert (sorted(loaded.definitions), loaded.rejected) == (["good"], frozenset({"bad"}))
    assert words in said(loaded)[0]
    assert said(loader.load()) == said(loaded)


def test_byte_order_mark_and_crlf(loader: Loader, write: Write) -> None:
    write("web.toml").write_bytes(b'\xef\xbb\xbfimage = "nginx"\r\n[service]\r\nrestart = "always"\r\n')
    assert loader.load().definitions["web"].container.service.restart is Restart.ALWAYS


def test_position_of_what_is_not_utf8(loader: Loader, write: Write) -> None:
    write("web.toml").write_bytes(b'image = "nginx"\nuser = "\xc3\xa4\xff"\n')
    (diagnostic,) = loader.load().diagnostics
    assert (diagnostic.line, diagnostic.column) == (2, 10)


def test_endless_dots_are_refused_quickly(loader: Loader, write: Write) -> None:
    write("web.toml", ".".join("a" * 200_000) + " = 1\n")
    started = time.monotonic()
    assert "dots in one line" in said(loader.load())[0]
    assert time.monotonic() - started < 1


# Owners and modes


def test_file_that_others_can_write(loader: Loader, write: Write) -> None:
    path = write("web.toml")
    for mode, who in ((0o664, "its group"), (0o646, "everybody")):
        path.chmod(mode)
        (diagnostic,) = loader.load().diagnostics
        assert f"can be written by {who} (mode {mode:04o})" in diagnostic.reason
        assert diagnostic.hint == f"chmod go-w {path}"
        assert diagnostic.container == "web"
    path.chmod(0o600)
    assert "web" in loader.load().definitions


def test_folder_that_others_can_write(loader: Loader, write: Write) -> None:
    folder = write("web.toml").parent
    assert "web" in loader.load().definitions
    folder.chmod(0o777)
    loaded = loader.load()
    assert (loaded.definitions, loaded.rejected) == ({}, frozenset({"web"}))
    assert f"chmod go-w {folder}" in said(loaded)[0]
    folder.chmod(0o755)
    assert "web" in loader.load().definitions


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_of_somebody_else(loader: Loader, write: Write) -> None:
    path = write("web.toml")
    os.chown(path, 65534, 65534)
    (diagnostic,) = loader.load().diagnostics
    assert "is owned by uid 65534" in diagnostic.reason
    assert diagnostic.hint == f"chown root {path}"


def test_drop_in_folder_that_others_can_write(loader: Loader, write: Write) -> None:
    write("web.toml")
    write("web.toml.d/a.toml", "").parent.chmod(0o777)
    loaded = loader.load()
    assert loaded.rejected == {"web"}
    assert "its folder can be written by everybody" in said(loaded)[0]


# Drop-ins


def test_drop_ins_merge_tables_and_replace_lists(loader: Loader, write: Write) -> None:
    write(
        "web.toml",
        PLAIN + 'groups = ["a", "b"]\nlabels = { a = "1", b = "2" }\n[service]\nrestart = "no"\nrestart_steps = 3\n',
    )
    write("web.toml.d/10-a.toml", 'groups = ["c"]\nlabels.b = "3"\n[service]\nrestart = "always"\n', place="vendor")
    container = loader.load().definitions["web"].container
    assert container.groups == ("c",)
    assert container.labels == {"a": "1", "b": "3"}
    assert (container.service.restart, container.service.restart_steps) == (Restart.ALWAYS, 3)


def test_drop_ins_in_name_order_from_all_places(loader: Loader, write: Write) -> None:
    write("web.toml")
    write("web.toml.d/30.toml", 'description = "vendor 30"\n', place="vendor")
    write("web.toml.d/20.toml", 'description = "etc 20"\nuser = "20"\n')
    write("web.toml.d/10.toml", 'user = "10"\nhostname = "h10"\n', place="run")
    container = loader.load().definitions["web"].container
    assert (container.description, container.user, container.hostname) == ("vendor 30", "20", "h10")


def test_drop_in_of_the_same_name_hides(loader: Loader, write: Write) -> None:
    write("web.toml")
    write("web.toml.d/a.toml", 'user = "vendor"\nhostname = "vendor"\n', place="vendor")
    drop_in = write("web.toml.d/a.toml", 'user = "etc"\n')
    container = loader.load().definitions["web"].container
    assert (container.user, container.hostname) == ("etc", "")
    drop_in.unlink()
    drop_in.symlink_to("/dev/null")
    assert loader.load().definitions["web"].container.user == ""


def test_drop_ins_without_a_definition(loader: Loader, write: Write) -> None:
    write("web.toml.d/a.toml", "nonsense")
    assert loader.load() == Loaded(definitions={})


def test_drop_in_takes_a_value_back(loader: Loader, write: Write) -> None:
    write("web.toml", PLAIN + 'hostname = "h"\n')
    write("web.toml.d/a.toml", 'image = ""\nrootfs = "/srv/x"\ncommand = ["x"]\nhostname = ""\n')
    container = loader.load().definitions["web"].container
    assert (container.image, container.rootfs, container.hostname) == ("", "/srv/x", "")


def test_error_in_a_drop_in_names_it(loader: Loader, write: Write) -> None:
    write("web.toml", PLAIN + '[service]\nrestart = "always"\n')
    drop_in = write("web.toml.d/10.toml", '\n[service]\nrestart = "alwys"\n')
    (diagnostic,) = loader.load().diagnostics
    assert (diagnostic.file, diagnostic.line, diagnostic.key) == (str(drop_in), 3, "service.restart")
    assert loader.load().rejected == {"web"}
    drop_in.write_text("[service\n")
    (diagnostic,) = loader.load().diagnostics
    assert (diagnostic.file, diagnostic.line) == (str(drop_in), 1)


def test_error_of_the_main_file_beside_drop_ins(loader: Loader, write: Write) -> None:
    path = write("web.toml", PLAIN + "[service]\nrestart_steps = -1\n")
    write("web.toml.d/10.toml", '[service]\nrestart = "always"\n')
    (diagnostic,) = loader.load().diagnostics
    assert (diagnostic.file, diagnostic.line) == (str(path), 3)


# Templates


def test_template_is_no_container(loader: Loader, write: Write) -> None:
    write("web@.toml", PLAIN + 'description = "%i"\n')
    loaded = loader.load()
    assert (loaded.definitions, loaded.templates, loaded.diagnostics) == ({}, ("web@",), ())


def test_instances(loader: Loader, write: Write) -> None:
    template = write("web@.toml", PLAIN + 'description = "%n %p %i %%"\nhostname = "%i"\n')
    link = template.with_name("web@one.toml")
    link.symlink_to("web@.toml")
    loaded = loader.load(instances=["web@two", "other@x"])
    assert {name: d.container.description for name, d in loaded.definitions.items()} == {
        "web@one": "web@one web one %",
        "web@two": "web@two web two %",
    }
    assert loaded.definitions["web@one"].container.source == str(link)
    assert loader.load_one("web@two").definitions["web@two"].container.source == str(template)
    assert sorted(loader.load().definitions) == ["web@one"]


def test_drop_ins_of_template_and_instance(loader: Loader, write: Write) -> None:
    write("web@.toml")
    write("web@.toml.d/10.toml", 'user = "template"\nhostname = "%i"\n')
    write("web@a.toml.d/10.toml", 'user = "instance"\n')
    write("web@.toml.d/20.toml", 'description = "all"\n')
    a = loader.load_one("web@a").definitions["web@a"].container
    b = loader.load_one("web@b").definitions["web@b"].container
    assert (a.user, a.hostname, a.description) == ("instance", "", "all")
    assert (b.user, b.hostname, b.description) == ("template", "b", "all")


def test_error_in_a_template_is_seen_without_an_instance(loader: Loader, write: Write) -> None:
    write("web@.toml", PLAIN + 'environment_files = ["%i.env"]\nrestrat = 1\n')
    loaded = loader.load()
    assert [(d.container, d.key, d.line) for d in loaded.diagnostics] == [("web@", "restrat", 3)]


def test_masked_template(loader: Loader, write: Write) -> None:
    write("web@.toml", place="vendor")
    write("x.toml").with_name("web@.toml").symlink_to("/dev/null")
    loaded = loader.load_one("web@1")
    assert (loaded.definitions, loaded.diagnostics, loaded.masked) == ({}, (), ("web@1",))


@pytest.mark.parametrize("name", ["nothing", "nothing@1", "", "..", "/etc/passwd", "web@../x"])
def test_no_such_container(loader: Loader, write: Write, name: str) -> None:
    write("web.toml")
    assert loader.load_one(name) == Loaded(definitions={})


def test_name_of_an_instance_is_checked(loader: Loader, write: Write) -> None:
    write("web@.toml")
    loaded = loader.load_one("web@../../x")
    assert loaded.definitions == {}
    assert "is not the name of an instance" in said(loaded)[0]


# Environment files


def test_environment_files(loader: Loader, write: Write) -> None:
    files = 'environment_files = ["a.env", "-missing.env", "b.env"]\n'
    path = write("web.toml", PLAIN + files + 'environment = { C = "own" }\n')
    write("a.env", "A=a\nB=a\nC=a\n")
    write("b.env", "B='b %i'\n")
    definition = loader.load().definitions["web"]
    assert definition.container.environment == {"A": "a", "B": "b %i", "C": "own"}
    assert definition.container.environment_files[0] == str(path.with_name("a.env"))
    assert definition.raw["environment"] == definition.container.environment


def test_environment_file_is_relative_to_the_file_that_names_it(loader: Loader, write: Write) -> None:
    write("web.toml")
    write("web.toml.d/a.toml", 'environment_files = ["x.env"]\n')
    write("web.toml.d/x.env", "A=1\n")
    assert loader.load().definitions["web"].container.environment == {"A": "1"}


def test_fault_in_an_environment_file(loader: Loader, write: Write) -> None:
    write("web.toml", PLAIN + 'environment_files = ["a.env"]\n')
    path = write("a.env", "A=1\noops\n")
    (diagnostic,) = loader.load().diagnostics
    assert (diagnostic.file, diagnostic.line, diagnostic.container) == (str(path), 2, "web")
    path.write_text("A=1\n")
    assert loader.load().definitions["web"].container.environment == {"A": "1"}


def test_optional_environment_file_appears(loader: Loader, write: Write) -> None:
    write("web.toml", PLAIN + 'environment_files = ["-a.env"]\n')
    before = loader.load().definitions["web"]
    write("a.env", "A=1\n")
    after = loader.load().definitions["web"]
    assert after.container.environment == {"A": "1"}
    assert before.digest != after.digest


# The cache


def test_unchanged_definitions_are_the_same_objects(loader: Loader, write: Write) -> None:
    write("web.toml", PLAIN + 'environment_files = ["a.env"]\n')
    write("a.env", "A=1\n")
    write("web.toml.d/a.toml", 'user = "x"\n')
    write("bad.toml", "x = 1\n")
    first, second = loader.load(), loader.load()
    assert first.definitions["web"] is second.definitions["web"]
    assert first == second
    assert loader.load_one("web").definitions["web"] is first.definitions["web"]


def test_changes_are_seen(loader: Loader, write: Write) -> None:
    path = write("web.toml", PLAIN)
    digest = loader.load().definitions["web"].digest
    times = path.stat()
    # Same size, same modification time: the change time tells.
    path.write_text('image = "nginy"\n')
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = loader.load().definitions["web"]
    assert changed.container.image == "nginy"
    assert changed.digest != digest
    drop_in = write("web.toml.d/a.toml", 'user = "x"\n')
    assert loader.load().definitions["web"].container.user == "x"
    drop_in.unlink()
    assert loader.load().definitions["web"].container.user == ""
    path.unlink()
    assert loader.load().definitions == {}


def test_digest_is_of_the_content(loader: Loader, write: Write) -> None:
    path = write("web.toml", '# one\nimage = "nginx"\nuser = "x"\n')
    digest = loader.load().definitions["web"].digest
    path.write_text('user = "x"  # two\nimage = "nginx"\n')
    assert loader.load().definitions["web"].digest == digest


def test_many_unchanged_definitions_are_quick(loader: Loader, write: Write) -> None:
    folder = write("c0.toml").parent
    for i in range(1000):
        (folder / f"c{i}.toml").write_text(PLAIN + f'description = "{i}"\n')
    loader.load()
    loaded = Loaded(definitions={})
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        loaded = loader.load()
        durations.append(time.perf_counter() - started)
    assert len(loaded.definitions) == 1000
    assert min(durations) < 0.05


# Settings, stored tables, lone texts


def test_defaults_of_the_settings(paths: Paths, write: Write) -> None:
    write("silent.toml")
    write("own.toml", PLAIN + '[service]\nrestart = "no"\n[cgroup]\nslice = "a.slice"\n')
    write("job.toml", PLAIN + '[service]\ntype = "oneshot"\n')
    service = ServiceDefaults(restart=Restart.ALWAYS, timeout_stop_sec=float("inf"))
    config = AgentConfig(default_slice="b.slice", default_runtime="runc", defaults=Defaults(service=service))
    found = {name: d.container for name, d in Loader(paths, config).load().definitions.items()}
    assert (found["silent"].service.restart, found["silent"].cgroup.slice) == (Restart.ALWAYS, "b.slice")
    assert (found["own"].service.restart, found["own"].cgroup.slice) == (Restart.NO, "a.slice")
    assert found["job"].service.restart is Restart.ON_FAILURE
    assert {c.runtime.name for c in found.values()} == {"runc"}
    assert {c.service.timeout_stop_sec for c in found.values()} == {float("inf")}


def test_stored_table_gives_the_same_definition(loader: Loader, write: Write) -> None:
    write(
        "web@.toml", PLAIN + 'description = "%i 100%%"\nenvironment_files = ["a.env"]\n[resources]\ncpu_quota = "5%"\n'
    )
    path = write("a.env", "A=%i\n")
    definition = loader.load_one("web@1").definitions["web@1"]
    path.unlink()
    assert from_raw(definition.raw, "web@1", definition.container.source) == definition


def test_stored_table_of_another_version(loader: Loader) -> None:
    definition = from_raw(
        {"image": "nginx", "from_the_future": 1, "service": {"restart": "sometimes"}}, "web", "/web.toml"
    )
    assert definition.container.image == "nginx"
    assert definition.container.service.restart is Restart.ON_FAILURE
    with pytest.raises(DefinitionRejected):
        from_raw({}, "../x", "")


def test_lone_text() -> None:
    definition, diagnostics = parse_text("\ufeff" + PLAIN, "web", "-")
    assert definition is not None
    assert diagnostics == ()
    definition, diagnostics = parse_text(PLAIN, "We b", "-")
    assert definition is None
    assert "not a container name" in diagnostics[0].reason


# Between definitions


def test_problems_between_definitions_refuse_none(loader: Loader, write: Write) -> None:
    write("a.toml", PLAIN + 'after = ["b"]\n')
    write("b.toml", PLAIN + 'after = [\n  "a",\n]\n')
    path = write("c.toml", PLAIN + 'requires = ["missing", "broken"]\n')
    write("broken.toml", "")
    loaded = loader.load()
    assert sorted(loaded.definitions) == ["a", "b", "c"]
    assert loaded.rejected == {"broken"}
    found = {(d.container, d.key, d.line, d.reason) for d in loaded.diagnostics if d.container != "broken"}
    assert found == {
        ("c", "requires[0]", 2, 'there is no container "missing"'),
        ("a", "after[0]", 2, "a cycle: a after b after a"),
    }
    assert str(path) in {d.file for d in loaded.diagnostics}
