"""Load for the running server: `locust -f loadtests/`, then open the page that Locust names.

`DeclaredTraffic` sends what `pipeline.yaml` declares under `loadtest`; `invoke loadtest` runs it. The others each send
one form of request to every model. Write a class of your own for anything else.
"""

from launchpad.loadtest.users import ClosedLoopUser, DeclaredLoop, ProfileShape, everything

__all__ = ["DeclaredTraffic", "GrpcBytes", "GrpcTensors", "ProfileShape", "RestBytes", "RestColumns", "RestRows"]


class DeclaredTraffic(DeclaredLoop):  # type: ignore[misc, valid-type]
    """What the profile declares. In an open loop one user is a whole process's load."""


class RestRows(ClosedLoopUser):
    """REST, row format, raw pixels as JSON numbers."""

    traffic = everything("serving_default", "rest")


class RestColumns(ClosedLoopUser):
    """REST, column format, raw pixels as JSON numbers."""

    traffic = everything("serving_default", "rest_columns")


class RestBytes(ClosedLoopUser):
    """REST, 784 raw bytes as base64."""

    traffic = everything("bytes", "rest")


class GrpcTensors(ClosedLoopUser):
    """gRPC Predict, raw pixels as tensor_content."""

    traffic = everything("serving_default", "grpc")


class GrpcBytes(ClosedLoopUser):
    """gRPC Predict, 784 raw bytes."""

    traffic = everything("bytes", "grpc")
