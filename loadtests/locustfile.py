"""Drive the running server by hand: `locust -f loadtests/`, then open the page that Locust names.

Who is asked what is declared in `pipeline.yaml`, under `loadtest`; add a class here for traffic of another kind.
"""

from launchpad.loadtest.users import PredictUser


class DeclaredTraffic(PredictUser):
    """The traffic of the profile, as declared."""
