"""Finding the stage actors of one server among all processes of the machine."""

from pathlib import Path


def stage_pids(root: int) -> list[int]:
    """Stage actors among the descendants of process `root` (Ray names a process after its
    actor)."""
    parents = {}
    stages = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(entry.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if command.startswith(b"ray::StageActor"):
            stages.append(pid)
    return [pid for pid in stages if root in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found
