from pathlib import Path

import pytest

from selfie_cli.data import memory
from selfie_cli.data.memory import _control_group_room, available_memory, share_of_memory, shared_memory


def test_memory_limits_of_control_groups(tmp_path):
    (tmp_path / "two/a/b").mkdir(parents=True)
    (tmp_path / "two/memory/job").mkdir(parents=True)

    def group(folder: str, names: tuple[str, str], limit: object, used: int, stat: str) -> None:
        for name, value in zip([*names, "memory.stat"], [limit, used, stat], strict=True):
            (tmp_path / "two" / folder / name).write_text(f"{value}\n")

    version2, version1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group("a/b", version2, "max", 5, "inactive_file 1")
    group("a", version2, 1000, 700, "anon 1\ninactive_file 200")
    group("memory/job", version1, 3000, 100, "total_inactive_file 50")
    group("memory", version1, 2**63 - 4096, 100, "total_inactive_file 50")
    (tmp_path / "membership").write_text("4:memory:/job\n3:cpu:/job\n0::/a/b\n")
    assert list(_control_group_room(tmp_path / "membership", tmp_path / "two")) == [2950, 500]
    assert list(_control_group_room(tmp_path / "absent", tmp_path)) == []
    assert available_memory() > 0


@pytest.mark.parametrize(("processes", "share"), [(None, 400), ("1", 400), ("4", 100), ("none", 400), ("0", 400)])
def test_the_processes_of_a_machine_share_its_memory(monkeypatch, processes, share):
    monkeypatch.setattr(memory, "available_memory", lambda: 800)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert share_of_memory() == share


def test_shared_memory_is_what_is_mounted():
    there = shared_memory()
    if Path("/dev/shm").exists():
        assert there is not None
        assert there >= 0
    else:
        assert there is None
