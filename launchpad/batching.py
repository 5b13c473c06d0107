"""Which batching parameters each model really gets: the server's, its own, none, or the tuned ones."""

from __future__ import annotations

import json
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError
from launchpad.layout import Layout
from launchpad.spec import Batching, BatchQueue, ModelBatching, ServerBatching, Strict


class Tuned(Strict):
    """The part of `serving/tuned.yaml` that is obeyed where the declaration says `batching: tuned`."""

    batching: ServerBatching
    models: dict[str, ModelBatching] = {}


@dataclass(frozen=True)
class Effective:
    """Batching as the server will do it.

    server: the thread pool, and the parameters of models without their own; None when nothing is batched.
    queues: {model: its parameters, or None where it is not batched}.
    changing: parameters change while the server runs.
    per_model: the server reads each version's own parameters: some differ from the server's, or change.
    """

    server: Batching | None
    queues: dict[str, BatchQueue | None]
    changing: bool = False

    @property
    def per_model(self) -> bool:
        if self.server is None:
            return False
        shared = BatchQueue.model_validate(queue_parameters(self.server))
        return self.changing or any(queue != shared for queue in self.queues.values())


def effective(declaration: Declaration) -> Effective:
    """Return the batching that a declaration gives.

    Raises DeclarationError where it says `tuned` and `serving/tuned.yaml` is missing or wrong.
    """
    serving = declaration.pipeline.serving
    models = declaration.pipeline.models
    wants_tuned = serving.batching == "tuned" or any(model.batching == "tuned" for model in models.values())
    tuned = _tuned(declaration) if wants_tuned else Tuned(batching="off")
    server = tuned.batching if serving.batching == "tuned" else serving.batching
    if not isinstance(server, Batching):
        return Effective(None, dict.fromkeys(models))
    shared = BatchQueue.model_validate(queue_parameters(server))
    queues: dict[str, BatchQueue | None] = {}
    for name, model in models.items():
        own = model.batching
        if own == "tuned" or (own is None and serving.batching == "tuned"):
            own = tuned.models.get(name)
        queues[name] = shared if own is None else own if isinstance(own, BatchQueue) else None
    return Effective(server, queues, changing=declaration.pipeline.autotune is not None)


def queue_parameters(batching: BatchQueue) -> dict[str, object]:
    """Return the parameters of the queue alone, without those of the thread pool."""
    return batching.model_dump(include=set(BatchQueue.model_fields))


def _tuned(declaration: Declaration) -> Tuned:
    layout = Layout(declaration.root)
    place = layout.relative(layout.tuned)
    where = declaration.where("serving", "batching")
    try:
        content = yaml.safe_load(layout.tuned.read_text(encoding="utf-8"))
        known = {key: content[key] for key in Tuned.model_fields if key in content}
        return Tuned.model_validate_json(json.dumps(known))
    except FileNotFoundError:
        raise DeclarationError(f"batching: tuned, but there is no {place}", where, "give parameters or `off`") from None
    except (yaml.YAMLError, TypeError) as error:
        raise DeclarationError(f"is not a YAML mapping: {error}", place) from None
    except ValidationError as error:
        raise DeclarationError(f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}", place) from None
