"""A declaration for a model of one's own: what cannot be one leaves the file that is there."""

from __future__ import annotations

import pytest

from launchpad import declaration
from launchpad.errors import DeclarationError
from launchpad.housekeeping import init


@pytest.mark.parametrize("source", ["a: b/x.keras", "m #2/x.keras", "'q\".keras", "é.keras", "model.py:build"])
def test_a_source_of_any_name_is_declared_as_it_is(tmp_path, source):
    place = tmp_path / source.removesuffix(":build")
    place.parent.mkdir(exist_ok=True)
    place.touch()
    init(tmp_path, source, "1", force=False)
    assert declaration.load(tmp_path).pipeline.models["1"].source == source


@pytest.mark.parametrize("source", ["model.py", "model.py:", "none.keras", "folder.keras", "folder.py:build"])
def test_a_source_that_is_none_leaves_the_declaration_that_is_there(declare, tmp_path, source):
    declare()
    before = (tmp_path / declaration.FILE).read_text()
    (tmp_path / "model.py").touch()
    for name in ("folder.keras", "folder.py"):
        (tmp_path / name).mkdir()
    with pytest.raises(DeclarationError):
        init(tmp_path, source, "", force=True)
    assert (tmp_path / declaration.FILE).read_text() == before
