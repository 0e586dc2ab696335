"""`specpipe doctor`: check this machine, and list what a run needs and does not find.

`inventory.look` gathers the facts. All functions here are pure functions of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.backends import Traits
from specpipe.config.run_config import EngineOptions
from specpipe.core.errors import SpecpipeError
from specpipe.doctor.inventory import OF_CPUS, Machine, look
from specpipe.engine.gpus import find_gpu
from specpipe.engine.tensorrt.profiles import Profile, find_profile
from specpipe.plan.outlook import cpu_notes
from specpipe.run.run import Run
from specpipe.serve.front_server import ENVIRONMENT

_LEAST_DRIVER = {"12": 525, "13": 580}  # branch of the driver by CUDA's major version
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One fact about the machine, and the problem with it, if any."""

    name: str
    found: str  # the version, size or name; or "missing"
    problem: str | None = None  # why the run cannot work, or what to do


@dataclass(frozen=True)
class Needs:
    """The requirements of a run."""

    traits: Traits  # of its backend
    gpu: str | None = None
    ranks: int = 1
    disk_bytes: int = 0  # checkpoints and engines
    profile: Profile | None = None  # of TensorRT-LLM, if the run uses it
    engine: EngineOptions | None = None

    @property
    def sm(self) -> int | None:
        """Compute capability of the run's GPU; None if it is not known."""
        gpu = find_gpu(self.gpu) if self.gpu else None
        return gpu.sm if gpu else None


def examine(run: Run | None, workspace: Path = Path()) -> list[Finding]:
    """Check this machine; with a run, also check its requirements."""
    needs = needs_of(run) if run else None
    return judge(look(workspace), needs)


def needs_of(run: Run) -> Needs:
    """Return the requirements of a run; the disk space only if its models are known."""
    engine = run.config.engine
    profile = find_profile(engine.tensorrt_llm) if engine.gpu else None
    try:
        requests = run.plan.requests
    except SpecpipeError:  # `plan` reports it; this command checks the machine
        return Needs(engine.traits, engine.gpu, 1, 0, profile, engine)
    target = requests["target"]
    weights = sum(request.model.num_parameters for request in requests.values())
    ranks = target.engine.parallel.world_size
    return Needs(engine.traits, engine.gpu, ranks, 4 * weights, profile, engine)


def judge(machine: Machine, needs: Needs | None) -> list[Finding]:
    """Return the facts about the machine, with the problems that they are for `needs`."""
    compiles = needs is not None and needs.traits.upstream_engines
    return [
        _python(machine),
        *_packages(machine, needs),
        _server(machine, needs),
        _numpy(machine, needs),
        Finding("cpu", f"{machine.cpus} CPUs, {' '.join(machine.cpu_kinds)}"),
        *_program(machine, needs),
        *_bfloat16(machine, needs),
        Finding("memory", _size(machine.memory_bytes)),
        _shared_memory(machine),
        _disk(machine, needs),
        _ports(machine, needs),
        *_gpus(machine, needs),
        _runtime(machine, needs if compiles else None),
        _compiler(machine, needs if compiles else None),
    ]


def _python(machine: Machine) -> Finding:
    good = (3, 10) <= machine.python[:2] <= (3, 13)
    problem = None if good else "specpipe needs Python 3.10 to 3.13"
    return Finding("python", ".".join(map(str, machine.python)), problem)


def _packages(machine: Machine, needs: Needs | None) -> Iterator[Finding]:
    for name, version in machine.packages.items():
        needed = name not in OF_CPUS
        needed = needed or (needs is not None and needs.traits.own_engine)
        missing = f"pip install {name}" if needed else None
        yield Finding(name, version or "missing", None if version else missing)


def _server(machine: Machine, needs: Needs | None) -> Finding:
    problem = None
    if machine.server is None and needs is not None and needs.traits.program is None:
        problem = "in a clone of specpipe: pip install -e '.[cpu]'"
        if needs.profile:
            problem = f"serve in {needs.profile.container}, or with `specpipe package --deploy`"
    return Finding("tritonserver", machine.server or "missing", problem)


def _program(machine: Machine, needs: Needs | None) -> Iterator[Finding]:
    """Look for the program that serves the run in place of tritonserver, if it needs one."""
    if needs is None or needs.traits.program is None:
        return
    name, title = needs.traits.program, needs.traits.title
    found = machine.programs.get(name)
    hint = (
        f"scripts/setup {name}, or set {ENVIRONMENT} to the folder of an environment with {title}"
    )
    yield Finding(name, found or "missing", None if found else hint)


