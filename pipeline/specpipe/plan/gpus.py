"""NVIDIA GPUs as data: compute capability and memory, from NVIDIA's data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One product."""

    name: str
    sm: int  # compute capability without the dot
    memory_gb: float  # as sold: 10^9 bytes

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gb * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10", 86, 24),
        Gpu("A30", 80, 24),
        Gpu("A100-40GB", 80, 40),
        Gpu("A100-80GB", 80, 80),
        Gpu("L4", 89, 24),
        Gpu("L40S", 89, 48),
        Gpu("H100-PCIe", 90, 80),
        Gpu("H100-SXM", 90, 80),
        Gpu("H100-NVL", 90, 94),
        Gpu("H200", 90, 141),
        Gpu("RTX-4090", 89, 24),
    )
}
