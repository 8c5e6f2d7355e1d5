"""Finding the actors of one server, or of one raylet, among all processes of the machine."""

from pathlib import Path


def stage_pids(root: int) -> list[int]:
    """Stage actors among the descendants of process `root`."""
    return actor_pids(root, "StageActor")


def actor_pids(root: int, kind: str) -> list[int]:
    """Actors of this class among the descendants of process `root` (Ray names a process after its
    actor, and after the class of that)."""
    parents = {}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(entry.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if command.startswith(b"ray::") and kind.encode() in command:
            found.append(pid)
    return [pid for pid in found if root in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found