def _numpy(machine: Machine, needs: Needs | None) -> Finding:
    version = machine.packages.get("numpy")
    old = version is not None and int(version.split(".")[0]) < 2
    bad = version is not None and not old and needs is not None and needs.traits.own_engine
    return Finding(
        "numpy for Triton's Python backend",
        "ok" if old else f"{version or 'missing'}, must be below 2",
        "pip install 'numpy<2': with numpy 2 the server returns empty answers" if bad else None,
    )


def _bfloat16(machine: Machine, needs: Needs | None) -> Iterator[Finding]:
    """Note that the CPU engine of a run in bfloat16 gains nothing here; this is no problem."""
    if needs and needs.engine:
        for note in cpu_notes(needs.engine, machine.cpu_kinds):
            yield Finding("bfloat16", f"emulated: {note}")


def _shared_memory(machine: Machine) -> Finding:
    good = machine.shared_memory_bytes > 64 * 2**20
    problem = None if good else "Triton needs shared memory: docker run --shm-size=2g"
    return Finding("/dev/shm", f"{_size(machine.shared_memory_bytes)} free", problem)


def _disk(machine: Machine, needs: Needs | None) -> Finding:
    wanted = needs.disk_bytes if needs else 0
    problem = None
    if machine.disk_bytes < wanted:
        problem = f"checkpoints and engines may take {_size(wanted)}: use another --workspace"
    return Finding("disk", f"{_size(machine.disk_bytes)} free", problem)


def _ports(machine: Machine, needs: Needs | None) -> Finding:
    if not machine.busy_ports:
        return Finding("ports 8000 to 8002", "free")
    busy = ", ".join(map(str, machine.busy_ports))
    problem = "stop the program on these ports, or set --http-port, --grpc-port, --metrics-port"
    return Finding("ports 8000 to 8002", f"in use: {busy}", problem if needs else None)


def _gpus(machine: Machine, needs: Needs | None) -> Iterator[Finding]:
    wanted = f"{needs.ranks} x {needs.gpu}" if needs and needs.gpu else None
    if not machine.gpus:
        problem = f"the run needs {wanted}, but nvidia-smi finds no GPU" if wanted else None
        yield Finding("gpu", "none", problem)
        return
    first = machine.gpus[0]
    found = f"{len(machine.gpus)} x {first.name} (SM {first.sm}, {first.memory_mib} MiB)"
    problem = None
    if wanted and needs and needs.sm not in (None, first.sm):
        problem = f"the run is for {needs.gpu} (SM {needs.sm}): change engine.gpu"
    elif needs and needs.gpu and len(machine.gpus) < needs.ranks:
        problem = f"the run needs {wanted}: lower engine.tp_size or engine.pp_size"
    yield Finding("gpu", found, problem)
    yield _driver(first.driver, needs)


def _driver(version: str, needs: Needs | None) -> Finding:
    if needs is None or needs.profile is None:
        return Finding("driver", version)
    least = _LEAST_DRIVER.get(needs.profile.cuda.split(".")[0], 0)
    branch = version.split(".")[0]
    old = branch.isdigit() and int(branch) < least
    problem = (
        f"CUDA {needs.profile.cuda} of TensorRT-LLM {needs.profile.tensorrt_llm} needs driver "
        f"{least} or newer (on data centre GPUs the container's compatibility package may do)"
    )
    return Finding("driver", version, problem if old else None)


def _runtime(machine: Machine, needs: Needs | None) -> Finding:
    """Check the container runtime; it is required only if there is no trtllm-build here."""
    runtime, elsewhere = machine.runtime, machine.compiler is not None
    if runtime is None:
        found, problem = "missing", "install docker and NVIDIA's container toolkit"
    elif not runtime.answers:
        found = f"{runtime.name}: daemon is not running or not accessible"
        problem = "start the daemon, and give this user access to it"
    elif not runtime.knows_nvidia:
        found = f"{runtime.name}, without NVIDIA's container runtime"
        problem = "nvidia-ctk runtime configure --runtime=docker, then restart docker"
    else:
        return Finding("containers", f"{runtime.name}, with NVIDIA's container runtime")
    return Finding("containers", found, problem if needs and not elsewhere else None)


def _compiler(machine: Machine, needs: Needs | None) -> Finding:
    if machine.compiler is None:
        return Finding("trtllm-build", "missing (--in-container uses NVIDIA's container)")
    version = machine.compiler_versions.get("tensorrt_llm", "of an unknown release")
    problem = None
    if needs and needs.profile and version != needs.profile.tensorrt_llm:
        problem = f"the run is for TensorRT-LLM {needs.profile.tensorrt_llm}: use --in-container"
    return Finding("trtllm-build", f"{version}, {machine.compiler}", problem)


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"
