"""Manifests are refused where pods would find nothing to serve; a local server may well mount its models."""

from __future__ import annotations

import pytest

from launchpad.errors import DeclarationError
from launchpad.kubernetes.stage import inputs
from launchpad.stage import Context

MOUNTED = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\nserving: {models: mounted}\n"


def test_models_that_are_mounted_here_are_not_in_the_image_that_pods_run(declare):
    with pytest.raises(DeclarationError, match="the image holds no models"):
        inputs(Context(declare(MOUNTED)), None)
