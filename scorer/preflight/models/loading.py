"""The sessions that the models of a request need, and the models loaded into this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from scorer.cluster.kinds.sizes import planned_processes
from scorer.cluster.scripts import can_spawn
from scorer.display.words import size
from scorer.host import devices
from scorer.host.crash import note_step
from scorer.host.process import measuring, resident
from scorer.model import copies
from scorer.model.resident import SESSIONS, unpacked_note
from scorer.model.session import library_for, settle_device, why_not
from scorer.model.spec import SessionSpec
from scorer.plan.prepared import cluster_of
from scorer.preflight.forecast import Loading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.model.resident import Engine
    from scorer.options.fields import Options
    from scorer.preflight.findings import Findings
    from scorer.preflight.models.requested import Model

_COMPILED_FROM = 20_000  # rows: for fewer, compiling trees takes longer than it saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The models' sessions in this process, and the specs that load the same sessions on workers."""

    names: tuple[str, ...]
    """The models' names; '' for the only one."""
    sessions: tuple[Engine, ...]
    specs: tuple[SessionSpec, ...]
    memory: tuple[Loading, ...]
    """What each model needs in memory."""

    @property
    def nodes(self) -> dict[str, int]:
        """The number of all models' nodes on each device; {} if all run on the CPU."""
        found: dict[str, int] = {}
        for session in self.sessions:
            for device, number in devices.counts(session.nodes).items():
                found[device] = found.get(device, 0) + number
        return found


def session_specs(found: Findings, options: Options, models: Sequence[Model], rows: int) -> tuple[SessionSpec, ...]:
    """Choose the device and return what sessions on it need; without a model, only check the device."""
    with found.collecting(options):
        device = settle_device(options.session.device)
        unused = why_not("cuda") if device == "cpu" and options.session.device.lower() == "auto" else ""
        found.notes += [f"the device is the CPU, because CUDA does not work here: {unused}"] if unused else []
        return tuple(
            SessionSpec(
                path=model.spec.path, digest=model.spec.digest, files=model.spec.files, device=device,
                gpu=devices.parse(options.session.device).first,
                library=library_for(options.session.ort_library, model.spec.opsets),
                trees=options.session.trees == "auto" and rows >= _COMPILED_FROM,
            )
            for model in models
        )  # fmt: skip
    return ()


def load(found: Findings, options: Options, models: Sequence[Model], specs: Sequence[SessionSpec]) -> Loaded | None:
    """Load the models into this process: a file that can be parsed may still fail to load."""
    if not specs:
        return None
    with found.collecting(options):
        loaded = [_session(spec) for spec in specs]
        return Loaded(
            names=tuple(model.name for model in models), sessions=tuple(session for session, _ in loaded),
            specs=tuple(specs), memory=tuple(memory for _, memory in loaded),
        )  # fmt: skip
    return None


def _session(spec: SessionSpec) -> tuple[Engine, Loading]:
    note_step(f"loading the model {spec.path}")
    before = resident()
    with measuring() as growth:
        session = SESSIONS.session(spec)
    held = max(resident() - before, 0)
    return session, Loading(process=resident(), model=held, peak=max(growth.most, held))


def _readable(spec: SessionSpec) -> SessionSpec:
    return copies.local_spec(spec) or spec


def share_weights(
    found: Findings, options: Options, models: Sequence[Model], loaded: Loaded, together: float | None
) -> tuple[Loaded, list[str]]:
    """Pack the weights of large models if several processes of this host will use them.

    Returns the models with the memory that they then need in each process, and that in words for each. If the weights
    of a model are not packed, its memory stays as it is, and there are no words.
    """
    processes = planned_processes(options.cluster, cluster_of(options, together, spawns=can_spawn()))
    memory, words = list(loaded.memory), [""] * len(models)
    if processes < 2 or not options.session.pack:  # noqa: PLR2004 - several
        return loaded, words
    once = {spec.key: i for i, spec in reversed([*enumerate(loaded.specs)])}  # two names may have one file
    for i in sorted(once.values()):
        spec, model = loaded.specs[i], models[i].spec
        if not model.can_be_packed(spec):
            continue
        from scorer.model.packing import shared  # noqa: PLC0415 - only if processes share a host

        note_step(f"packing the weights of {spec.path}")
        try:
            packed = shared.obtain(spec, partial(_readable, spec))
        except shared.NotPacked as why:
            found.notes.append(unpacked_note(str(why)))
            continue
        own, mapped = packed.private_bytes, packed.shared_bytes
        memory[i] = replace(memory[i], model=own, weights=mapped, peak=own + mapped)
        words[i] = (
            f"{size(model.bytes)}, packed once for {processes} processes ({size(packed.bytes)} in the cache): "
            f"{size(own)} each and {size(mapped)} shared"
        )
    return replace(loaded, memory=tuple(memory)), words
