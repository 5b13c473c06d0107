"""Past one machine: manifests whose figures come from measurement, fleets planned, deployed and load-tested."""
