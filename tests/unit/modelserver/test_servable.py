"""What the server knows of a model's signatures."""

from __future__ import annotations

from launchpad.modelserver.protos import SignatureDef
from launchpad.modelserver.servable import Signature


def test_outputs_are_in_the_order_of_their_names_whatever_the_process() -> None:
    definition = SignatureDef()
    for name in "qwertyuiopasdfghjkl":
        definition.inputs[name].name = definition.outputs[name].name = f"{name}:0"
    signature = Signature.from_definition("serving_default", definition)
    assert list(signature.inputs) == list(signature.outputs) == list(signature.all_outputs) == sorted(signature.outputs)
