"""Which errors of MLX are the machine's (backends/trouble.py)."""

import pytest
from mlx_messages import KERNELS, MACHINES, TIMEOUTS

from mlx_lm_openevolve.backends.trouble import GpuTimeout, machines, trouble
from mlx_lm_openevolve.errors import MachineError


@pytest.mark.parametrize("text", MACHINES)
def test_the_machines_trouble_is_known_by_its_text(text: str) -> None:
    found = trouble(RuntimeError(text))
    assert type(found) is MachineError
    assert str(found) == " ".join(text.split())
    with pytest.raises(MachineError), machines():
        raise RuntimeError(text)


@pytest.mark.parametrize("text", TIMEOUTS)
def test_a_gpus_timeout_is_a_kind_of_its_own(text: str) -> None:
    assert isinstance(trouble(RuntimeError(text)), GpuTimeout)


@pytest.mark.parametrize("text", KERNELS)
def test_what_a_kernel_does_by_itself_stays_its_own(text: str) -> None:
    assert trouble(RuntimeError(text)) is None
    with pytest.raises(RuntimeError, match=r"^[^ ]"), machines():
        raise RuntimeError(text)


@pytest.mark.parametrize("text", [*MACHINES, *TIMEOUTS])
def test_a_source_that_quotes_trouble_is_not_in_trouble(text: str) -> None:
    """A compiler shows the line that it refuses."""
    head = "[metal::Device] Unable to build metal library from source\n"
    assert trouble(RuntimeError(f"{head}program_source:3:1: error: {text}")) is None
    assert trouble(RuntimeError(f"Failed to compile kernel: {text}")) is None
    assert trouble(ValueError(text)) is None


def test_no_memory_in_this_process_is_the_machines() -> None:
    assert str(trouble(MemoryError())) == "no memory left"
    given = MachineError("full")
    assert trouble(given) is given
