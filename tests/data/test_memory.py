import pytest

from selfie_cli.data import memory
from selfie_cli.data.memory import _control_group_room, available_memory, share_of_memory


def test_memory_limits_of_control_groups(tmp_path):
    def group(folder: str, limit: object, used: int, stat: str, *, version: int) -> None:
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        for name, value in zip([*names, "memory.stat"], [limit, used, stat], strict=True):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(f"{value}\n")

    group("a/b", "max", 5, "inactive_file 1", version=2)
    group("a", 1000, 700, "anon 1\ninactive_file 200", version=2)
    group("memory/job", 3000, 100, "total_inactive_file 50", version=1)
    group("memory", 2**63 - 4096, 100, "total_inactive_file 50", version=1)
    (tmp_path / "membership").write_text("4:memory:/job\n3:cpu:/job\n0::/a/b\n")
    assert list(_control_group_room(tmp_path / "membership", tmp_path)) == [2950, 500]
    assert list(_control_group_room(tmp_path / "absent", tmp_path)) == []
    assert available_memory() > 0


@pytest.mark.parametrize(("processes", "share"), [(None, 400), ("4", 100), ("none", 400), ("0", 400)])
def test_the_processes_of_a_machine_share_its_memory(monkeypatch, processes, share):
    monkeypatch.setattr(memory, "available_memory", lambda: 800)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert share_of_memory() == share
