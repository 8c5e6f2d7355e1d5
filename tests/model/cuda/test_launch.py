"""Which variants of a kernel are looked for, and which are launched as they are."""

import pytest
import torch

from medha_actors.model.cuda.launch import Launcher


class Function:
    """In the place of a function under triton.jit: says how it was called."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        def launch(*given, **options):
            self.launches.append(("sought", grid, given, options))
            return Compiled(self.launches, len(self.launches))

        return launch


class Compiled:
    def __init__(self, launches, number):
        self.launches = launches
        self.number = number

    def __getitem__(self, grid):
        return lambda *given: self.launches.append((self.number, grid, given))


@pytest.fixture
def launcher():
    return Launcher(Function(), num_warps=4)


def test_a_variant_is_sought_once(launcher):
    x = torch.zeros(8)
    launcher((2, 1, 1), (x,), (5,), (7,))
    launcher((3, 1, 1), (x,), (6,), (7,))
    assert launcher.function.launches == [
        ("sought", (2, 1, 1), (x, 5, 7), {"num_warps": 4}),
        (1, (3, 1, 1), (x, 6, 7)),
    ]


def test_what_a_variant_depends_on(launcher):
    for dtype in (torch.float32, torch.bfloat16):
        for constant in (1, 2):
            for options in (None, {"num_stages": 3}):
                launcher(
                    (1, 1, 1), (torch.zeros(8, dtype=dtype),), (), (constant,), options
                )
    launches = launcher.function.launches
    assert [launch[0] for launch in launches] == ["sought"] * 8
    assert launches[1][3] == {"num_warps": 4, "num_stages": 3}


def test_odd_addresses_are_left_to_triton(launcher):
    x = torch.zeros(8)
    for _ in range(2):
        launcher((1, 1, 1), (x, x[1:]))
    launcher((1, 1, 1), (x, x))
    assert [launch[0] for launch in launcher.function.launches] == ["sought"] * 3
