from tests.host.hosts import Host
D = '''
rootfs = "{root}"
command = ["/bin/sh", "-c", "echo hello; cat /sys/fs/cgroup/memory.max; exec sleep 1000"]
[network]
mode = "none"
[resources]
memory_max = "32M"
'''
def one(clean: Host) -> None:
    root = clean.rootfs("base")
    for n in ("a", "b", "c"):
        clean.definition(n, D.format(root=root))
    clean.reload()
    for n in "abc":
        clean.wait_event(n, "started")
    assert clean.status("a")["state"] == "running"
    assert clean.unit("cleat-a.scope", "MemoryMax") == {"MemoryMax": str(32<<20)}
def test_one(clean: Host) -> None:
    one(clean)
def test_two(clean: Host) -> None:
    one(clean)
def test_three(clean: Host) -> None:
    one(clean)
